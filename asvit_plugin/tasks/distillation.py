"""Distillation: learning from a teacher's logits, soft or hard, and from its tokens at every depth."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.loss import create_classification_loss
from timm.task import DistillationTeacher, TrainingTask
from timm.utils import unwrap_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..checks import check_choice
from .token_matching import (
    Tokens,
    TokenStudent,
    compare_tokens,
    forward_tokens,
    make_projections,
    pair_depths,
    share_prefix,
)

DISTILL_TYPES = ("soft", "hard", "none")
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class DistillationTask(TrainingTask):
    """A timm training task: loss = task_loss_weight * task + distill_loss_weight * distill + tokens_weight * tokens.

    - *task*: ``criterion`` of the student's logits and the targets.
    - *distill*: "soft", Kullback-Leibler divergence to the teacher's distribution at a temperature, times its square
      (Hinton et al. 2015); or "hard", cross entropy with the class that the teacher finds likeliest (Touvron et al.,
      "DeiT", ICML 2021). A student with a distillation head learns it there, and the targets with the other head.
    - *tokens*: mean squared difference of the layer-normed tokens, after every block (of pyramids: every stage).
      Where depths differ, blocks at equal parts of the depth are compared; grids are resampled to the student's;
      prefix tokens take part where both have as many. Other widths go through linear maps that are trained along.

    timm's own tasks do one of these each: :class:`timm.task.LogitDistillationTask` soft logits of one head,
    :class:`timm.task.TokenDistillationTask` those of a distillation head, and neither compares tokens.

    Args:
        student_model: A timm model, not wrapped.
        teacher_model: A timm model of as many classes, with its weights. It may take images of three channels where
            the student takes grey ones. It is frozen, and images are normalised anew for it.
        criterion: Loss of the targets; None for cross entropy.
        distill_type: "soft", "hard" or "none".
        task_loss_weight: Weight of the targets.
        distill_loss_weight: Weight of the teacher's logits; None for 1 - ``task_loss_weight``.
        tokens_weight: Weight of the tokens; 0 leaves them out.
        temperature: Divides logits of both before "soft" compares them.
        mean: Channel means that the images were normalised with; None for those of the student's ``pretrained_cfg``.
        std: Channel deviations, likewise.
        device: Where the task's own parts are made; None for where the student is.

    Raises:
        ValueError: A number is out of range, the teacher has other classes or channels, a model offers no tokens, or
            the student's second head classifies patches.
    """

    def __init__(
        self,
        student_model: nn.Module,
        teacher_model: nn.Module,
        criterion: nn.Module | None = None,
        distill_type: str = "soft",
        task_loss_weight: float = 0.5,
        distill_loss_weight: float | None = None,
        tokens_weight: float = 0.0,
        temperature: float = 1.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        device: torch.device | None = None,
    ) -> None:
        weight = next(student_model.parameters())
        super().__init__(device=weight.device if device is None else device, dtype=weight.dtype, verbose=False)
        check_choice("distill_type", distill_type, DISTILL_TYPES)
        _check_pair(student_model, teacher_model)
        if hasattr(student_model, "set_distilled_training"):
            # Without the teacher's logits nothing would train the second head, which DDP refuses.
            student_model.set_distilled_training(distill_type != "none")
        self.criterion = create_classification_loss("ce") if criterion is None else criterion
        self.distill_type = distill_type
        self.task_loss_weight = task_loss_weight
        self.distill_loss_weight = _distill_weight(distill_type, task_loss_weight, distill_loss_weight)
        self.tokens_weight = tokens_weight
        self.temperature = temperature
        _check_numbers(self)
        self.teacher = DistillationTeacher(teacher_model.requires_grad_(False), device=self.device, dtype=self.dtype)
        self.teacher.mean_kd = _per_channel(self.teacher.mean_kd, teacher_model)
        self.teacher.std_kd = _per_channel(self.teacher.std_kd, teacher_model)
        cfg = _IMAGENET | (getattr(student_model, "pretrained_cfg", None) or {})
        for name, given in (("mean", mean), ("std", std)):
            value = torch.tensor(cfg[name] if given is None else given, device=self.device, dtype=self.dtype)
            self.register_buffer(f"student_{name}", _per_channel(value, student_model), persistent=False)
        self.trainable_module: nn.Module = student_model
        if tokens_weight:
            students, self.teacher_indices = pair_depths(student_model, teacher_model)
            self.prefix = share_prefix(student_model, teacher_model)
            maps = make_projections(student_model, students, teacher_model, self.teacher_indices)
            self.trainable_module = TokenStudent(student_model, students, self.prefix, maps.to(self.device, self.dtype))
            self._forward_tokens = forward_tokens

    def forward(self, images: torch.Tensor, target: Any) -> dict[str, torch.Tensor]:
        """The loss of a batch.

        Args:
            images: (B, C, H, W), normalised for the student.
            target: What ``criterion`` takes.

        Returns:
            `loss`, its parts `task_loss`, `distill_loss` and `tokens_loss` where they take part, and `output`, the
            student's logits (B, num_classes).
        """
        output, tokens = self.trainable_module(images), None
        if self.tokens_weight:
            output, tokens = output
        logits, distilled = output if isinstance(output, tuple) else (output, output)
        parts = {"task_loss": self.criterion(logits, target)}
        loss = self.task_loss_weight * parts["task_loss"]
        taught, teacher_tokens = self._teach(images)
        if self.distill_type != "none":
            parts["distill_loss"] = self._compare_logits(distilled, taught)
            loss = loss + self.distill_loss_weight * parts["distill_loss"]
        if tokens is not None:
            parts["tokens_loss"] = compare_tokens(tokens, teacher_tokens)
            loss = loss + self.tokens_weight * parts["tokens_loss"]
        return {"loss": loss, "output": logits, **parts}

    @torch.no_grad()
    def _teach(self, images: torch.Tensor) -> tuple[torch.Tensor, list[Tokens]]:
        """The teacher's logits, and its tokens where they take part."""
        images = self.teacher.normalize_input(images, self.student_mean, self.student_std)
        if not self.tokens_weight:
            return self.teacher(images), []
        model = self.teacher.model
        features, tokens = self._forward_tokens(model, images, self.teacher_indices, self.prefix)
        return model.forward_head(features), tokens

    def _compare_logits(self, logits: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        if self.distill_type == "hard":
            return F.cross_entropy(logits, taught.argmax(dim=1))
        ours, theirs = (F.log_softmax(each / self.temperature, dim=1) for each in (logits, taught))
        return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * self.temperature**2

    # What timm's loop asks of a task --------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> "DistillationTask":
        """Set the mode; the teacher always evaluates."""
        super().train(mode)
        self.teacher.eval()
        return self

    def prepare_distributed(self, device_ids: list[int] | None = None, **kwargs: Any) -> "DistillationTask":
        """Share what is trained between processes; each has the teacher to itself."""
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **kwargs)
        return self

    def compile(self, backend: str = "inductor", mode: str | None = None, **kwargs: Any) -> nn.Module:
        """Compile the student, as the task and as validation call it, and the teacher."""
        student = self.get_eval_model()
        options = {"backend": backend, "mode": mode, **kwargs}
        self.trainable_module = torch.compile(self.trainable_module, **options)
        if self.tokens_weight:
            self.eval_model = torch.compile(student, **options)
            self._forward_tokens = torch.compile(forward_tokens, **options)
        else:
            self.eval_model = self.trainable_module
            self.teacher.compile(**options)
        return self.eval_model

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The student as validation calls it, without the linear maps that only the task needs."""
        found = super().get_eval_model(module=module, ema=ema)
        bare = None if found is None else unwrap_model(found)
        return bare.student if isinstance(bare, TokenStudent) else found

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """Parameters whose gradients are clipped; without the last layer's where adaptive clipping asks for that."""
        trained = unwrap_model(self.trainable_module)
        student = trained.student if isinstance(trained, TokenStudent) else trained
        rest = list(trained.projection.parameters()) if isinstance(trained, TokenStudent) else []
        return list(student.parameters())[: -2 if exclude_head else None] + rest

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """The trained linear maps, which are in no checkpoint of the student."""
        trained = unwrap_model(module or self.trainable_module)
        has_maps = isinstance(trained, TokenStudent) and not ema and trained.projection.state_dict()
        return {"projection": trained.projection.state_dict()} if has_maps else {}

    def load_task_state(
        self, state: dict[str, Any] | None, strict: bool = True, module: nn.Module | None = None, ema: bool = False
    ) -> None:
        """Load what :meth:`get_task_state` gave; a task that compares no tokens has no use for it."""
        trained = unwrap_model(module or self.trainable_module)
        if state and not ema and isinstance(trained, TokenStudent):
            trained.projection.load_state_dict(state["projection"], strict=strict)


