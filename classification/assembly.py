"""Puts a run together from its options: model, data, optimizer, schedules."""

from types import SimpleNamespace
from typing import Any

import timm
import torch
from checkpoints import load_weights, read_foreign
from data import count_classes, data_arguments, make_eval_loader, make_train_loader, open_dataset
from engine import Process, Training, make_autocast
from options import DataOptions, ModelOptions, TrainOptions
from timm.data import Mixup
from timm.data.model_config import resolve_input_data_config
from timm.loss import create_classification_loss
from timm.models import parse_model_name, resolve_model_input_args
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler_factory import scheduler_kwargs
from timm.utils import ModelEmaV3, NativeScaler, init_distributed_device, random_seed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import asvit_plugin


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
        raise ValueError(f"--device is {device!r}; {_first_line(error)}") from error
    return Process(torch.device(place.device), place.rank, place.world_size)


def make_model(options: ModelOptions, num_classes: int | None) -> nn.Module:
    """Builds the model that the options name.

    Args:
        options: Model, input and regularisation options; `model_kwargs` win over the named ones.
        num_classes: Classes of the data; None keeps the model's own.

    Returns:
        The model on the CPU. `timm.models.get_model_args(model)` are the arguments that rebuild it.

    Raises:
        ValueError: There is no such model, or it does not take these arguments.
    """
    kwargs = {
        "num_classes": num_classes,
        "drop_rate": options.drop,
        "drop_path_rate": options.drop_path,
        "global_pool": options.gp,
        "img_size": options.img_size,
    } | options.model_kwargs
    try:
        try:
            return _create(options, kwargs)
        except TypeError as error:  # convolutional nets have no nominal size, and fit any
            if "img_size" not in str(error) or "img_size" in options.model_kwargs:
                raise
            return _create(options, kwargs | {"img_size": None})
    except (TypeError, ValueError, RuntimeError, AssertionError, OSError) as error:
        raise ValueError(f"cannot build --model {options.model!r}: {_first_line(error)}") from error


def _create(options: ModelOptions, kwargs: dict[str, Any]) -> nn.Module:
    """Lets timm reconcile the arguments with the named model or folder, and build it."""
    arguments = resolve_model_input_args(options.model, {"in_chans": options.in_chans}, **kwargs)
    has_source = parse_model_name(options.model)[0] is not None
    return timm.create_model(**arguments, pretrained=options.pretrained or has_source)


def make_training(options: TrainOptions, process: Process) -> Training:
    """Builds everything that a run needs, at its state before the first epoch.

    Raises:
        ValueError: An option does not fit the model, the data or this installation.
    """
    train_set, eval_set = open_dataset(options, training=True), open_dataset(options, training=False)
    random_seed(options.seed)
    model = make_model(options, count_classes(options, train_set, eval_set))
    if options.initial_checkpoint:
        load_weights(model, read_foreign(options.initial_checkpoint), options.initial_checkpoint)
    data_config = make_data_config(options, model)
    distributed = process.world_size > 1
    train_loader = make_train_loader(train_set, data_config, options, process.device, distributed)
    eval_loader = make_eval_loader(eval_set, data_config, options, process.device, distributed)
    place_model(model, options, process)
    if options.grad_checkpointing:
        turn_on_checkpointing(model, options.model)
    optimizer = make_optimizer(options, model)
    ema = (
        ModelEmaV3(model, decay=options.model_ema_decay, use_warmup=options.model_ema_warmup)
        if options.model_ema
        else None
    )
    lr_scheduler, epochs = make_lr_scheduler(options, optimizer, len(train_loader))
    copies = () if ema is None else (ema.module,)
    schedule = make_schedule(model, options.phases, epochs, copies) if options.progressive_tokenization else None
    switching = make_switching(model, options, epochs, copies) if options.attention_switching else None
    saved_fraction = None if schedule is None else schedule.saved_fraction(data_config["input_size"])
    mixes = options.mixup > 0 or options.cutmix > 0
    return Training(
        options,
        process,
        wrap_model(model, options, process),
        ema,
        schedule,
        switching,
        loss=create_classification_loss(
            "bce" if options.bce_loss else "ce",
            smoothing=options.smoothing,
            soft_targets=mixes,
            bce_target_thresh=options.bce_target_thresh,
        ),
        mixup=make_mixup(options, model.num_classes) if mixes else None,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        scaler=NativeScaler(process.device.type) if options.amp and options.amp_dtype == "float16" else None,
        autocast=make_autocast(process.device, options.amp, options.amp_dtype),
        train_loader=train_loader,
        eval_loader=eval_loader,
        data_config=data_config,
        epochs=epochs,
        saved_fraction=saved_fraction,
    )


def make_data_config(options: DataOptions, model: nn.Module) -> dict[str, Any]:
    """Input size, normalisation and test crop that the options, the data and the model agree on."""
    try:
        return resolve_input_data_config(model, data_arguments(options))
    except AssertionError as error:
        raise ValueError(f"the input options do not fit the model: {_first_line(error)}") from error


def place_model(model: nn.Module, options: DataOptions, process: Process) -> nn.Module:
    """Moves a model to the device, in the memory format that the options name."""
    return model.to(
        process.device, memory_format=torch.channels_last if options.channels_last else torch.preserve_format
    )


def wrap_model(model: nn.Module, options: ModelOptions, process: Process) -> nn.Module:
    """Compiles the model and shares it between processes, as asked."""
    if options.compile:
        model = torch.compile(model)
    if process.world_size > 1:
        ids = [process.device.index] if process.device.type == "cuda" else None
        model = DistributedDataParallel(model, device_ids=ids)
    return model


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
        raise ValueError(f"cannot build --opt {options.opt!r}: {_first_line(error)}") from error


def make_lr_scheduler(options: TrainOptions, optimizer: torch.optim.Optimizer, batches: int) -> tuple[Any, int]:
    """The learning rate schedule, and the number of epochs it comes to with warm-up prefix and cool-down."""
    updates = -(-batches // options.grad_accum_steps)
    try:
        return create_scheduler_v2(optimizer, **scheduler_kwargs(options), updates_per_epoch=updates)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"cannot build --sched {options.sched!r}: {_first_line(error)}") from error


def make_mixup(options: TrainOptions, num_classes: int) -> Mixup:
    """timm's Mixup and CutMix."""
    return Mixup(
        mixup_alpha=options.mixup,
        cutmix_alpha=options.cutmix,
        prob=options.mixup_prob,
        switch_prob=options.mixup_switch_prob,
        mode=options.mixup_mode,
        label_smoothing=options.smoothing,
        num_classes=num_classes,
    )


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


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
