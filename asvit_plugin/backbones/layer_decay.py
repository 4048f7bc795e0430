"""Layer-wise learning rates of a detector, from the groups that the trunk's own ``group_matcher`` gives."""

from collections.abc import Callable, Iterator

from timm.models import group_parameters
from torch import nn

from .weights import find_trunk

_BEHIND = "detector"


class _AndBehind:
    """A trunk's parameters, and behind them one that stands for all that comes behind the trunk."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter | None]]:
        yield from self.model.named_parameters()
        yield _BEHIND, None


def layer_decay_factors(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """Factor of the learning rate of every parameter of a detector, by full name.

    Of a trunk with n layers (the stem is one), layer i from 0 has ``layer_decay ** (n - i)``; norms of maps, pyramid
    and heads have 1.

    Args:
        model: A detector or backbone with one trunk.
        layer_decay: Factor from one layer to the one before it, above 0 and at most 1.

    Raises:
        ValueError: for another factor, or a trunk that does not group its parameters.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay is {layer_decay!r}; it must be above 0 and at most 1")
    path, trunk = find_trunk(model)
    if not hasattr(trunk.model, "group_matcher"):
        raise ValueError(f"layer_decay is {layer_decay}; {trunk.recipe.name} does not say what its layers are")
    layers = group_parameters(_AndBehind(trunk.model), trunk.model.group_matcher(coarse=False), reverse=True)
    prefix = f"{path}.model." if path else "model."
    depth = {f"{prefix}{name}": layers[_BEHIND] - layer for name, layer in layers.items()}
    return {name: layer_decay ** depth.get(name, 0) for name, _ in model.named_parameters()}


def lr_factor_func(model: nn.Module, layer_decay: float) -> Callable[[str], float]:
    """:func:`layer_decay_factors` as what detectron2's ``get_default_optimizer_params`` takes under this name.

    Raises:
        ValueError: as :func:`layer_decay_factors`; from the function, for a name that is no parameter of the model.
    """
    factors = layer_decay_factors(model, layer_decay)

    def factor(name: str) -> float:
        name = name.removeprefix(".")  # detectron2 writes ".name" for the model's own
        if name not in factors:
            raise ValueError(f"{name!r} is no parameter of the {type(model).__name__} that the factors were made for")
        return factors[name]

    return factor
