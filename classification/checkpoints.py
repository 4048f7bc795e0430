"""Checkpoints in timm's layout: written so that a kill at any moment leaves a whole file, read with plain tensors only.

timm's CheckpointSaver is not used: it removes the old file before it renames the new one and never flushes to disk,
so a kill in between leaves no `last` checkpoint; and it stores the arguments as a Namespace, not as plain values.
"""

from pathlib import Path
from typing import Any

import torch

from asvit_plugin.atomic import write_atomically

# Options that may differ between a run and its continuation. All others change the result, hence the run's identity.
# Those of the second line can change the last bits of it, or which random images a loader process draws.
FREE_OPTIONS = {
    "output",
    "experiment",
    "resume",
    "log_interval",
    "tensorboard",
    "data",
    "data_dir",
    "pin_mem",
    "device",
    "compile",
    "workers",
    "validation_batch_size",
    "channels_last",
}


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Saves a state of tensors and plain values, readable with `torch.load(path, weights_only=True)`."""
    write_atomically(path, lambda file: torch.save(state, file))


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Reads a checkpoint that train.py wrote.

    Args:
        path: The file.

    Returns:
        The state with `state_dict`, `optimizer`, `epoch`, `arch`, `options`, `model_args`, `history` and others.

    Raises:
        ValueError: There is no such file, it is damaged, or it is something else.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no checkpoint {str(path)!r}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in as many ways as there are places for the damage
        raise ValueError(f"the checkpoint {str(path)!r} is damaged or not a PyTorch file") from error
    if not isinstance(state, dict) or not {"state_dict", "optimizer", "options", "model_args", "history"} <= set(state):
        raise ValueError(f"the checkpoint {str(path)!r} was not written by train.py")
    return state


def check_same_run(state: dict[str, Any], options: dict[str, Any], world_size: int, path: Path) -> None:
    """Raises ValueError if continuing a checkpoint with these options would not be the same run."""
    saved = state["options"]
    changed = [
        f"--{name.replace('_', '-')} was {saved[name]!r} and is {value!r}"
        for name, value in options.items()
        if name not in FREE_OPTIONS and name in saved and saved[name] != value
    ]
    if state["world_size"] != world_size:
        changed.append(f"the number of processes was {state['world_size']} and is {world_size}")
    if changed:
        raise ValueError(f"{str(path)!r} belongs to a different run: {'; '.join(changed)}")


def find_resume(resume: str, folder: Path) -> Path | None:
    """Checkpoint to continue, or None to start afresh.

    Args:
        resume: `auto`, a path or nothing.
        folder: The experiment's folder.

    Raises:
        ValueError: The folder holds a run already and nothing says to continue it.
    """
    last = folder / "last.pth.tar"
    if resume not in ("", "auto"):
        return Path(resume)
    if last.exists() and not resume:
        raise ValueError(
            f"the folder {str(folder)!r} holds a run already: continue it with --resume auto, or choose "
            "another --experiment"
        )
    return last if last.exists() else None


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor], source: Path | str) -> None:
    """Loads weights that must cover the model exactly.

    Raises:
        ValueError: Names or shapes differ.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        own = {name: tensor.shape for name, tensor in model.state_dict().items()}
        odd = sorted(
            name
            for name in own.keys() | weights.keys()
            if name not in own or name not in weights or own[name] != weights[name].shape
        )
        raise ValueError(
            f"the weights in {str(source)!r} do not match the model: {len(odd)} of {len(own)} tensors "
            f"differ, among them {', '.join(odd[:3])}"
        ) from error
