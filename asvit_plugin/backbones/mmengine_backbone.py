"""A timm model as a backbone of OpenMMLab's libraries: ``custom_imports`` of this module registers ``TimmTrunk``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .trunk import FeatureTrunk

try:
    from mmengine.model import BaseModule
    from mmengine.registry import MODELS
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "asvit_plugin.backbones.mmengine_backbone needs mmengine and OpenCV: pip install 'asvit-plugin[openmmlab]'"
    ) from error


@MODELS.register_module()
class TimmTrunk(FeatureTrunk, BaseModule):
    """A timm model's maps as a tuple, finest first; ``channels`` and ``strides`` say what a neck needs.

    mmengine's runner initialises the weights of every module in a model anew, also loaded ones. Not here: the trunk is
    initialised, or loaded, when it is built, and an ``init_cfg`` of the model around it leaves it alone.

    Args:
        init_cfg: Must be None; weights are named by ``pretrained`` or ``weights``.
        kwargs: Arguments of :class:`FeatureTrunk`.

    Raises:
        ValueError: for an ``init_cfg``, and as :class:`FeatureTrunk`.
    """

    def __init__(self, name: str, init_cfg: None = None, **kwargs: Any) -> None:
        if init_cfg is not None:
            raise ValueError(f"init_cfg is {init_cfg!r}; it must be None here: name weights by pretrained or weights")
        super().__init__(name, **kwargs)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Images (B, C, H, W) to maps (B, C_i, ceil(H / stride_i), ceil(W / stride_i)), finest first."""
        return tuple(self.maps(x))

    def init_weights(self) -> None:
        """Nothing: the weights are there."""
        self._is_init = True

    def apply(self, fn: Callable[[nn.Module], None]) -> "TimmTrunk":
        """As usual, except for the initialisations of mmengine, which reach all modules below an ``init_cfg``."""
        return self if getattr(fn, "__module__", "") == "mmengine.model.weight_init" else super().apply(fn)
