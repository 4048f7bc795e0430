"""Expected length distortion: how long a net makes a circle.

Chen, Huang, Du, Song, Wang, Zhou: "Auto-scaling Vision Transformers without Training", ICLR 2022 (arXiv 2202.11921).
"""

import math

import torch
from torch import nn

from .features import PooledFeature, image_shape, measuring
from .forward_attention import ForwardAttention
from .norms import remove_norms
from .redrawing import draws
from .score import Score


def length_distortion(
    model: nn.Module,
    img_size: int | tuple[int, int] | None = None,
    points: int = 10,
    repeats: int = 5,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Score:
    """As-ViT's expected length distortion; more is better.

    A circle of unit radius in the space of images is sent through the net, all of whose norms are the identity, to
    the mean over the positions of its last stage (no final norm, no head). The value is the sum of the lengths of
    the curve's derivative at ``points`` angles from 0 to 2 pi, both ends included, as the authors compute it: a sum,
    without the step of the angle. One forward-mode pass gives it.

    Args:
        model: Any timm model with ``forward_intermediates``; not changed.
        img_size: Side of the images in pixels or (height, width); None for the model's own.
        points: Angles, at least 2.
        repeats: Nets with new weights, each with a circle of its own.
        seed: Of weights and circles.
        device: Where to compute; None for the model's own.

    Raises:
        ValueError: for a model that the definition does not fit, or an argument outside what is allowed.
    """
    if points < 2:
        raise ValueError(f"points is {points}; a curve needs at least 2")
    shape = image_shape(model, img_size)
    values = []
    with measuring("length_distortion", model, shape):
        for draw in draws(model, repeats, seed, device):
            feature = PooledFeature(remove_norms(draw.model))
            frame = circle_frame(shape, draw.generator).to(next(feature.parameters()).device)
            values.append(curve_length(feature, frame, points))
    return Score(tuple(values))


def circle_frame(shape: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
    """Two orthonormal images (2, C, H, W) that span a circle: left singular vectors of a normal (C * H * W, 2)."""
    normal = torch.randn(math.prod(shape), 2, generator=generator)
    return torch.linalg.svd(normal, full_matrices=False).U.T.reshape(2, *shape)


def circle(frame: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """The circle's images (angles, C, H, W) at some angles, each of length 1 as a whole."""
    return torch.einsum("dn,dchw->nchw", torch.stack((angles.cos(), angles.sin())), frame)


@torch.no_grad()
def curve_length(feature: nn.Module, frame: torch.Tensor, points: int) -> float:
    """Sum over the angles of the length of d feature / d angle.

    Args:
        feature: Images (B, C, H, W) to features (B, channels).
        frame: From :func:`circle_frame`.
        points: Angles from 0 to 2 pi, both ends included.
    """
    angles = torch.linspace(0, 2 * math.pi, points, dtype=frame.dtype, device=frame.device)
    images, tangents = circle(frame, angles), circle(frame, angles + math.pi / 2)
    with ForwardAttention():
        _, derivative = torch.func.jvp(feature, (images,), (tangents,))
    return derivative.norm(dim=1).sum().item()
