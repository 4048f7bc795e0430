"""Fine-tuning a part of a model: what is frozen learns nothing, and computes as in evaluation."""

from timm.models import group_parameters
from torch import nn

BESIDE_BLOCKS = ("patch_drop", "pos_drop")  # timm's names of dropout that belongs to the backbone and has no parameters


def freeze(model: nn.Module, parts: list[str]) -> None:
    """Stops gradients of parts of a model.

    Args:
        model: A timm model.
        parts: `stem` (what comes before the first block), `backbone` (all but the classifier), or names of modules
            or parameters.

    Raises:
        ValueError: A part is not there, or nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    for part in parts:
        names = _names_in(part, model)
        if not names:
            raise ValueError(f"--freeze is {part!r}; allowed is stem, backbone or the name of a module")
        for name in names:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError(f"--freeze is {' '.join(parts)}; it leaves nothing to train")


def hold_still(model: nn.Module) -> None:
    """Puts what is frozen into evaluation mode: no dropout or stochastic depth there, norms with stored statistics.

    The model itself stays in training mode, in which some give the logits of two heads.
    """
    for module in model.modules():
        flags = [parameter.requires_grad for parameter in module.parameters()]
        if flags and not any(flags):
            module.eval()
    parameters = dict(model.named_parameters())
    if not any(parameters[name].requires_grad for name in _names_in("backbone", model)):
        for name in BESIDE_BLOCKS:
            if hasattr(model, name):
                getattr(model, name).eval()


def _names_in(part: str, model: nn.Module) -> list[str]:
    """Names of the parameters in a part of a model."""
    if part == "stem":
        if not hasattr(model, "group_matcher"):
            return []
        layers = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
        return [name for name, layer in layers.items() if layer == 0]
    if part == "backbone":
        found = model.get_classifier()
        classifiers = [*(found if isinstance(found, tuple) else (found,)), getattr(model, "patch_head", None)]
        own = {id(parameter) for classifier in classifiers if classifier for parameter in classifier.parameters()}
        return [name for name, parameter in model.named_parameters() if id(parameter) not in own]
    return [name for name, _ in model.named_parameters() if name == part or name.startswith(f"{part}.")]
