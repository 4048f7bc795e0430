"""Parameters of a detector with layer-wise learning rates, for LazyConfig's optimizers and for yacs trainers."""

from typing import Any

from torch import nn

from ._detectron2 import get_default_optimizer_params
from .layer_decay import lr_factor_func
from .weights import find_trunk


def layer_decay_params(model: nn.Module, base_lr: float, layer_decay: float, **kwargs: Any) -> list[dict[str, Any]]:
    """``get_default_optimizer_params`` with learning rates that fall towards the image, by the trunk's own layers.

    It takes that function's place in ``optimizer.params``, where a factor by name alone cannot know the model. What
    the timm model says should not decay (positions, tokens) does not.

    Args:
        model: A detector with one trunk.
        base_lr: Learning rate of heads and pyramid.
        layer_decay: Factor from one layer of the trunk to the one before it.
        kwargs: Further arguments of ``get_default_optimizer_params``; its ``overrides`` win.

    Raises:
        ValueError: as :func:`layer_decay_factors`.
    """
    factor = lr_factor_func(model, layer_decay)
    trunk = find_trunk(model)[1].model
    names = trunk.no_weight_decay() if hasattr(trunk, "no_weight_decay") else ()
    overrides = {name.rpartition(".")[2]: {"weight_decay": 0.0} for name in names}  # detectron2 knows last names only
    overrides.update(kwargs.pop("overrides", None) or {})
    return get_default_optimizer_params(model, base_lr=base_lr, lr_factor_func=factor, overrides=overrides, **kwargs)
