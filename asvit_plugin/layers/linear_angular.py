"""The linear-angular operator of Castling-ViT as functions of q, k and v, at a cost linear in the number of tokens.

The angular kernel is ``1 - arccos(q.k) / pi = 1/2 + arcsin(q.k) / pi`` for unit q and k; its linear part is
``1/2 + q.k / pi``. You et al., "Castling-ViT", CVPR 2023 (arXiv 2211.10526), and its released attention block.

Temporaries live in functions of their own, so that one is freed before the next is made: at equal arithmetic this
halves the time on a CPU, where fresh memory costs more than the products.
"""

import math

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function

HALF_TERMS = ("identity", "mean")


def inverse_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """``1 / max(|x|, eps)`` over the last dimension, which stays with length 1.

    Contiguous, because a product in which it comes first takes its layout: normalising heads then also gathers them.
    """
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(eps).reciprocal().contiguous()


@torch.fx.wrap
@register_notrace_function
def linear_angular(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    half_term: str = "identity",
    reference_length: float | None = None,
    eps: float = 1e-4,
) -> torch.Tensor:
    """The linear part of angular attention, not yet normalised, in float32 or better and outside autocast.

    Args:
        q: Queries, (B, heads, N, head_dim), of any length.
        k: Keys, likewise.
        v: Values, likewise.
        half_term: What the kernel's 1/2 becomes. "identity" is the released block, ``v / 2 + q (k^T v) / pi``;
            "mean" is the kernel itself, ``(sum(v) / 2 + q (k^T v) / pi) / N``.
        reference_length: With "identity", weigh the global term by ``reference_length / N``: it grows with N as
            v / 2 does not, so that another resolution would shift their balance. None leaves it.
        eps: Shortest length that q and k are divided by.

    Returns:
        (B, heads, N, head_dim).
    """
    if torch.jit.is_scripting():
        return _linear_angular(q, k, v, half_term, reference_length, eps)
    device_type = q.device.type
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        with torch.autocast(device_type, enabled=False):
            return _linear_angular(q, k, v, half_term, reference_length, eps)
    return _linear_angular(q, k, v, half_term, reference_length, eps)


def _linear_angular(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, half_term: str, reference_length: float | None, eps: float
) -> torch.Tensor:
    batch, heads, tokens = q.shape[0], q.shape[1], q.shape[2]
    value = _at_least_float32(v).flatten(0, 1)  # (B * heads, N, head_dim)
    state = _key_value_state(_at_least_float32(k), value, eps)
    half = value
    if half_term == "mean":
        half = value.mean(dim=1, keepdim=True)
        state = state / tokens
    elif reference_length is not None:
        state = state * (reference_length / tokens)
    return _query(_at_least_float32(q), half, state, eps).reshape(batch, heads, tokens, v.shape[3])


def _key_value_state(k: torch.Tensor, value: torch.Tensor, eps: float) -> torch.Tensor:
    """(B * heads, head_dim, head_dim): all that queries see of the other tokens."""
    return (inverse_norm(k, eps) * k).flatten(0, 1).transpose(1, 2) @ value


def _query(q: torch.Tensor, half: torch.Tensor, state: torch.Tensor, eps: float) -> torch.Tensor:
    unit = (inverse_norm(q, eps) * q).flatten(0, 1)
    return torch.baddbmm(half, unit, state, beta=0.5, alpha=1 / math.pi)


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


@torch.fx.wrap
@register_notrace_function
def add_local(
    y: torch.Tensor,
    v: torch.Tensor,
    weight: torch.Tensor,
    gain: torch.Tensor | None = None,
    num_prefix_tokens: int = 0,
    grid_size: tuple[int, int] | None = None,
    eps: float = 1e-4,
) -> torch.Tensor:
    """Bring every token of every head to length one (times ``gain``) and add a depthwise convolution of the values.

    Args:
        y: Attention's output, (B, heads, N, head_dim).
        v: Values, likewise.
        weight: Filters, (heads, 1, K, K') shared by the channels of a head, or (heads * head_dim, 1, K, K').
        gain: Length of each head's output, (heads,); None for one.
        num_prefix_tokens: Tokens at the start that take no part in the convolution.
        grid_size: Rows and columns of the other tokens; None to convolve along their raster order.
        eps: Shortest length that y is divided by.

    Returns:
        (B, N, heads * head_dim), in the type of v.
    """
    batch, heads, tokens, head_dim = y.shape[0], y.shape[1], y.shape[2], y.shape[3]
    scale = inverse_norm(y, eps)
    if gain is not None:
        scale = scale * gain.view(-1, 1, 1)
    local = depthwise_conv(v.transpose(1, 2).flatten(2), weight, num_prefix_tokens, grid_size)
    local = local.to(y.dtype).reshape(batch, tokens, heads, head_dim)
    # In place: the convolution's output is nobody else's, and its gradient does not need it.
    return local.addcmul_(y.transpose(1, 2), scale.transpose(1, 2).to(y.dtype)).flatten(2).to(v.dtype)


def depthwise_conv(
    x: torch.Tensor, weight: torch.Tensor, num_prefix_tokens: int, grid_size: tuple[int, int] | None
) -> torch.Tensor:
    """Depthwise convolution of tokens (B, N, C) to (B, N, C); prefix tokens take no part and get zeros.

    Channels last and one filter for each channel, also where heads share them: 4 to 7 times as fast on a CPU as heads
    as the channels of a (heads, N, head_dim) image, which is how the block was released.
    """
    rows, columns = x.shape[1] - num_prefix_tokens, 1
    if rows < 1:
        raise ValueError(f"num_prefix_tokens is {num_prefix_tokens}; of {x.shape[1]} tokens none is left to convolve")
    if grid_size is not None:
        if grid_size[0] * grid_size[1] != rows:
            raise ValueError(
                f"grid_size is {grid_size}; it must hold the {rows} tokens behind {num_prefix_tokens} prefix tokens"
            )
        rows, columns = grid_size[0], grid_size[1]
    channels = x.shape[2]
    image = x[:, num_prefix_tokens:].transpose(1, 2).reshape(x.shape[0], channels, rows, columns)
    image = image.contiguous(memory_format=torch.channels_last)
    weight = weight.repeat_interleave(channels // weight.shape[0], dim=0)
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    local = F.conv2d(image, weight, padding=padding, groups=channels).flatten(2).transpose(1, 2)
    return F.pad(local, (0, 0, num_prefix_tokens, 0)) if num_prefix_tokens > 0 else local
