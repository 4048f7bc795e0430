"""Softmax attention swapped for linear-angular attention in any model, and the state of the swapped blocks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.utils import unwrap_model
from torch import nn

from .._timm_private import update_model_args
from ..modes import evaluating
from .castling_targets import called, choose_blocks
from .linear_angular_attention import LinearAngularAttention


def castle_blocks(model: nn.Module, blocks: str | Sequence[str | int], **options: Any) -> list[str]:
    """Swap the attention of blocks, in place; the weights are the same parameters as before.

    Args:
        model: Any model with timm's ``Attention``.
        blocks: "all", or names of the modules that hold the attention ("blocks.3"), or their numbers in order.
        options: ``mode`` and other keyword arguments of :class:`LinearAngularAttention`.

    Returns:
        The names of the blocks.

    Raises:
        ValueError: if the model has none, or a block's attention has no linear form, which is then named.
    """
    if any(castled_attention(model)):
        raise ValueError(f"the model is castled already, in {', '.join(castled_attention(model))}")
    names = choose_blocks(model, blocks)
    castled = {name: _to_linear_angular(name, model.get_submodule(name).attn, **options) for name in names}
    for name, attention in castled.items():  # all or none
        model.get_submodule(name).attn = attention
    return names


def _to_linear_angular(name: str, attention: Attention, **options: Any) -> LinearAngularAttention:
    """The same projections, norms and dropouts in a block that can also be linear."""
    if not isinstance(attention.qkv, nn.Linear):
        kind = type(attention.qkv)
        said = f"{kind.__module__}.Linear" if kind.__name__ == "Linear" else kind.__name__
        raise ValueError(f"{name}.attn.qkv is a {said}; castling needs an nn.Linear")
    weight = attention.qkv.weight
    castled = LinearAngularAttention(
        attention.qkv.in_features,
        attention.num_heads,
        attn_head_dim=attention.head_dim,
        device=weight.device,
        dtype=weight.dtype if weight.is_floating_point() else None,
        **options,
    )
    for name, module in attention.named_children():
        setattr(castled, name, module)
    castled.gate = attention.gate
    castled.scale = attention.scale
    castled.fused_attn = attention.fused_attn
    return castled.train(attention.training)


def castled_attention(model: nn.Module) -> dict[str, LinearAngularAttention]:
    """Attention that has been swapped, under the name of its block."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, LinearAngularAttention)}
    return {name.removesuffix(".attn"): module for name, module in found.items()}


def switch_attention(model: nn.Module, blend: float, threshold: float) -> None:
    """Set the state of all castled blocks; what the model is saved with says so too.

    Args:
        model: A model with castled blocks; DDP and compile wrappers are looked through.
        blend: 0 (softmax attention) to 1 (linear-angular attention).
        threshold: 0 to 1, of the softmax weights that still take part in linear-angular attention.

    Raises:
        ValueError: if nothing is castled, for values out of range, and for a finished model.
    """
    model = unwrap_model(model)
    switch_modules(model, require_castled(model).values(), blend, threshold)


def switch_modules(
    model: nn.Module, attention: Iterable[LinearAngularAttention], blend: float, threshold: float
) -> None:
    """:func:`switch_attention` for those who know the model's castled attention, and need no search of it."""
    for each in attention:
        each.switch(blend, threshold)
    update_model_args(model, blend=float(blend), threshold=float(threshold))  # NumPy's cannot be saved


@torch.no_grad()
def calibrate_gains(model: nn.Module, images: torch.Tensor) -> None:
    """Set each head's output gain to the mean length of its softmax attention's output on ``images`` (B, C, H, W).

    The linear-angular output of a head has length one; so it takes the scale that the rest of a trained model expects.
    The model runs in eval mode, and must be in softmax state.

    Raises:
        ValueError: as :func:`watch_on_images`, and for images that give a length that is not finite; no gain is set.
    """
    gains: dict[LinearAngularAttention, torch.Tensor] = {}

    def measure(name: str, attention: LinearAngularAttention, x: torch.Tensor) -> None:
        q, k, v = attention.heads(x)
        gains[attention] = F.scaled_dot_product_attention(q, k, v).norm(dim=-1).mean(dim=(0, 2))
        if not gains[attention].isfinite().all():
            raise ValueError(f"images give {name} outputs that are not finite; gains cannot be set on them")

    watch_on_images(model, images, measure)
    for attention, gain in gains.items():
        attention.gain.copy_(gain)


@torch.no_grad()
def watch_on_images(
    model: nn.Module, images: torch.Tensor, see: Callable[[str, LinearAngularAttention, torch.Tensor], None]
) -> None:
    """Run the model on images in eval mode, and call ``see(name, attention, tokens)`` for every castled block.

    Raises:
        ValueError: for what is no float tensor (B, C, H, W), or (B, C, T, H, W) of clips, or holds none; and for images
            that the model refuses.
    """
    if not isinstance(images, torch.Tensor) or images.ndim not in (4, 5) or not images.is_floating_point():
        given = f"a {type(images).__name__}"
        if isinstance(images, torch.Tensor):
            given = f"a tensor of {images.dtype} and shape {tuple(images.shape)}"
        raise ValueError(f"images is {given}; it must be a float tensor (B, C, H, W), or (B, C, T, H, W) of clips")
    if not len(images):
        raise ValueError("images holds none; the model cannot be measured without")
    with evaluating(model), watching(require_castled(model), see):
        try:
            model(images)
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"images of shape {tuple(images.shape)} do not fit the model: {reason}") from error


@contextmanager
def watching(modules: dict[str, nn.Module], see: Callable[[str, Any, torch.Tensor], None]) -> Iterator[None]:
    """Call ``see(name, module, tokens)`` whenever one of the modules is about to run."""
    handles = [
        module.register_forward_pre_hook(lambda module, args, name=name: see(name, module, args[0]))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def require_castled(model: nn.Module) -> dict[str, LinearAngularAttention]:
    """The castled blocks, of which there must be one."""
    castled = castled_attention(model)
    if not castled:
        raise ValueError(f"{called(model)} has no castled block")
    return castled
