"""Command-line arguments that several tools take, and what they turn into an argparse error."""

import argparse
import ast
import re
from typing import Any

from safetensors import SafetensorError

# Arguments of timm.create_model that say how to load and not what the net is, or have options of their own.
NO_MODEL_KWARGS = re.compile("pretrained|checkpoint|cache_dir|num_classes|feature|out_indices|device$|dtype$")
MISTAKES = (AssertionError, OSError, RuntimeError, TypeError, ValueError, SafetensorError)


def key_value(text: str) -> tuple[str, Any]:
    """``KEY=VALUE`` of ``--model-kwargs``; values are Python's, or else strings."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form key=value")
    if NO_MODEL_KWARGS.match(key):
        raise argparse.ArgumentTypeError(f"{key!r} cannot be set there: it is no part of the net or has its own option")
    try:
        return key, ast.literal_eval({"true": "True", "false": "False"}.get(value, value))
    except (SyntaxError, ValueError):
        return key, value


def demand_positive(parser: argparse.ArgumentParser, args: argparse.Namespace, *fields: str) -> None:
    """Ends with one sentence where one of these numbers is below 1; None, the default of some, may stay."""
    for field in fields:
        value = getattr(args, field)
        if value is not None and value < 1:
            parser.error(f"argument --{field.replace('_', '-')} is {value}; it must be at least 1")
