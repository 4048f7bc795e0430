"""What an As-ViT is made of: pre-norm blocks with attention inside windows, and stages of them behind a merge."""

import torch
from timm.layers import Attention, DropPath, Mlp
from timm.models import checkpoint_seq
from torch import nn

from ..layers import window_partition, window_reverse


class AsViTBlock(nn.Module):
    """Pre-norm transformer block with attention inside windows, over (B, H, W, C)."""

    num_windows: tuple[int, int]
    window_size: tuple[int, int]

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.num_windows, self.window_size = (1, 1), (-1, -1)
        self.norm1 = nn.LayerNorm(dim, eps=1e-5, **dd)
        # The attention width may be smaller than dim: heads * (dim // heads).
        self.attn = Attention(
            dim,
            num_heads,
            attn_head_dim=dim // num_heads,
            qkv_bias=True,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            **dd,
        )
        self.norm2 = nn.LayerNorm(dim, eps=1e-5, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        windows = window_partition(self.norm1(x), self.num_windows, self.window_size)
        attended = self.attn(windows.flatten(3, 4).flatten(0, 2))  # (B * windows, tokens, C)
        x = x + self.drop_path1(window_reverse(attended.reshape(windows.shape)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class AsViTStage(nn.Module):
    """The merge that enters a stage (none before the first) and the stage's blocks, over (B, H, W, C)."""

    def __init__(self, downsample: nn.Module, blocks: list[AsViTBlock]) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)
