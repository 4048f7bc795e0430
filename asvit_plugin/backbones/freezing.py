"""Stages of a trunk that learn nothing and compute as in evaluation, also while the detector trains."""

from timm.models import group_parameters
from torch import nn


def stages_of(model: nn.Module) -> dict[str, int]:
    """The stage of every parameter by timm's groups: 0 for the stem, then stages, or a plain ViT's blocks, from 1.

    Raises:
        ValueError: if the model does not group its parameters.
    """
    if not hasattr(model, "group_matcher"):
        raise ValueError(f"frozen_stages must be -1: {type(model).__name__} does not say what its stages are")
    return group_parameters(model, model.group_matcher(coarse=True), reverse=True)


def check_frozen_stages(model: nn.Module, frozen_stages: int) -> None:
    """Refuse a number of frozen stages that the model has not."""
    last = max(stages_of(model).values())
    if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= last:
        raise ValueError(
            f"frozen_stages is {frozen_stages!r}; it must be from -1 (none) and 0 (the stem) to {last} (everything)"
        )


def freeze(model: nn.Module, frozen_stages: int) -> None:
    """Stop gradients in the stem and the first stages, and put what runs there into evaluation mode.

    That holds for BatchNorm (stored statistics), dropout and stochastic depth. Parts without parameters that come
    before the first part that learns, such as the dropout after the positions, belong to the stem.
    """
    frozen = {name for name, stage in stages_of(model).items() if stage <= frozen_stages}
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    for path, module in model.named_modules():
        names = [f"{path}.{name}" if path else name for name, _ in module.named_parameters()]
        if names and frozen.issuperset(names):
            module.eval()
    for path, module in model.named_children():
        names = [f"{path}.{name}" for name, _ in module.named_parameters()]
        if not frozen.issuperset(names):
            return
        module.eval()
