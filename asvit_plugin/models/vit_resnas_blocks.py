"""What a ViT-ResNAS is made of: stems, blocks of free widths, and the residual spatial reduction between stages."""

import torch
import torch.nn.functional as F
from timm.layers import Attention, ConvNormAct, DropPath, Mlp, trunc_normal_
from timm.models import checkpoint_seq
from torch import nn

from ..layers import add_pos_embed
from .vit_resnas_genotype import PATCH_SIZE, BlockDef


class ConvStem(nn.Module):
    """Three 3 x 3 convolutions at stride 2 with a residual, then one 7 x 7 at stride 7: a token for 14 x 14 pixels."""

    def __init__(
        self,
        in_chans: int,
        width: int,
        embed_dim: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv1 = ConvNormAct(in_chans, width, 3, stride=2, **dd)
        self.conv2 = ConvNormAct(width, width, 3, **dd)
        self.conv3 = ConvNormAct(width, width, 3, **dd)
        self.proj = nn.Conv2d(width, embed_dim, PATCH_SIZE // 2, stride=PATCH_SIZE // 2, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        return self.proj(self.conv3(self.conv2(x)) + x)


class LinearStem(nn.Module):
    """One linear map of each 14 x 14 pixels to a token."""

    def __init__(
        self,
        in_chans: int,
        embed_dim: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, PATCH_SIZE, stride=PATCH_SIZE, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


class ResNASBlock(nn.Module):
    """Pre-norm transformer block whose attention width and MLP width are free, over (B, N, C)."""

    def __init__(
        self,
        dim: int,
        block: BlockDef,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = Attention(
            dim,
            block.num_heads,
            attn_head_dim=block.head_dim,
            qkv_bias=True,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            **dd,
        )
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, block.mlp_hidden_dim, drop=proj_drop, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class ResidualSpatialReduction(nn.Module):
    """Halve the token grid with a strided convolution beside an average-pooled skip (section 3.2 of the paper).

    The new channels of the skips are zeros, at the end. Prefix tokens are not pooled; they get a linear map instead.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        stride: int,
        grid_size: tuple[int, int],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.stride = stride  # pixels per token behind the reduction
        self.num_new = out_dim - dim
        self.norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.conv = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1, **dd)
        self.token_proj = nn.Linear(dim, out_dim, **dd)
        self.pos_embed = nn.Parameter(torch.empty(1, *grid_size, out_dim, **dd))

    def init_weights(self) -> None:
        """What the walk over modules does not know: positions as in the first stage, the rest by type."""
        trunc_normal_(self.pos_embed, std=0.02)

    def forward(
        self, prefix: torch.Tensor, x: torch.Tensor, height: int, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Prefix (B, T, C) and tokens (B, H, W, C) of an image of height x width pixels to H / 2 and W / 2."""
        main = self.conv(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        rows, columns = (height + self.stride - 1) // self.stride, (width + self.stride - 1) // self.stride
        main = add_pos_embed(main, self.pos_embed, rows, columns)
        skip = F.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        prefix = self.token_proj(self.norm(prefix)) + F.pad(prefix, (0, self.num_new))
        return prefix, main + F.pad(skip, (0, self.num_new))


class FirstStageEntry(nn.Module):
    """Stands where later stages have their reduction."""

    def forward(
        self, prefix: torch.Tensor, x: torch.Tensor, height: int, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return prefix, x


class ResNASStage(nn.Module):
    """The reduction that enters a stage (none before the first) and its blocks over prefix tokens and grid together."""

    def __init__(self, downsample: nn.Module, blocks: list[ResNASBlock]) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(
        self, prefix: torch.Tensor, x: torch.Tensor, height: int, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Prefix (B, T, C) and tokens (B, H, W, C) of an image of height x width pixels."""
        prefix, x = self.downsample(prefix, x, height, width)
        tokens = torch.cat([prefix, x.flatten(1, 2)], dim=1)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            tokens = checkpoint_seq(self.blocks, tokens)
        else:
            tokens = self.blocks(tokens)
        num_prefix = prefix.shape[1]
        return tokens[:, :num_prefix], tokens[:, num_prefix:].reshape(x.shape)
