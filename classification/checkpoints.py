"""Checkpoints in timm's layout: written so that a kill at any moment leaves a whole file, read with plain tensors only.

timm's CheckpointSaver is not used: it removes the old file before it renames the new one and never flushes to disk,
so a kill in between leaves no `last` checkpoint; and it stores the arguments as a Namespace, not as plain values.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from options import TrainOptions
from report import COLUMNS
from timm.models import load_state_dict
from timm.task import TrainingTask

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
    "supernet",  # the checkpoint knows what the space was, which a file's name does not say
    "pin_mem",
    "device",
    "compile",
    "workers",
    "validation_batch_size",
    "channels_last",
}


@dataclass
class RunState:
    """What a checkpoint of train.py always holds, under timm's names where timm has them.

    Averaged weights are added as `state_dict_ema`, what a task trains beside the model as `task_state`, the
    part of the training MACs that a schedule saves as `saved_macs`, and the loss scaling of mixed precision under
    timm's name for it.
    """

    epoch: int
    epochs: int
    arch: str
    metric: float
    version: int
    world_size: int
    options: dict
    model_args: dict
    history: list
    state_dict: dict
    optimizer: dict


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Saves a state of tensors and plain values, readable with `torch.load(path, weights_only=True)`."""
    write_atomically(path, lambda file: torch.save(state, file))


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Reads a checkpoint that train.py wrote.

    Args:
        path: The file.

    Returns:
        The state with everything that `RunState` names.

    Raises:
        ValueError: There is no such file, it is damaged, or it is something else.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no checkpoint {str(path)!r}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in as many ways as there are places for the damage
        raise ValueError(f"the checkpoint {str(path)!r} is damaged or not a PyTorch file") from error
    fault = _find_fault(state)
    if fault:
        raise ValueError(f"the checkpoint {str(path)!r} was not written by train.py: {fault}")
    return state


def read_foreign(path: Path | str, use_ema: bool = True) -> dict[str, torch.Tensor]:
    """Reads weights from any file that timm reads.

    Args:
        path: The file.
        use_ema: Whether to take averaged weights where the file has them.

    Raises:
        ValueError: There is no such file, it is damaged, or it is something else.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no checkpoint {str(path)!r}")
    try:
        weights = load_state_dict(str(path), use_ema=use_ema)
        if weights and _all_tensors(weights):
            return weights
    except Exception:  # a damaged file fails in as many ways as there are places for the damage
        pass
    raise ValueError(f"the checkpoint {str(path)!r} is damaged or holds no weights")


def check_same_run(state: dict[str, Any], options: dict[str, Any], world_size: int, path: Path) -> None:
    """Raises ValueError if continuing a checkpoint with these options would not be the same run."""
    saved = asdict(TrainOptions()) | state["options"]  # a checkpoint does not know options that are younger
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
    exists = os.path.exists(last)  # unlike Path.exists, this calls what may not be looked at absent
    if resume not in ("", "auto"):
        return Path(resume)
    if exists and not resume:
        raise ValueError(
            f"the folder {str(folder)!r} holds a run already: continue it with --resume auto, or choose "
            "another --experiment"
        )
    return last if exists else None


def check_same_folder(checkpoint: Path, folder: Path) -> None:
    """Raises ValueError if continuing a checkpoint of elsewhere would overwrite the run that the folder holds."""
    if checkpoint.absolute().parent != folder.absolute() and os.path.exists(folder / "last.pth.tar"):
        raise ValueError(f"the folder {str(folder)!r} holds another run already: choose another --experiment")


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor], source: Path | str) -> None:
    """Loads weights that must cover the model exactly.

    Raises:
        ValueError: Names or shapes differ.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        own = {name: tensor.shape for name, tensor in model.state_dict().items()}
        given = {name: tensor.shape for name, tensor in weights.items()}
        odd = [name for name in sorted(own.keys() | given.keys()) if own.get(name) != given.get(name)]
        raise ValueError(
            f"the weights in {str(source)!r} do not match the model: {len(odd)} of {len(own)} tensors differ, among "
            f"them {', '.join(_difference(name, own, given) for name in odd[:3])}"
        ) from error


def load_part(part: Any, state: dict[str, Any], key: str, path: Path) -> None:
    """Loads one part of a checkpoint into an optimizer or a loss scaler.

    Raises:
        ValueError: The checkpoint lacks that part, or it does not fit.
    """
    try:
        part.load_state_dict(state[key])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{key!r} in the checkpoint {str(path)!r} is missing or does not fit this run") from error


def load_task_state(task: TrainingTask, state: dict[str, Any], path: Path) -> None:
    """Loads what a task trains beside the model: linear maps to the teacher's tokens.

    Raises:
        ValueError: The checkpoint lacks them, or they do not fit.
    """
    if not task.get_task_state():
        return
    try:
        if not state["task_state"]:  # which a task takes for a state without anything
            raise KeyError("task_state")
        task.load_task_state(state["task_state"])
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"'task_state' in the checkpoint {str(path)!r} is missing or does not fit this run") from error


def _find_fault(state: Any) -> str:
    """What makes a file's content something else than a checkpoint of train.py; empty where nothing does."""
    if not isinstance(state, dict):
        return "it holds no named values"
    for name, kind in get_type_hints(RunState).items():
        if name not in state:
            return f"{name!r} is missing"
        if not isinstance(state[name], kind):
            return f"{name!r} is no {kind.__name__}"
    if not all(map(_is_row, state["history"])):
        return "a line of 'history' is not complete"
    if not 0 <= state["epoch"] < state["epochs"] or len(state["history"]) != state["epoch"] + 1:
        return "'epoch', 'epochs' and 'history' contradict each other"
    if not {"progressive_tokenization", "phases"} <= set(state["options"]):
        return "'options' is not complete"
    for name in ("state_dict", "state_dict_ema"):
        if not _all_tensors(state.get(name, {})):
            return f"{name!r} holds something else than tensors"
    return ""


def _is_row(row: Any) -> bool:
    """Whether this is one epoch of a history, as the report needs it."""
    return (
        isinstance(row, dict)
        and {*COLUMNS, "final_state"} <= set(row)
        and all(isinstance(row[name], (int, float)) for name in COLUMNS if name != "stride")
        and isinstance(row["stride"], int | None)
    )


def _all_tensors(weights: Any) -> bool:
    return isinstance(weights, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    )


def _difference(name: str, own: dict[str, torch.Size], given: dict[str, torch.Size]) -> str:
    if name not in given:
        return f"{name}, which the file lacks"
    if name not in own:
        return f"{name}, which the model lacks"
    return f"{name} of shape {tuple(given[name])} where the model has {tuple(own[name])}"
