"""Weights in timm's layout for the trunk inside a detector."""

from torch import nn

from .trunk import FeatureTrunk


def find_trunk(model: nn.Module) -> tuple[str, FeatureTrunk]:
    """Path of the trunk in a detector, and the trunk; the path is empty where the model is the trunk.

    Raises:
        ValueError: if there is none, or more than one.
    """
    found = [(path, module) for path, module in model.named_modules() if isinstance(module, FeatureTrunk)]
    if len(found) != 1:
        raise ValueError(f"{type(model).__name__} has {len(found)} timm trunks; it must have one")
    return found[0]


def load_trunk_weights(model: nn.Module, weights: str) -> None:
    """Read weights in timm's layout, or any that the timm model reads, into the trunk of a detector.

    They are brought to the model's names, image size and channels as at construction. Every tensor of the trunk comes
    from them, and they hold nothing that the whole timm model has no place for.

    Args:
        model: A detector, a pyramid or a backbone.
        weights: A file, a folder or ``hf-hub:ID``.

    Raises:
        ValueError: if they cannot be read or do not fit, or the model has not one trunk.
    """
    find_trunk(model)[1].load_weights(weights)
