"""Checkpoint files: what they hold, which part of it are the weights, and what else there is."""

import argparse
import re
import reprlib
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from timm.models import clean_state_dict

Weights = dict[str, torch.Tensor]

ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model")  # the first wins, as where timm reads a file
CLASSIFIERS = ("head.2.weight", "cls_head.weight", "head.fc.weight", "head.weight")  # the authors' names, then ours


def read_checkpoint(path: Path) -> dict[str, Any]:
    """All that a file holds, read without running code from it.

    Raises:
        ValueError: if there is none, it is damaged, or it holds something else than plain values and tensors.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # the authors' options
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except PermissionError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly any
        raise ValueError(f"{path} cannot be read: {_why_unreadable(error)}") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, where a dictionary of weights is expected")
    return checkpoint


def _why_unreadable(error: Exception) -> str:
    unsafe = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
    if unsafe:
        return f"it holds a {unsafe[1]}, and for safety only tensors and plain Python values are read"
    return "it is no checkpoint of PyTorch or safetensors, or a damaged one"


def pick_weights(checkpoint: dict[str, Any], path: Path) -> tuple[str, Weights]:
    """The entry that holds the weights ("" for the whole file), and the weights without prefixes of wrappers.

    Raises:
        ValueError: if there are none, or they are not all tensors.
    """
    entry = next((key for key in ENTRIES if checkpoint.get(key) is not None), "")
    weights = checkpoint[entry] if entry else checkpoint
    if not isinstance(weights, dict) or not weights:
        raise ValueError(f"{path} holds no weights: {entry or 'the file'} is {reprlib.repr(weights)}")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{path} holds no weights that can be told from the rest: among the tensors of {entry or 'the file'}, "
                f"{name!r} is a {type(value).__name__}"
            )
    return entry, clean_state_dict(weights)


def count_classes(weights: Weights) -> int | None:
    """Classes of the classifier; None where the file has none, or more than one that could be it."""
    found = [len(weights[name]) for name in CLASSIFIERS if name in weights and weights[name].ndim == 2]
    return found[0] if len(found) == 1 else None


def describe(name: str, value: Any) -> str:
    """An entry of a checkpoint in a few words: its tensors are counted, a plain value is shown."""
    tensors = _count_tensors(value)
    if tensors:
        return f"{name} ({tensors} tensor{'s' if tensors > 1 else ''})"
    if isinstance(value, (dict, list, tuple)):
        return f"{name} ({len(value)} entr{'y' if len(value) == 1 else 'ies'})"
    plain = value is None or isinstance(value, (bool, int, float, str))
    return f"{name}={reprlib.repr(value)}" if plain else f"{name} ({type(value).__name__})"


def _count_tensors(value: Any) -> int:
    if isinstance(value, (dict, list, tuple)):
        return sum(map(_count_tensors, value.values() if isinstance(value, dict) else value))
    return int(isinstance(value, torch.Tensor))
