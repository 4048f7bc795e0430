"""Trainings by classification/train.py that other programs order: each goes on where it was, and is done once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from digits_study import call


def train(options: Sequence[str], folder: Path) -> None:
    """Trains into a folder, or finds it trained.

    Args:
        options: Those of train.py, without the place.
        folder: Of the run.
    """
    call("train.py", [*options, "--output", str(folder.parent), "--experiment", folder.name, "--resume", "auto"])


def last_top1(folder: Path) -> float:
    """Top-1 % of a run after its last epoch so far."""
    return _state(folder)["history"][-1]["top1"]


def is_finished(folder: Path) -> bool:
    """Whether a run has all its epochs."""
    return (folder / "last.pth.tar").exists() and len((state := _state(folder))["history"]) == state["epochs"]


def _state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "last.pth.tar", map_location="cpu", weights_only=True)
