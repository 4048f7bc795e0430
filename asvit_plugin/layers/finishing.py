"""The end of the softmax branch: what it still does, and dropping it for good."""

from dataclasses import dataclass

import torch
from timm.utils import unwrap_model
from torch import nn

from .._timm_private import update_model_args
from .castling import require_castled, watch_on_images
from .linear_angular import linear_angular
from .linear_angular_attention import LinearAngularAttention


@dataclass(frozen=True)
class MaskStatistics:
    """What the softmax branch of one block still does on given images.

    Attributes:
        density: Share of the softmax weights above the threshold, 0 to 1.
        share: Length of the branch's output over that of the sum it is added to, mean over tokens and heads.
    """

    density: float
    share: float


def finish(model: nn.Module, images: torch.Tensor | None = None, tolerance: float = 1e-3) -> nn.Module:
    """Drop the softmax branch of all castled blocks for good.

    Args:
        model: A model with castled blocks at blend 1; DDP and compile wrappers are looked through.
        images: Without them the threshold must have reached 1, so that the branch is empty for any image. With
            images (B, C, H, W) the branch is measured on them instead, and may be dropped before.
        tolerance: Largest density, and largest share, of the branch on ``images``; see :class:`MaskStatistics`.

    Returns:
        The model.

    Raises:
        ValueError: naming the block whose branch is still in use, with the numbers.
    """
    model = unwrap_model(model)
    castled = require_castled(model)
    for name, attention in castled.items():
        if attention.blend < 1:
            raise ValueError(f"blend is {attention.blend:g} in {name}; the softmax branch can go when it is 1")
        if images is None and attention.threshold < 1:
            raise ValueError(
                f"threshold is {attention.threshold:g} in {name}; the softmax branch can go when it is 1, or when "
                "images are given on which it is seen to be empty"
            )
    if images is not None:
        _require_empty(mask_statistics(model, images), tolerance)
    for attention in castled.values():
        attention.finish()
    update_model_args(model, blend=1.0, threshold=1.0, finished=True)
    return model


def _require_empty(statistics: dict[str, MaskStatistics], tolerance: float) -> None:
    for name, each in statistics.items():
        if not (each.density <= tolerance and each.share <= tolerance):  # so that NaN is refused too
            raise ValueError(
                f"the softmax branch is in use: in {name}, {each.density:.2%} of its weights are above the threshold "
                f"and make {each.share:.2%} of the output; tolerance is {tolerance:.2%}"
            )


@torch.no_grad()
def mask_statistics(model: nn.Module, images: torch.Tensor) -> dict[str, MaskStatistics]:
    """What the softmax branch of every castled block still does on ``images`` (B, C, H, W), in eval mode.

    Raises:
        ValueError: for images that are no float tensor of that shape, hold none, or do not fit the model.
    """
    found: dict[str, MaskStatistics] = {}

    def measure(name: str, attention: LinearAngularAttention, x: torch.Tensor) -> None:
        q, k, v = attention.heads(x)
        weights = ((q * attention.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        kept = weights > attention.threshold
        branch = (weights * kept) @ v
        y = branch + linear_angular(q, k, v, attention.half_term, attention.reference_length, attention.eps)
        length = y.norm(dim=-1).clamp_min(attention.eps)
        found[name] = MaskStatistics(kept.float().mean().item(), (branch.norm(dim=-1) / length).mean().item())

    watch_on_images(model, images, measure)
    return found
