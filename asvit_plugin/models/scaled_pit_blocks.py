"""What a scaled PiT is made of: overlapping patches, and stages of timm's blocks behind timm's pooling."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, register_notrace_function
from timm.models import checkpoint_seq
from timm.models.vision_transformer import Block
from torch import nn

from .scaled_pit_shape import StageShape


@torch.fx.wrap
@register_notrace_function
def pad_for_patches(x: torch.Tensor, patch_size: int, stride: int) -> torch.Tensor:
    """Pad images (B, C, H, W) right and bottom until the patches, at least one, cover every pixel."""
    height, width = x.shape[2], x.shape[3]
    if torch.jit.is_scripting():
        rows, columns = max(height, patch_size), max(width, patch_size)
    else:
        rows, columns = _at_least(height, patch_size), _at_least(width, patch_size)
    rows += (patch_size - rows) % stride
    columns += (patch_size - columns) % stride
    return F.pad(x, (0, columns - width, 0, rows - height))


def _at_least(side: int, patch_size: int) -> int:
    # torch.export asks a symbol in max() which of them it is; torch.compile of torch 2.11 takes no numbers in sym_max()
    return torch.sym_max(side, patch_size) if isinstance(side, torch.SymInt) else max(side, patch_size)


class PatchConv(nn.Module):
    """Overlapping patches: one convolution. The image is padded, right and bottom, until they cover every pixel."""

    def __init__(self, in_chans: int, embed_dim: int, patch_size: int, stride: int, **dd: Any) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.stride = stride
        self.conv = nn.Conv2d(in_chans, embed_dim, patch_size, stride=stride, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(pad_for_patches(x, self.patch_size, self.stride))


class PiTStage(nn.Module):
    """The pooling that enters a stage (none before the first) and its blocks over prefix and patch tokens together."""

    def __init__(self, pool: nn.Module | None, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.pool = pool
        self.blocks = nn.Sequential(*blocks)

    def forward(self, prefix: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Prefix (B, T, C) and tokens (B, C, H, W) to those of the next stage, H and W halved and rounded up."""
        if self.pool is not None:
            x, prefix = self.pool(x, prefix)
        tokens = torch.cat([prefix, x.flatten(2).transpose(1, 2)], dim=1)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            tokens = checkpoint_seq(self.blocks, tokens)
        else:
            tokens = self.blocks(tokens)
        num_prefix = prefix.shape[1]
        return tokens[:, :num_prefix], tokens[:, num_prefix:].transpose(1, 2).reshape(x.shape)


def make_block(shape: StageShape, index: int, proj_drop: float, attn_drop: float, drop_path: float, **dd: Any) -> Block:
    """timm's block in the shape of block ``index`` of a stage."""
    common = dict(dim=shape.embed_dim, qkv_bias=True, proj_drop=proj_drop, attn_drop=attn_drop, **dd)
    norm_layer = partial(nn.LayerNorm, eps=1e-6)
    block = Block(num_heads=1, mlp_ratio=shape.mlp_ratio[index], drop_path=drop_path, norm_layer=norm_layer, **common)
    block.attn = Attention(num_heads=shape.num_heads[index], attn_head_dim=shape.head_dim, **common)
    return block
