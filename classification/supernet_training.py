"""Training all nets of a space in one supernet: what a run of `--supernet` has beside any other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from engine import Process, Training, evaluate
from options import TrainOptions
from pretrained import first_line, model_arguments

from asvit_plugin.search.architectures import Architectures
from asvit_plugin.search.importance import reorder
from asvit_plugin.search.space import Choice
from asvit_plugin.search.supernet import MODES, SuperNet, faster_mode, make_supernet


def make_supernet_model(options: TrainOptions, num_classes: int | None) -> SuperNet:
    """The supernet of the space that the options name, on the CPU.

    Raises:
        ValueError: There is no such space, its nets cannot share weights, or they do not take the model's options.
    """
    kwargs = {name: value for name, value in model_arguments(options, num_classes).items() if value is not None}
    try:
        supernet = make_supernet(options.supernet, **kwargs)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"cannot build --supernet {options.supernet!r}: {first_line(error)}") from error
    if options.supernet_mode != "auto":
        supernet.mode = options.supernet_mode
    return supernet


def make_architectures(options: TrainOptions, supernet: SuperNet) -> Architectures:
    """What draws the nets of each step."""
    return Architectures(
        supernet, options.examples_per_arch, options.seed, options.supernet_warmup_epochs, options.sandwich
    )


def settle_mode(training: Training, choices: Sequence[Choice] | None = None) -> None:
    """With `--supernet-mode auto`, times how this machine computes the nets of a step best; rank 0 decides for all.

    The nets are ``choices``, or what ``Architectures`` draws.
    """
    options, process = training.options, training.process
    if not isinstance(training.model, SuperNet) or options.supernet_mode != "auto":
        return
    batch_size = (options.train_batch_sizes or [options.batch_size])[0]
    images = torch.zeros(batch_size, *training.data_config["input_size"], device=process.device)
    if choices is None:
        choices = Architectures(training.model, options.examples_per_arch, warmup_epochs=0).step(len(images))
        training.model.choose(None)
    with training.autocast():
        mode = faster_mode(training.model.train(), images, choices)
    training.model.mode = _of_rank_0(mode, process)
    if process.rank == 0:
        print(f"nets of a step are computed with {training.model.mode}, which is faster here")


def start_supernet_epoch(training: Training, epoch: int) -> None:
    """Lets in the nets of an epoch; while there are more every time, the important heads and MLP units come first."""
    training.architectures.start_epoch(epoch, training.process.rank)
    if epoch <= training.options.supernet_warmup_epochs:
        copies = () if training.ema is None else (training.ema.module,)
        reorder(training.model, training.optimizer, copies)


def measure_smallest(training: Training) -> float | None:
    """Held-out top-1 in percent of the smallest net of the space; None in a run without a supernet."""
    if training.architectures is None:
        return None
    supernet = training.model if training.ema is None else training.ema.module
    supernet.choose([supernet.networks.smallest_choice()])
    channels_last = training.options.channels_last
    result = evaluate(supernet, training.eval_loader, training.process, training.autocast, channels_last)
    supernet.choose(None)
    return result["top1"]


def supernet_state(training: Training) -> dict[str, str]:
    """What a checkpoint must know of a supernet beside its weights."""
    if not isinstance(training.model, SuperNet):
        return {}
    return {"space": training.model.networks.space.fingerprint, "supernet_mode": training.model.mode}


def restore_supernet(training: Training, state: dict[str, Any], path: Path) -> None:
    """Puts a supernet into the mode of a checkpoint, without which a continued run would differ in the last bits.

    Raises:
        ValueError: The checkpoint is of a supernet of another space, or of none.
    """
    saved, own = state.get("space"), supernet_state(training).get("space")
    if saved != own:
        was, now = (f"a supernet of the space {each}" if each else "no supernet" for each in (saved, own))
        raise ValueError(f"{str(path)!r} belongs to a different run: it trained {was}, and this one trains {now}")
    if own is None:
        return
    if state.get("supernet_mode") not in MODES:
        raise ValueError(f"'supernet_mode' in the checkpoint {str(path)!r} is missing or does not fit this run")
    training.model.mode = state["supernet_mode"]


def _of_rank_0(mode: str, process: Process) -> str:
    if process.world_size == 1:
        return mode
    modes = [mode]
    torch.distributed.broadcast_object_list(modes, src=0, device=process.device)
    return modes[0]
