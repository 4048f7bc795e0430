"""What a batch is learnt from: labels, mixed images and a teacher, as one of timm's training tasks."""

from typing import Any

from engine import Process
from options import TrainOptions
from pretrained import build, first_line
from timm.data import Mixup
from timm.layers import to_2tuple
from timm.loss import create_classification_loss
from timm.task import ClassificationTask, TrainingTask
from torch import nn

from asvit_plugin import DistillationTask, PatchHeadCrossEntropy, SwitchTokenMix
from asvit_plugin.costs import run_on_meta
from asvit_plugin.search.supernet import SuperNet
from asvit_plugin.tasks.inplace_distillation import InplaceDistillationTask


def make_task(options: TrainOptions, model: nn.Module, data_config: dict[str, Any], process: Process) -> TrainingTask:
    """The task of a run, on its device, shared between processes and compiled as asked.

    Raises:
        ValueError: The teacher is not to be had, or does not fit the model.
    """
    criterion = make_criterion(options, model)
    if options.kd_model_name:
        task = make_distillation(options, model, criterion, data_config).to(process.device)
    elif options.inplace_distillation:
        task = make_inplace_distillation(model, criterion, process)
    else:
        task = ClassificationTask(model, criterion, device=process.device, verbose=False)
    if options.compile:
        task.compile()
    if process.world_size > 1:
        task.prepare_distributed(device_ids=[process.device.index] if process.device.type == "cuda" else None)
    return task


def make_criterion(options: TrainOptions, model: nn.Module) -> nn.Module:
    """The loss of labels, of mixed targets, or of those of every patch.

    Raises:
        ValueError: It is to be binary, and patches have none such.
    """
    has_patch_head = getattr(model, "patch_head", None) is not None
    if has_patch_head and options.bce_loss:
        raise ValueError("--bce-loss is on; a model with a patch head learns by softmax cross entropy")
    if options.switch_token_mix or has_patch_head:
        return PatchHeadCrossEntropy(smoothing=options.smoothing)
    return create_classification_loss(
        "bce" if options.bce_loss else "ce",
        smoothing=options.smoothing,
        soft_targets=mixes(options),
        bce_target_thresh=options.bce_target_thresh,
    )


def make_distillation(
    options: TrainOptions, model: nn.Module, criterion: nn.Module, data_config: dict[str, Any]
) -> DistillationTask:
    """Distillation from the teacher that the options name, at the images' size where it has one.

    Raises:
        ValueError: There is no such teacher, its weights are not to be had, or it does not fit the model.
    """
    img_size = data_config["input_size"][-1]
    kwargs = {"img_size": img_size} | options.kd_model_kwargs
    teacher = build("kd_model_name", options.kd_model_name, kwargs, True, options.kd_pretrained_path)
    check_sizes(teacher, options, img_size)
    try:
        return DistillationTask(
            model,
            teacher,
            criterion,
            distill_type=options.kd_distill_type,
            task_loss_weight=options.task_loss_weight,
            distill_loss_weight=options.distill_loss_weight,
            tokens_weight=options.kd_tokens_weight,
            temperature=options.kd_temperature,
            mean=data_config["mean"],
            std=data_config["std"],
        )
    except ValueError as error:
        raise ValueError(f"--kd-model-name is {options.kd_model_name!r}: {error}") from error


def make_inplace_distillation(supernet: SuperNet, criterion: nn.Module, process: Process) -> InplaceDistillationTask:
    """Distillation from a supernet's largest net to all others.

    Raises:
        ValueError: It has a distillation head.
    """
    try:
        return InplaceDistillationTask(supernet, criterion, device=process.device)
    except ValueError as error:
        raise ValueError(f"--inplace-distillation is on; {error}") from error


def check_sizes(teacher: nn.Module, options: TrainOptions, img_size: int) -> None:
    """Raises ValueError if a teacher does not take images of all sizes of the training; nothing is computed."""
    for side in {img_size, *(options.train_img_sizes or [])}:
        try:
            run_on_meta(teacher, (getattr(teacher, "in_chans", 3), side, side))
        except NotImplementedError:  # it cannot run without values
            return
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"--kd-model-name is {options.kd_model_name!r}; it takes no images of {side} px: {first_line(error)}"
            ) from error


def mixes(options: TrainOptions) -> bool:
    """Whether images and targets are mixed."""
    return options.switch_token_mix or options.mixup > 0 or options.cutmix > 0


def make_mixup(options: TrainOptions, model: nn.Module, input_size: tuple[int, ...]) -> Mixup | SwitchTokenMix:
    """timm's Mixup and CutMix, or ViT-ResNAS's, whose cells are the tokens of the model's last stage.

    Raises:
        ValueError: The images do not divide into those tokens.
    """
    if options.switch_token_mix:
        stride = max(to_2tuple(model.feature_info[-1]["reduction"]))
        grid_size = [max(side // stride, 1) for side in input_size[-2:]]
        if any(side % stride for side in input_size[-2:]):
            raise ValueError(f"--img-size is {input_size[-1]}; --switch-token-mix needs a multiple of {stride}")
        return SwitchTokenMix(
            options.mixup, options.cutmix, tuple(grid_size), options.smoothing, num_classes=model.num_classes
        )
    return Mixup(
        mixup_alpha=options.mixup,
        cutmix_alpha=options.cutmix,
        prob=options.mixup_prob,
        switch_prob=options.mixup_switch_prob,
        mode=options.mixup_mode,
        label_smoothing=options.smoothing,
        num_classes=model.num_classes,
    )