def _check_pair(student: nn.Module, teacher: nn.Module) -> None:
    if teacher.num_classes != student.num_classes:
        raise ValueError(
            f"the teacher {type(teacher).__name__} has {teacher.num_classes} classes and the student "
            f"{student.num_classes}; they must have the same"
        )
    channels = [getattr(model, "in_chans", 3) for model in (student, teacher)]
    if channels[0] not in (1, channels[1]):
        raise ValueError(f"the teacher takes images of {channels[1]} channels and the student of {channels[0]}")
    if getattr(student, "patch_head", None) is not None:
        raise ValueError("patch_head is True with a teacher; a net has a patch head or distillation")


def _distill_weight(distill_type: str, task_loss_weight: float, given: float | None) -> float:
    """The given weight of the teacher's logits, or what the labels leave of 1."""
    if distill_type == "none":
        return 0.0
    if given is None and task_loss_weight > 1:
        raise ValueError(f"task_loss_weight is {task_loss_weight}; above 1, distill_loss_weight must be given too")
    return 1 - task_loss_weight if given is None else given


def _check_numbers(task: DistillationTask) -> None:
    for name in ("task_loss_weight", "distill_loss_weight", "tokens_weight"):
        value = getattr(task, name)
        if not value >= 0:  # this way round, it refuses NaN as well
            raise ValueError(f"{name} is {value}; it must be a number from 0 up")
    if not task.temperature > 0:
        raise ValueError(f"temperature is {task.temperature}; it must be above 0")


def _per_channel(values: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """(1, C, 1, 1) for the model's channels; their mean where there are others, as timm's loader does for grey ones."""
    values, channels = values.flatten(), getattr(model, "in_chans", 3)
    return (values if len(values) == channels else values.mean().expand(channels)).view(1, -1, 1, 1).clone()
