"""Puts a run together from its options: model, data, optimizer, schedules."""

from types import SimpleNamespace
from typing import Any

import torch
from checkpoints import load_weights, read_foreign
from data import count_classes, data_arguments, make_eval_loader, make_train_loader, open_dataset
from data_options import DataOptions
from engine import Process, Training, make_autocast
from freezing import freeze
from options import TrainOptions
from pretrained import first_line, make_model
from savings import count_savings
from supernet_training import make_architectures, make_supernet_model
from task import make_mixup, make_task, mixes
from timm.data.model_config import resolve_input_data_config
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler_factory import scheduler_kwargs
from timm.utils import ModelEmaV3, NativeScaler, init_distributed_device, random_seed, unwrap_model
from torch import nn

import asvit_plugin
from asvit_plugin.layers import convert_sync_batchnorm


def make_process(device: str) -> Process:
    """Joins the other processes of this run, where `torchrun` started some.

    Raises:
        ValueError: There is no such device, or one cannot compute on it.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = SimpleNamespace(device=str(torch.device(device)))
        init_distributed_device(place)
        torch.zeros(1, device=place.device).item()  # some devices have a name only, or no values
    except (AssertionError, AttributeError, RuntimeError) as error:
        raise ValueError(f"--device is {device!r}; {first_line(error)}") from error
    return Process(torch.device(place.device), place.rank, place.world_size)


def make_training(options: TrainOptions, process: Process) -> Training:
    """Builds everything that a run needs, at its state before the first epoch.

    Raises:
        ValueError: An option does not fit the model, the data or this installation.
    """
    train_set, eval_set = open_dataset(options, training=True), open_dataset(options, training=False)
    random_seed(options.seed)
    make = make_supernet_model if options.supernet else make_model
    model = make(options, count_classes(options, train_set, eval_set))
    if options.initial_checkpoint:
        load_weights(model, read_foreign(options.initial_checkpoint), options.initial_checkpoint)
    data_config = make_data_config(options, model)
    distributed = process.world_size > 1
    train_loader = make_train_loader(train_set, data_config, options, process.device, distributed)
    eval_loader = make_eval_loader(eval_set, data_config, options, process.device, distributed)
    place_model(model, options, process)
    if options.sync_bn and distributed:
        model = convert_sync_batchnorm(model)
    if options.grad_checkpointing:
        turn_on_checkpointing(model, options.model)
    freeze(model, options.freeze)
    task = make_task(options, model, data_config, process)
    optimizer = make_optimizer(options, unwrap_model(task.get_trainable_module()))
    ema = (
        ModelEmaV3(model, decay=options.model_ema_decay, use_warmup=options.model_ema_warmup)
        if options.model_ema
        else None
    )
    lr_scheduler, epochs = make_lr_scheduler(options, optimizer, len(train_loader))
    copies = () if ema is None else (ema.module,)
    schedule = make_schedule(model, options.phases, epochs, copies) if options.progressive_tokenization else None
    switching = make_switching(model, options, epochs, copies) if options.attention_switching else None
    return Training(
        options,
        process,
        model,
        task,
        ema,
        schedule,
        switching,
        architectures=make_architectures(options, model) if options.supernet else None,
        mixup=make_mixup(options, model, data_config["input_size"]) if mixes(options) else None,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        scaler=NativeScaler(process.device.type) if options.amp and options.amp_dtype == "float16" else None,
        autocast=make_autocast(process.device, options.amp, options.amp_dtype),
        train_loader=train_loader,
        eval_loader=eval_loader,
        data_config=data_config,
        epochs=epochs,
        saved_fraction=count_savings(model, schedule, train_loader, options, data_config["input_size"], epochs),
    )


def make_data_config(options: DataOptions, model: nn.Module) -> dict[str, Any]:
    """Input size, normalisation and test crop that the options, the data and the model agree on."""
    try:
        return resolve_input_data_config(model, data_arguments(options))
    except AssertionError as error:
        raise ValueError(f"the input options do not fit the model: {first_line(error)}") from error


def place_model(model: nn.Module, options: DataOptions, process: Process) -> nn.Module:
    """Moves a model to the device, in the memory format that the options name."""
    return model.to(
        process.device, memory_format=torch.channels_last if options.channels_last else torch.preserve_format
    )


def turn_on_checkpointing(model: nn.Module, name: str) -> None:
    """Raises ValueError where the model cannot recompute its activations."""
    try:
        model.set_grad_checkpointing(True)
    except (AssertionError, AttributeError) as error:
        raise ValueError(f"--grad-checkpointing is on; --model {name!r} does not support it") from error


def make_optimizer(options: TrainOptions, model: nn.Module) -> torch.optim.Optimizer:
    """Raises ValueError where the optimizer does not take the options."""
    try:
        return create_optimizer_v2(model, **optimizer_kwargs(options))
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"cannot build --opt {options.opt!r}: {first_line(error)}") from error


def make_lr_scheduler(options: TrainOptions, optimizer: torch.optim.Optimizer, batches: int) -> tuple[Any, int]:
    """The learning rate schedule, and the number of epochs it comes to with warm-up prefix and cool-down."""
    updates = -(-batches // options.grad_accum_steps)
    try:
        return create_scheduler_v2(optimizer, **scheduler_kwargs(options), updates_per_epoch=updates)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"cannot build --sched {options.sched!r}: {first_line(error)}") from error


def make_schedule(
    model: nn.Module, phases: list[list[int | float]] | None, epochs: int, copies: tuple[nn.Module, ...] = ()
) -> asvit_plugin.ProgressiveTokenization:
    """Progressive tokenization of a model.

    Args:
        model: A model that can be tokenized more coarsely.
        phases: `[until, stride]` or `[until, stride, dilation]` each; None for the paper's.
        epochs: Length of the run.
        copies: Models that follow, such as an average of the weights.

    Raises:
        ValueError: The phases are not valid, the model has none, or the run is too short for its last phase.
    """
    schedule = asvit_plugin.ProgressiveTokenization(model, phases=phases, copies=copies)
    if not in_last_phase(schedule, (epochs - 1) / epochs):
        raise ValueError(f"--epochs is {epochs}; the last phase of --phases would never begin")
    return schedule


def make_switching(
    model: nn.Module, options: TrainOptions, epochs: int, copies: tuple[nn.Module, ...] = ()
) -> asvit_plugin.AttentionSwitching:
    """Attention switching of a castled model and its copies.

    Raises:
        ValueError: The model is not castled, the options do not fit each other, or no whole epoch would be linear.
    """
    switching = asvit_plugin.AttentionSwitching(
        model, copies, options.blend_until, options.mask_from, options.linear_from, options.mask_threshold
    )
    if (epochs - 1) / epochs < options.linear_from:
        raise ValueError(f"--epochs is {epochs}; with --linear-from {options.linear_from} no whole epoch is linear")
    return switching


def in_last_phase(schedule: asvit_plugin.ProgressiveTokenization | None, progress: float) -> bool:
    """Whether the model is at full resolution: results before that do not count as the best."""
    return schedule is None or schedule.phase_at(progress) == schedule.phases[-1]
