"""The two scores of As-ViT as the paper's procedure computes them, by loops: what the fast forms are held against."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call

from .distortion import circle
from .ntk import measured_weights


def naive_curve_length(
    feature: nn.Module, frame: torch.Tensor, points: int, chunk: int = 6, channels: int | None = None
) -> float:
    """:func:`~.distortion.curve_length` by reverse mode: one backward pass per feature channel and chunk of angles.

    Args:
        feature: Images (B, C, H, W) to features (B, channels).
        frame: Two orthonormal images, (2, C, H, W).
        points: Angles from 0 to 2 pi, both ends included.
        chunk: Angles in one pass.
        channels: Only the first so many channels, to time a part of the loop; None for all.
    """
    angles = torch.linspace(0, 2 * math.pi, points, dtype=frame.dtype, device=frame.device)
    total = 0.0
    for part in angles.split(chunk):
        part = part.requires_grad_()
        output = feature(circle(frame, part))
        derivative = [torch.autograd.grad(channel.sum(), part, retain_graph=True)[0] for channel in output.T[:channels]]
        total += torch.stack(derivative).norm(dim=0).sum().item() if derivative else 0.0
    return total


def naive_tangent_kernel(feature: nn.Module, images: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
    """:func:`~.ntk.tangent_kernel` by one backward pass through the whole batch per image.

    Args:
        feature: Images (B, C, H, W) to features (B, channels).
        images: (B, C, H, W).
        rows: Only these images' gradients, to time a part of the loop; None for all.

    Returns:
        Theta, (rows, rows) in float64.
    """
    weights = {name: weight.requires_grad_() for name, weight in measured_weights(feature).items()}
    output = functional_call(feature, weights, (images,))
    gradients = [torch.zeros(0, sum(weight.numel() for weight in weights.values()), device=images.device)]
    for row in range(len(images)) if rows is None else rows:
        found = torch.autograd.grad(
            output[row].sum(), list(weights.values()), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        gradients.append(torch.cat([gradient.flatten() for gradient in found]).unsqueeze(0))
    stacked = torch.cat(gradients).double()
    return stacked @ stacked.T
