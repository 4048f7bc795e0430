"""Results of a command as JSON, with what is needed to repeat it."""

import json
import math
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
import yaml

from asvit_plugin.atomic import write_atomically

PACKAGES = ("asvit-plugin", "torch", "timm", "optuna", "numpy")


def write_json(path: Path, data: Any) -> None:
    """Writes JSON, which has no NaN and no infinities: null stands for them."""
    text = json.dumps(_finite(data), indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(text.encode()))


def write_recipe(path: Path, model: str, arguments: Mapping[str, Any]) -> None:
    """Writes a net as a file of options that classification/train.py reads with --config."""
    kwargs = json.loads(json.dumps(arguments))  # tuples as lists
    size = {"img_size": kwargs.pop("img_size")} if "img_size" in kwargs else {}
    text = yaml.safe_dump({"model": model, **size, "model_kwargs": kwargs}, sort_keys=False)
    write_atomically(path, lambda file: file.write(text.encode()))


def write_recipes(folder: Path, nets: Sequence[Any]) -> None:
    """Writes nets with a step, model and arguments as net_STEP.yaml, in the place of those of an earlier run."""
    for old in folder.glob("net_*.yaml"):
        old.unlink()
    for net in nets:
        write_recipe(folder / f"net_{net.step}.yaml", net.model, net.arguments)


def machine_record(device: str, threads: int) -> dict[str, Any]:
    """What times were measured on, and by which command."""
    on_gpu = torch.device(device).type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU, {threads} threads",
        "torch": torch.__version__,
        "timm": timm.__version__,
        "command": " ".join(["python", *sys.argv]),
    }


def run_record() -> dict[str, Any]:
    """Versions, machine and command line of this process."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": platform.machine(),
        "command": without_password(" ".join(["python", *sys.argv])),
    }


def without_password(text: str) -> str:
    """A text whose URLs show no password."""
    return re.sub(r"(://[^:/@\s]*):[^@\s]+@", r"\1:***@", text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
