"""The file of tools/benchmark.py: cells that were measured on one machine with one setting, added one by one."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from benchmark_suite import Cell
from result_files import machine_record, write_json

from asvit_plugin import __version__
from asvit_plugin.costs.latency_record import hardware_name


def machine(device: str, threads: int) -> dict[str, Any]:
    """What the figures of a file were measured on, and the command; in a file, those that added to it, a line each."""
    return {
        **machine_record(device, threads),
        "device": hardware_name(device),
        "cores": _cores(),
        "threads": threads,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "asvit-plugin": __version__,
    }


class BenchmarkRecord:
    """Measured cells, with what all of them share.

    Args:
        path: File that they are kept in, and from which those are taken that are there; None keeps no file.
        machine: What they are measured on.
        settings: How they are measured.

    Raises:
        ValueError: The file cannot be read, or its cells were measured otherwise.
    """

    def __init__(self, path: Path | None, machine: dict[str, Any], settings: dict[str, Any]) -> None:
        self.path, self.machine, self.settings = path, dict(machine), settings
        self.cells: list[dict[str, Any]] = []
        if path and path.exists():
            kept = read_benchmark(path)
            commands = [*kept["machine"].get("command", "").splitlines(), machine["command"]]
            self.machine["command"] = "\n".join(dict.fromkeys(commands))
            for field, ours in (("machine", machine), ("settings", settings)):
                _demand_same(path, field, kept[field], {name: ours[name] for name in ours if name != "command"})
            self.cells = kept["cells"]

    def find(self, cell: Cell) -> dict[str, Any] | None:
        """What was measured of a cell, if it was.

        Raises:
            ValueError: Other models or another batch were.
        """
        for kept in self.cells:
            if all(kept[name] == value for name, value in cell.place.items()):
                wanted = {"batch": cell.batch, "models": list(cell.models)}
                _demand_same(self.path, str(cell), {**kept, "models": [row["model"] for row in kept["models"]]}, wanted)
                return kept
        return None

    def add(self, cell: Cell, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Keep the figures of a cell, at once in the file too."""
        self.cells.append({**cell.place, "batch": cell.batch, "models": rows})
        if self.path:
            write_json(self.path, {"machine": self.machine, "settings": self.settings, "cells": self.cells})
        return self.cells[-1]

    def too_slow(self, cell: Cell, model: str) -> str | None:
        """Why a model is not to be tried: at a smaller size one batch of it took too long."""
        for kept in self.cells:
            same = all(kept[name] == getattr(cell, name) for name in ("step", "runtime"))
            if same and kept["img_size"] < cell.img_size:
                for row in kept["models"]:
                    if row["model"] == model and row.get("too_slow"):
                        return f"at {kept['img_size']} px {row['reason']}"
        return None


def read_benchmark(path: Path) -> dict[str, Any]:
    """The content of a file of benchmarks.

    Raises:
        ValueError: It is none.
    """
    try:
        content = json.loads(path.read_text())
        for part, kind in (("machine", dict), ("settings", dict), ("cells", list)):
            if not isinstance(content[part], kind):
                raise TypeError(part)
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path} is no file of tools/benchmark.py ({reason}); give another, or delete it") from error
    return content


def _demand_same(path: Path | None, what: str, kept: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, ours in wanted.items():
        if kept.get(name) != ours:
            raise ValueError(f"{path} has {what} with {name} {kept.get(name)!r}, not {ours!r}; give another file")


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
