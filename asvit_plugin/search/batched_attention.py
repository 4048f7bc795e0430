"""PyTorch's fused attention of the CPU for torch.func.vmap, which would run it image by image."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class BatchedAttention(TorchFunctionMode):
    """While it is entered, plain attention on the CPU (no mask, no dropout, not causal) has a rule for vmap.

    PyTorch has none for the CPU's kernel and calls it once per image; here images join the batch. GPU kernels have
    rules of their own and are left alone, as is every other kind of attention.
    """

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and _is_plain(*args, **kwargs):
            return _Attention.apply(*args[:3], kwargs.get("scale"))[0]
        return func(*args, **kwargs)


def _is_plain(
    *args: Any, attn_mask: Any = None, dropout_p: float = 0.0, scale: float | None = None, **others: Any
) -> bool:
    """Whether the arguments of an attention call are (q, k, v) of (B, heads, N, head_dim) on the CPU and no more."""
    fits = len(args) == 3 and all(x.ndim == 4 and x.device.type == "cpu" for x in args)
    return (
        fits
        and args[0].shape[-1] == args[2].shape[-1]
        and attn_mask is None
        and not dropout_p
        and not any(others.values())
    )


class _Attention(torch.autograd.Function):
    """(q, k, v, scale) to (output, log of the softmax's sums)."""

    @staticmethod
    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> tuple[torch.Tensor, ...]:
        return _attention(q, k, v, scale=scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[torch.Tensor, ...]) -> None:
        *tensors, ctx.scale = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        return *_AttentionBackward.apply(grad_output, *ctx.saved_tensors, ctx.scale), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[tuple[torch.Tensor, ...], int]:
        return _joined(_Attention, info.batch_size, in_dims, args)


class _AttentionBackward(torch.autograd.Function):
    """(gradient of the output, q, k, v, output, log of the sums, scale) to the gradients of q, k and v."""

    @staticmethod
    def forward(*args: Any) -> tuple[torch.Tensor, ...]:
        *tensors, scale = args
        return _attention_backward(*tensors, 0.0, False, scale=scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[torch.Tensor, ...]) -> None:
        pass  # first derivatives are all that is asked for

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[tuple[torch.Tensor, ...], int]:
        return _joined(_AttentionBackward, info.batch_size, in_dims, args)


def _joined(
    function: type[torch.autograd.Function], batch_size: int, in_dims: tuple, args: tuple
) -> tuple[tuple[torch.Tensor, ...], int]:
    """Run a function with vmap's dimension joined to the batch, and part them afterwards."""
    *tensors, scale = args
    joined = [
        (x.expand(batch_size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)
        for x, dim in zip(tensors, in_dims)
    ]
    outputs = function.apply(*joined, scale)
    return tuple(x.unflatten(0, (batch_size, -1)) for x in outputs), 0
