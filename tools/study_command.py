"""How the commands that work on a study run: quietly, mistakes as one sentence, to be stopped at any moment."""

import argparse
import sys
from collections.abc import Callable, Sequence

from arguments import MISTAKES, demand_positive


def run_study(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    action: Callable[[argparse.Namespace], None],
    positive: Sequence[str] = (),
) -> None:
    """Does what the command line says; a mistake in it, as a ``positive`` number below 1, ends with one sentence."""
    args = parser.parse_args(argv)
    demand_positive(parser, args, *positive)
    import optuna  # here, so that where it is missing the package says what to install

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        action(args)
    except MISTAKES as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
