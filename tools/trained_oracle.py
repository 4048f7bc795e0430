"""Short trainings as what tools/scale.py scores nets by: each net is trained once, into a folder of its own."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import split
from typing import Any

from digits_study import SCRIPTS
from filelock import FileLock
from trainings import is_finished, last_top1, train

from asvit_plugin.search.scaling_oracle import Oracle

DIGITS = SCRIPTS / "recipes" / "digits_demo.yaml"  # where no recipe is given, and then
SHORT = ("--sched", "cosine", "--progressive-tokenization", "false", "--epochs", "3")
DIVERGED = "the loss became"  # how train.py begins to say so
_OWN = ("model", "model-kwargs", "img-size", "seed", "output", "experiment", "resume", "config")


def trained_oracle(recipes: Sequence[Path], options: str, seed: int, folder: Path) -> Oracle:
    """Held-out top-1 % after a training of classification/train.py; a net whose loss is not finite has no score.

    A training that was stopped goes on at its last epoch, and one that is finished is not repeated.

    Args:
        recipes: Files of options, the later ones counting more; none for a few epochs on handwritten digits.
        options: Further options as on the command line, which count most.
        seed: Of every training.
        folder: Of the trainings.

    Raises:
        OSError: A recipe cannot be read.
        ValueError: An option is one that is set here.
    """
    words = split(options)
    for word in words:
        name = word.removeprefix("--").partition("=")[0].replace("_", "-")
        if word.startswith("--") and (name in _OWN or name.startswith("model-kwargs.")):
            raise ValueError(f"--train-options has {word!r}; the net, seed, folder and recipes are set by scale.py")
    files = list(recipes) or [DIGITS]
    start = [word for recipe in files for word in ("--config", str(recipe))]
    options = ["--tensorboard", "false", *(() if recipes else SHORT), *words]
    digests = [_digits(path.read_text()) for path in files]
    context = {"recipes": digests, "options": options, "seed": seed}

    def measure(model: str, arguments: Mapping[str, Any]) -> float:
        kwargs = {key: value for key, value in arguments.items() if key != "img_size"}
        size = ["--img-size", str(arguments["img_size"])] if "img_size" in arguments else []
        net = ["--model", model, "--model-kwargs", json.dumps(kwargs), *size, "--seed", str(seed)]
        return _top1([*start, *options, *net], folder / _digits([model, dict(arguments), context]))

    return Oracle("top1", measure, context=context)


def _top1(options: Sequence[str], folder: Path) -> float:
    """Top-1 of a run, which is finished first if it is not yet; NaN where it diverged."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # another process may be at the same net
        if not is_finished(folder):
            try:
                train(options, folder)
            except SystemExit as failed:
                last = str(failed).strip().splitlines()[-1]
                if DIVERGED in last:
                    return math.nan
                raise ValueError(f"--oracle trained: {last}") from failed
    return last_top1(folder)


def _digits(content: Any) -> str:
    """16 hex digits that stand for a content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
