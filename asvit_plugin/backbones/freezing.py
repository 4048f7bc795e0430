"""Parts of a model that learn nothing and compute as in evaluation, also while the rest of it trains."""

from timm.models import group_parameters
from torch import nn

BEFORE_CLASSIFIER = ("head_drop",)  # timm's name of dropout that comes behind the backbone and has no parameters


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
    whole = isinstance(frozen_stages, int) and not isinstance(frozen_stages, bool)
    if not whole or not -1 <= frozen_stages <= last:
        raise ValueError(
            f"frozen_stages is {frozen_stages!r}; it must be from -1 (none) and 0 (the stem) to {last} (everything)"
        )


def freeze(model: nn.Module, frozen_stages: int) -> None:
    """Stop gradients in the stem and the first stages, and hold still what runs there."""
    for name, stage in stages_of(model).items():
        if stage <= frozen_stages:
            model.get_parameter(name).requires_grad_(False)
    hold_still(model)


def hold_still(model: nn.Module) -> None:
    """Put what is frozen into evaluation mode: norms with stored statistics, no dropout, no stochastic depth.

    What has no parameters, such as the dropout behind the positions, belongs to what comes before it: it is frozen if
    all parameters up to there are. Dropout before the classifier is not the backbone's. A model of which something
    learns stays in training mode itself, in which some give the logits of two heads.
    """
    for module in model.modules():
        if _is_frozen(module) and next(module.parameters(), None) is not None:
            module.eval()
    if any(parameter.requires_grad for parameter in model.parameters(recurse=False)):
        return  # such as positions, which come before any dropout
    begun = False
    for name, module in model.named_children():
        if not _is_frozen(module):
            return
        begun = begun or next(module.parameters(), None) is not None
        if begun and name not in BEFORE_CLASSIFIER:
            module.eval()


def _is_frozen(module: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in module.parameters())
