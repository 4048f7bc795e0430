"""Attention for forward-mode derivatives, which PyTorch's fused attention has none of."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

CHUNK = 2**21  # attention weights that are held at once on a CPU: they stay in its cache
CHUNK_GPU = 2**28
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class ForwardAttention(TorchFunctionMode):
    """While it is entered, plain attention (no mask, no dropout, not causal) has a fast rule for ``torch.func.jvp``.

    All other attention takes PyTorch's unfused path, whose tangents keep several N x N tensors of the whole batch.
    """

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        if len(args) == 3 and kwargs.get("attn_mask") is None and not _others(**kwargs):
            scale = kwargs.get("scale")
            return _Attention.apply(*args, args[0].shape[-1] ** -0.5 if scale is None else scale)
        with sdpa_kernel(SDPBackend.MATH):
            return func(*args, **kwargs)


def _others(attn_mask: Any = None, scale: float | None = None, **others: Any) -> bool:
    return any(others.values())


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        with sdpa_kernel(FUSED):
            return F.scaled_dot_product_attention(q, k, v, scale=scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
        *tensors, ctx.scale = inputs
        ctx.save_for_forward(*tensors, output)

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor | None) -> torch.Tensor:
        """With P = softmax(S): d(P v) = (P * dS) v - rowsum(P * dS) P v + P dv."""
        q, k, v, output = (x.flatten(0, -3) for x in ctx.saved_tensors)
        dq, dk, dv = (
            torch.zeros_like(x) if tangent is None else tangent.flatten(0, -3)
            for x, tangent in zip((q, k, v), tangents)  # the last one would be the scale's
        )
        limit = CHUNK if q.device.type == "cpu" else CHUNK_GPU
        heads = max(1, limit // (q.shape[-2] * k.shape[-2]))
        parts = zip(*(x.split(heads) for x in (q, k, v, output, dq, dk, dv)))
        return torch.cat([_tangent(*part, ctx.scale) for part in parts]).reshape(ctx.saved_tensors[3].shape)


def _tangent(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    output: torch.Tensor,
    dq: torch.Tensor,
    dk: torch.Tensor,
    dv: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Tangent of some heads' outputs; all (heads, tokens, head_dim)."""
    weights = (q * scale @ k.mT).softmax(-1)
    changes = (torch.cat([dq, q], -1) * scale) @ torch.cat([k, dk], -1).mT
    changes = changes.mul_(weights)
    return changes @ v - changes.sum(-1, keepdim=True) * output + weights @ dv
