"""Reads options from the command line and from YAML files with jsonargparse; a mistake is one sentence."""

import os
import re
import signal
import sys
import time
from argparse import ArgumentError
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

import docstring_parser
import jsonargparse
from data_options import Counts, DataOptions, Names, Numbers
from holdout import Words

Section = TypeVar("Section", bound=DataOptions)
PATIENCE = 10  # seconds, for processes that do not start all at once


def parse_options(
    options_class: type[Section], argv: list[str] | None = None, defaults: dict[str, Any] | None = None
) -> Section:
    """Reads options from the command line and from `--config` files.

    Args:
        options_class: Dataclass whose fields are the options.
        argv: Command line without the program; None takes it from the process.
        defaults: Values that replace the dataclass's own defaults; unknown names are ignored.

    Returns:
        The checked options. Mistakes end the program with one sentence and exit status 2.
    """
    parser = _parser(options_class)
    known = {f.name for f in fields(options_class)}
    parser.set_defaults({name: value for name, value in (defaults or {}).items() if name in known})
    try:
        values = parser.parse_args(argv).as_dict()
        return options_class(**{name: values[name] for name in known})
    except (ArgumentError, ValueError, TypeError) as error:
        exit_with(_one_sentence(str(error), get_type_hints(options_class)))


def exit_with(message: str) -> NoReturn:
    """Prints one line to stderr and ends the program as argparse does, with status 2.

    Of several processes on a machine the first one speaks, and torchrun then ends the others. One that outlives it has
    made a mistake of its own, and speaks too.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(PATIENCE)
    complain(message)
    raise SystemExit(2)


def complain(message: str) -> None:
    """Prints one line to stderr."""
    print(f"{Path(sys.argv[0]).name}: error: {' '.join(message.split())}", file=sys.stderr, flush=True)


def _parser(options_class: type[DataOptions]) -> jsonargparse.ArgumentParser:
    """One flat parser with a help group for each dataclass in the inheritance chain."""
    parser = jsonargparse.ArgumentParser(usage="%(prog)s [options]", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of options; may be given more than once.")
    defaults = {
        each.name: each.default if each.default_factory is MISSING else each.default_factory()
        for each in fields(options_class)
    }
    for section in reversed(options_class.__mro__[:-1]):
        docs = docstring_parser.parse(section.__doc__)
        group = parser.add_argument_group(docs.short_description.rstrip("."))
        helps = {param.arg_name: param.description.replace("\n", " ") for param in docs.params}
        for name, hint in section.__annotations__.items():
            if name in helps:
                _add_option(group, name, hint, defaults[name], helps[name])
    return parser


def _add_option(group: Any, name: str, hint: Any, default: Any, help_text: str) -> None:
    """Adds `--some-name` with the alias `--some_name`; booleans may stand alone, lists take several values."""
    flags = list(dict.fromkeys([f"--{name.replace('_', '-')}", f"--{name}"]))
    extra: dict[str, Any] = {"type": hint}
    if hint in (bool, bool | None):
        extra |= {"nargs": "?", "const": True}
    for numbers in (Numbers, Counts, Names, Words):
        if numbers in (hint, *get_args(hint)):
            extra = {"type": get_args(numbers)[0], "nargs": "+"}
    group.add_argument(*flags, default=default, help=help_text, **extra)


def _one_sentence(message: str, hints: dict[str, Any]) -> str:
    """Turns jsonargparse's multi-line type errors into one sentence with the option, its value and its type."""
    key = re.search(r'Parser key "(\w+)', message)
    if key is None or key[1] not in hints:
        return message
    value = re.findall(r"(?:Given value|Got value): (.*)", message)
    hint = hints[key[1]]
    allowed = str(hint if get_args(hint) else hint.__name__).replace("typing.", "").replace(" | None", "")
    if value and value[-1].lstrip("-") in ("nan", "inf"):
        allowed = "finite numbers only"
    return f"--{key[1].replace('_', '-')} is {value[-1] if value else 'not valid'}; allowed is {allowed}"
