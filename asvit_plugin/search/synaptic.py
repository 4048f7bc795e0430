"""Synaptic scores, which need no images: SynFlow and, for transformers, DSS.

Tanaka, Kunin, Yamins, Ganguli: "Pruning neural networks without any data by iteratively conserving synaptic flow",
NeurIPS 2020 (arXiv 2006.05467). Zhou, Sheng, Zheng, Li, Sun, Tian, Chen, Ji: "Training-free Transformer Architecture
Search", CVPR 2022 (arXiv 2203.12217).
"""

import math
import re
from collections.abc import Callable, Iterator

import torch
from torch import nn

from .features import check_sums, image_shape, measuring, model_name
from .redrawing import draws
from .score import Score

ATTENTION_MATRIX = re.compile(r"(.*\.)?\w*attn\w*\.(qkv|q|k|v|kv|q_proj|k_proj|v_proj|proj)")

# Name of a layer, its weight, and the loss's gradient by it.
Gradients = list[tuple[str, torch.Tensor, torch.Tensor]]


def synflow(
    model: nn.Module,
    img_size: int | tuple[int, int] | None = None,
    repeats: int = 5,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Score:
    """Natural logarithm of SynFlow; more is better.

    Parameters have their absolute values, the image is all ones, and the loss is the sum of the logits. SynFlow is
    the sum of |weight * its gradient| over all linear and convolution weights. Batch norms are the identity (eval
    mode, as built); layer norms stay: without them attention overflows even float64 in nets of ten blocks. In
    float64, and the logarithm, because the sum grows exponentially with depth where nothing is normalised.

    Args:
        model: Any timm model; not changed.
        img_size: Side of the image in pixels or (height, width); None for the model's own.
        repeats: Nets with new weights.
        seed: Of the weights.
        device: Where to compute; None for the model's own.

    Raises:
        ValueError: for a model that cannot be run so, or whose outputs sum to 0 whatever the weights (those of a layer
            norm, without a head), or an argument outside what is allowed.
    """
    return _score("synflow", lambda gradients: sum(map(_saliency, gradients)), model, img_size, repeats, seed, device)


def dss(
    model: nn.Module,
    img_size: int | tuple[int, int] | None = None,
    repeats: int = 5,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Score:
    """Natural logarithm of TF-TAS's DSS (synaptic diversity and saliency); more is better.

    As :func:`synflow`, but of a matrix in an attention (queries, keys, values, projection) it is the nuclear norm of
    the weight times the nuclear norm of its gradient that is added.

    Args:
        model: Any timm model with attention; not changed.
        img_size: Side of the image in pixels or (height, width); None for the model's own.
        repeats: Nets with new weights.
        seed: Of the weights.
        device: Where to compute; None for the model's own.

    Raises:
        ValueError: for a model without attention, and as :func:`synflow`.
    """
    if not any(ATTENTION_MATRIX.fullmatch(name) for name, _ in _weighted_layers(model)):
        raise ValueError(f"{model_name(model)} has no attention with linear layers named qkv or proj; dss measures it")
    return _score("dss", lambda gradients: sum(map(_diversity, gradients)), model, img_size, repeats, seed, device)


def _score(
    proxy: str,
    total: Callable[[Gradients], float],
    model: nn.Module,
    img_size: int | tuple[int, int] | None,
    repeats: int,
    seed: int,
    device: torch.device | str | None,
) -> Score:
    shape = image_shape(model, img_size)
    values = []
    with measuring(proxy, model, shape):
        for draw in draws(model, repeats, seed, device):
            values.append(_logarithm(total(linear_gradients(draw.model, shape))))
    return Score(tuple(values))


def linear_gradients(model: nn.Module, shape: tuple[int, int, int]) -> Gradients:
    """Weights and gradients of a net made positive, for an image of ones; the model is changed."""
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    layers = dict(_weighted_layers(model))
    weights = [layer.weight.requires_grad_() for layer in layers.values()]
    outputs = model(torch.ones(1, *shape, dtype=torch.float64, device=weights[0].device))
    check_sums(model, outputs, "the outputs", "give it a head (num_classes of at least 1)")
    gradients = torch.autograd.grad(outputs.sum(), weights, allow_unused=True)
    return [
        (name, w.detach(), gradient) for name, w, gradient in zip(layers, weights, gradients) if gradient is not None
    ]


def _weighted_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    return ((name, module) for name, module in model.named_modules() if isinstance(module, kinds))


def _saliency(gradient: tuple[str, torch.Tensor, torch.Tensor]) -> float:
    _, weight, by_weight = gradient
    return (weight * by_weight).abs().sum().item()


def _diversity(gradient: tuple[str, torch.Tensor, torch.Tensor]) -> float:
    name, weight, by_weight = gradient
    if not ATTENTION_MATRIX.fullmatch(name) or not by_weight.isfinite().all():
        return _saliency(gradient)
    norms = [torch.linalg.matrix_norm(matrix, ord="nuc").item() for matrix in (weight, by_weight)]
    return norms[0] * norms[1]


def _logarithm(total: float) -> float:
    return math.log(total) if 0.0 < total < math.inf else math.nan
