"""Condition number of the neural tangent kernel: how evenly a net can learn a batch of images.

Chen, Huang, Du, Song, Wang, Zhou: "Auto-scaling Vision Transformers without Training", ICLR 2022 (arXiv 2202.11921).
"""

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from .batched_attention import BatchedAttention
from .features import PooledFeature, check_sums, image_shape, measuring
from .images import Images, check_images, draw_images
from .redrawing import draws
from .score import Score

GRADIENT_NUMBERS = 2**28  # of all images together that are held at once: 1 GiB


def ntk_condition(
    model: nn.Module,
    img_size: int | tuple[int, int] | None = None,
    images: Images = 16,
    repeats: int = 5,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Score:
    """Condition number of a net's neural tangent kernel over some images; less is better.

    Each image's gradient of the summed feature (mean over the positions of the last stage, no final norm, no head)
    by all parameters named ``weight`` is one row of G; Theta = G G^T, and the value its largest eigenvalue over its
    smallest. A repeat whose smallest eigenvalue is not above rounding is NaN.

    Batch norms use the images' statistics as constants: an image would have no gradient of its own otherwise.

    Args:
        model: Any timm model with ``forward_intermediates``; not changed.
        img_size: Side of the images in pixels or (height, width); None for the model's own.
        images: How many of Gaussian noise (at least 2), a tensor (count, C, H, W), "digits", or a folder.
        repeats: Nets with new weights, each with images of its own (except a tensor's).
        seed: Of weights and images.
        device: Where to compute; None for the model's own.

    Raises:
        ValueError: for a model that the definition does not fit, or an argument outside what is allowed.
        ModuleNotFoundError: for "digits" without scikit-learn.
    """
    shape = image_shape(model, img_size)
    check_images(images, shape, at_least=2)
    values = []
    with measuring("ntk_condition", model, shape):
        for draw in draws(model, repeats, seed, device):
            feature = PooledFeature(draw.model)
            batch = draw_images(images, shape, model, draw.generator).to(next(feature.parameters()))
            freeze_batch_norms(feature, batch)
            check_sums(draw.model, feature(batch[:2]), "the features before the head", "ntk_condition cannot score it")
            values.append(condition(tangent_kernel(feature, batch)))
    return Score(tuple(values))


def measured_weights(feature: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters whose gradients count: those named ``weight``, not biases, embeddings and scales.

    The final norm's and the head's are among them by name, and drop out because their gradients are zero.
    """
    return {name: parameter.detach() for name, parameter in feature.named_parameters() if "weight" in name}


def tangent_kernel(feature: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Theta = G G^T of a batch, (images, images) in float64; the images' gradients are computed together.

    Where they do not fit into memory together, parameters take turns.

    Args:
        feature: Images (B, C, H, W) to features (B, channels), each image by itself.
        images: (B, C, H, W).
    """
    weights = measured_weights(feature)

    def summed(chosen: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        return functional_call(feature, chosen, (image.unsqueeze(0),)).sum()

    theta = torch.zeros(len(images), len(images), dtype=torch.float64, device=images.device)
    for names in _groups(weights, GRADIENT_NUMBERS // len(images)):
        with BatchedAttention():
            gradients = vmap(grad(summed), in_dims=(None, 0))({name: weights[name] for name in names}, images)
        for gradient in gradients.values():
            rows = gradient.flatten(1)
            theta += rows @ rows.T
    return theta


def _groups(weights: dict[str, torch.Tensor], limit: int) -> Iterator[list[str]]:
    """Names in order, as many at a time as have at most ``limit`` numbers together, but at least one."""
    group: list[str] = []
    size = 0
    for name, weight in weights.items():
        if group and size + weight.numel() > limit:
            yield group
            group, size = [], 0
        group.append(name)
        size += weight.numel()
    if group:
        yield group


def condition(theta: torch.Tensor) -> float:
    """Largest over smallest eigenvalue of a kernel; NaN where it is not finite or the smallest is within rounding."""
    if not theta.isfinite().all():
        return math.nan
    try:
        eigenvalues = torch.linalg.eigvalsh(theta)
    except torch.linalg.LinAlgError:  # it did not converge
        return math.nan
    largest, smallest = eigenvalues[-1].item(), eigenvalues[0].item()
    rounding = len(theta) * torch.finfo(torch.float32).eps * largest  # gradients are float32
    return largest / smallest if smallest > max(rounding, 0.0) else math.nan


@torch.no_grad()
def freeze_batch_norms(model: nn.Module, images: torch.Tensor) -> None:
    """Make the statistics of a batch constants of a model's batch norms, in place."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = 1.0
    model(images)
    for norm in norms:
        norm.eval()
