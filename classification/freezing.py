"""Fine-tuning a part of a model: which parameters the names of parts stand for."""

from torch import nn

from asvit_plugin.backbones.freezing import hold_still, stages_of

__all__ = ["freeze", "hold_still"]


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


def _names_in(part: str, model: nn.Module) -> list[str]:
    """Names of the parameters in a part of a model."""
    if part == "stem":
        if not hasattr(model, "group_matcher"):
            return []
        return [name for name, stage in stages_of(model).items() if stage == 0]
    if part == "backbone":
        found = model.get_classifier()
        classifiers = [*(found if isinstance(found, tuple) else (found,)), getattr(model, "patch_head", None)]
        own = {id(parameter) for classifier in classifiers if classifier for parameter in classifier.parameters()}
        return [name for name, parameter in model.named_parameters() if id(parameter) not in own]
    return [name for name, _ in model.named_parameters() if name == part or name.startswith(f"{part}.")]
