"""Overlapping patch merging, folded into one convolution."""

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import nn


class PatchMerging(nn.Module):
    """Halve the token grid: every K x K patch of tokens (stride 2) is normalised and projected.

    The definition (As-ViT, Swin's merging with overlap) is ``Linear(LayerNorm(unfold(x)))`` over patches of
    C * K * K numbers. Unfolding makes a tensor that is (K / 2)^2 times as large as the input; here the layer norm is
    folded into the projection instead, exactly::

        Linear(LN(p)) = (W' p - mean(p) * sum(W')) / sqrt(var(p) + eps) + W beta        with W' = W * gamma

    where W' p is a convolution, and the mean and variance of a patch are pooled from those of its tokens. Zero
    padding counts as tokens of zeros, as in the definition.

    Args:
        dim: Input channels C.
        out_dim: Output channels.
        kernel_size: K, at least 2. The padding is (K - 2) // 2 before and (K - 1) // 2 after, on both axes.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        kernel_size: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.dim = dim
        self.kernel_size = kernel_size
        self.pad = ((kernel_size - 2) // 2, (kernel_size - 1) // 2)
        # Both are used through their weights alone; features are ordered channel first, then row, then column.
        self.norm = nn.LayerNorm(dim * kernel_size**2, eps=1e-5, **dd)
        self.reduction = nn.Linear(dim * kernel_size**2, out_dim, bias=False, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Merge (B, H, W, C) with even H and W into (B, H / 2, W / 2, out_dim)."""
        before, after = self.pad
        x = F.pad(x, (0, 0, before, after, before, after))
        mean, inv_std = patch_statistics(x, self.kernel_size, self.norm.eps)
        weight = self.reduction.weight * self.norm.weight  # (out, C * K * K)
        kernel = weight.unflatten(1, (self.dim, self.kernel_size, self.kernel_size))
        projected = F.conv2d(x.permute(0, 3, 1, 2), kernel, stride=2).permute(0, 2, 3, 1)
        shift = torch.mv(self.reduction.weight, self.norm.bias)
        return ((projected - mean * weight.sum(1)) * inv_std + shift).to(projected.dtype)


@torch.fx.wrap
@register_notrace_function
def patch_statistics(x: torch.Tensor, kernel_size: int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / sqrt(var + eps) of every K x K patch (stride 2) over its tokens and channels.

    Half-precision input is summed in float32.

    Args:
        x: Padded tokens, (B, H, W, C).
        kernel_size: Patch side K in tokens.
        eps: Added to the variance.

    Returns:
        Two tensors of (B, H', W', 1), in at least float32.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    token_var, token_mean = torch.var_mean(x, dim=-1, correction=0)
    # Law of total variance: mean of the tokens' variances + variance of their means.
    moments = torch.stack((token_mean, token_var + token_mean.square()), dim=1)  # (B, 2, H, W)
    mean, second = F.avg_pool2d(moments, kernel_size, stride=2).unsqueeze(-1).unbind(1)
    var = (second - mean.square()).clamp(min=0.0)
    return mean, torch.rsqrt(var + eps)
