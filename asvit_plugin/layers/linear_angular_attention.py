"""Attention that switches from softmax to linear-angular: Castling-ViT's block in place of timm's ``Attention``."""

from typing import Any, Final

import torch
import torch.nn.functional as F
from timm.layers import Attention, maybe_add_mask, register_notrace_function, resolve_self_attn_mask
from torch import nn

from ..checks import check_choice, check_whole
from .linear_angular import HALF_TERMS, add_local, linear_angular

torch.fx.wrap("add_local")
torch.fx.wrap("linear_angular")

MASK_THRESHOLD = 0.02  # the released block's
MODES = {"softmax": (0.0, MASK_THRESHOLD), "masked": (1.0, MASK_THRESHOLD), "linear": (1.0, 1.0)}  # blend, threshold
DWCONVS = ("1d_head", "2d_head", "2d_channel")


class LinearAngularAttention(Attention):
    """Multi-head self-attention between softmax (timm's ``Attention``) and linear-angular (Castling-ViT).

    The linear-angular output of a head is ``gain * y / |y| + dconv(v)`` with::

        y = v / 2 + q (k^T v) / pi + [P > threshold] P v        q, k of length one, P = softmax(q k^T / sqrt(head_dim))

    P is that of ordinary attention, and its entries above the threshold help in training only: at a threshold of 1
    none is left, and what remains is linear in the number of tokens. ``blend`` mixes the heads' outputs, 0 for
    softmax attention and 1 for linear-angular. A schedule changes both through :meth:`switch`; weights stay.

    Where the defaults differ from the released block, they guard it: lengths have a floor (a token of zeros gave NaN),
    and statistics are float32 or better. ``num_prefix_tokens`` keeps class and register tokens out of the convolution.

    Source: You et al., "Castling-ViT", CVPR 2023 (arXiv 2211.10526), its figure of the architecture and released block.

    Args:
        dim: Channels of a token.
        num_heads: Heads.
        attn_head_dim: Channels per head; None for ``dim // num_heads``.
        dim_out: Channels of the output; None for ``dim``.
        qkv_bias: Biases for queries, keys and values.
        qk_norm: ``norm_layer`` on queries and keys.
        scale_norm: ``norm_layer`` on the heads' output.
        proj_bias: Bias of the output projection.
        gated: Sigmoid gate on the heads' output.
        attn_drop: Dropout on the softmax branch's weights.
        proj_drop: Dropout on the output.
        norm_layer: Of ``qk_norm`` and ``scale_norm``.
        mode: Starting state: "softmax" (blend 0), "masked" (blend 1, threshold 0.02: how the paper trains) or "linear"
            (blend 1, threshold 1).
        dwconv: Convolution of the values: "1d_head" along the raster order of the tokens with a filter for each head
            (the released block), "2d_head" or "2d_channel" over the token grid, which ``forward`` must then be given.
        dwconv_kernel_size: Taps, or side of the filters; odd. Filters start as zeros.
        num_prefix_tokens: Class, distillation and register tokens, which the convolution leaves out.
        half_term: "identity" (the released block) or "mean" (the kernel itself); see :func:`linear_angular`.
        reference_length: Number of tokens at which the global term has weight one; see :func:`linear_angular`.
        output_gain: Learn a length for each head's output, from one on.
        eps: Shortest length that anything is divided by. Below 1e-5, the gradient at a token of zeros overflows fp16.

    Raises:
        ValueError: naming an argument that is out of range.
    """

    linear_branch: Final[bool]
    softmax_branch: Final[bool]
    blended: Final[bool]
    __jit_unused_properties__ = ("blend", "mode", "threshold")

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        attn_head_dim: int | None = None,
        dim_out: int | None = None,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        gated: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: type[nn.Module] | None = None,
        *,
        mode: str = "linear",
        dwconv: str = "1d_head",
        dwconv_kernel_size: int = 9,
        num_prefix_tokens: int = 0,
        half_term: str = "identity",
        reference_length: float | None = None,
        output_gain: bool = False,
        eps: float = 1e-4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        for field, value, least in (("num_heads", num_heads, 1), ("num_prefix_tokens", num_prefix_tokens, 0)):
            check_whole(field, value, least)
        if not eps > 0:
            raise ValueError(f"eps is {eps!r}; it must be above 0")
        if attn_head_dim is None and dim % num_heads:
            raise ValueError(f"num_heads is {num_heads}; it must divide dim, which is {dim}")
        check_choice("mode", mode, tuple(MODES))
        check_choice("dwconv", dwconv, DWCONVS)
        check_choice("half_term", half_term, HALF_TERMS)
        check_whole("dwconv_kernel_size", dwconv_kernel_size)
        if dwconv_kernel_size % 2 == 0:
            raise ValueError(f"dwconv_kernel_size is {dwconv_kernel_size!r}; it must be an odd number of at least 1")
        if reference_length is not None and (not 0 < reference_length < float("inf") or half_term == "mean"):
            raise ValueError(
                f"reference_length is {reference_length!r}; it must be positive, and half_term='mean' takes none"
            )
        super().__init__(
            dim,
            num_heads=num_heads,
            attn_head_dim=attn_head_dim,
            dim_out=dim_out,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            scale_norm=scale_norm,
            proj_bias=proj_bias,
            gated=gated,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            norm_layer=norm_layer,
            **dd,
        )
        self.needs_grid = dwconv != "1d_head"
        self.num_prefix_tokens = int(num_prefix_tokens)
        self.half_term = half_term
        self.reference_length = None if reference_length is None else float(reference_length)
        self.eps = eps
        self.finished = False
        channels = self.attn_dim if dwconv == "2d_channel" else num_heads
        size = (int(dwconv_kernel_size), int(dwconv_kernel_size) if self.needs_grid else 1)
        self.dconv = nn.Conv2d(channels, channels, size, groups=channels, bias=False, **dd)
        self.gain = nn.Parameter(torch.empty(num_heads, **dd)) if output_gain else None
        # In buffers, so that a schedule's every step is no new graph to the compiler.
        self.register_buffer("_blend", torch.empty((), **dd), persistent=False)
        self.register_buffer("_threshold", torch.empty((), **dd), persistent=False)
        self.switch(*MODES[mode])
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Zero the convolution and set gains to one: what is new against timm's ``Attention`` starts without effect."""
        nn.init.zeros_(self.dconv.weight)
        if self.gain is not None:
            nn.init.ones_(self.gain)
        self.init_non_persistent_buffers()

    @torch.jit.ignore
    def init_non_persistent_buffers(self) -> None:
        """Fill what no checkpoint holds, as timm does for models that were built on the meta device."""
        with torch.no_grad():
            self._blend.fill_(self.blend)
            self._threshold.fill_(self.threshold)

    def _apply(self, *args: Any, **kwargs: Any) -> "LinearAngularAttention":
        """As of any module; a state that was rounded to half precision comes back whole."""
        super()._apply(*args, **kwargs)
        self.init_non_persistent_buffers()
        return self

    @property
    def blend(self) -> float:
        """Share of linear-angular attention in the output, 0 to 1."""
        return self._state[0]

    @property
    def threshold(self) -> float:
        """Softmax weights above it take part in linear-angular attention; 1 for none."""
        return self._state[1]

    @property
    def mode(self) -> str:
        """ "softmax", "linear", or "masked" for all that lies between."""
        return ("masked" if self.softmax_branch else "linear") if self.linear_branch else "softmax"

    @torch.jit.ignore
    def switch(self, blend: float, threshold: float) -> None:
        """Set the state; what it makes superfluous is no longer computed.

        Args:
            blend: 0 (softmax attention) to 1 (linear-angular attention).
            threshold: 0 to 1, of the softmax weights that still take part in linear-angular attention.

        Raises:
            ValueError: for a value out of range, and after :meth:`finish` for any other state than the last.
        """
        for field, value in (("blend", blend), ("threshold", threshold)):
            if not 0 <= value <= 1:
                raise ValueError(f"{field} is {value!r}; it must lie between 0 and 1")
        if self.finished and (blend, threshold) != MODES["linear"]:
            raise ValueError(f"blend is {blend!r} and threshold {threshold!r}; finished attention stays at 1 and 1")
        self._state = (float(blend), float(threshold))
        self.linear_branch = blend > 0
        self.blended = 0 < blend < 1
        self.softmax_branch = blend < 1 or threshold < 1
        self.init_non_persistent_buffers()

    @torch.jit.ignore
    def finish(self) -> None:
        """Stay linear from now on."""
        self.switch(*MODES["linear"])
        self.finished = True

    def forward(
        self,
        x: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        is_causal: bool = False,
        grid_size: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """Attend over tokens (B, N, dim).

        Args:
            x: Tokens, prefix tokens first.
            attn_mask: As in timm; only in softmax mode.
            is_causal: As in timm; only in softmax mode.
            grid_size: Rows and columns of the tokens behind the prefix; what a 2-D convolution needs.

        Returns:
            (B, N, dim_out).

        Raises:
            ValueError: for masks where the linear branch runs, and for a grid that is missing or does not fit.
        """
        q, k, v = self.heads(x)
        if self.linear_branch:
            _refuse_masks(attn_mask, is_causal)
            if self.needs_grid and grid_size is None:
                raise ValueError("grid_size is None; a convolution over the token grid needs its rows and columns")
            y = self._linear_angular(q, k, v, grid_size if self.needs_grid else None)
        else:
            y = self._softmax(q, k, v, attn_mask, is_causal)
        y = self.norm(y)
        if self.gate is not None:
            y = y * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(y))

    def heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values of tokens (B, N, dim), each (B, heads, N, head_dim)."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return self.q_norm(q), self.k_norm(k), v

    def _softmax(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: torch.Tensor | None, is_causal: bool
    ) -> torch.Tensor:
        """Ordinary attention as timm computes it, fused or not, (B, N, heads * head_dim)."""
        if self.fused_attn:
            dropout = self.attn_drop.p if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout, is_causal=is_causal)
        else:
            logits = (q * self.scale) @ k.transpose(-2, -1)
            logits = maybe_add_mask(logits, resolve_self_attn_mask(q.shape[2], logits, attn_mask, is_causal))
            y = self.attn_drop(logits.softmax(dim=-1)) @ v
        return y.transpose(1, 2).flatten(2)

    def _linear_angular(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid_size: tuple[int, int] | None
    ) -> torch.Tensor:
        """Output of any state but softmax, (B, N, heads * head_dim)."""
        y = linear_angular(q, k, v, self.half_term, self.reference_length, self.eps)
        if self.softmax_branch:
            weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
            y = y + self.attn_drop(weights * (weights > self._threshold)) @ v
            if self.blended:
                softmax = (self.attn_drop(weights) @ v).transpose(1, 2).flatten(2)
                y = add_local(y, v, self.dconv.weight, self.gain, self.num_prefix_tokens, grid_size, self.eps)
                return torch.lerp(softmax, y, self._blend)
        return add_local(y, v, self.dconv.weight, self.gain, self.num_prefix_tokens, grid_size, self.eps)


@torch.fx.wrap
@register_notrace_function
def _refuse_masks(attn_mask: torch.Tensor | None, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        raise ValueError("attn_mask or is_causal is given; linear attention has no weights to mask: use mode 'softmax'")
