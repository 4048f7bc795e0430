"""Position-embedding tables that follow the token grid."""

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function


@torch.fx.wrap
@register_notrace_function
def resample_pos_embed(pos_embed: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resample a table (1, H, W, C) to (1, height, width, C), bicubic with antialiasing.

    At its own size the table comes back unchanged to the last bit. timm's ``resample_abs_pos_embed_nhwc`` returns
    early in that case; a branch on the size costs a recompilation under ``torch.compile``, so there is none here.
    """
    dtype = torch.promote_types(pos_embed.dtype, torch.float32)  # no half-precision kernel on CPU
    table = pos_embed.to(dtype).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=[height, width], mode="bicubic", antialias=True)
    return table.permute(0, 2, 3, 1).to(pos_embed.dtype)


def add_pos_embed(x: torch.Tensor, pos_embed: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Add a position table to the tokens that an image covers.

    Args:
        x: Tokens, (B, H, W, C); those beyond the image are padding on the right and at the bottom.
        pos_embed: Table (1, h, w, C), resampled to the image's tokens.
        height: Rows of tokens that the image touches, at most H.
        width: Columns of tokens that the image touches, at most W.
    """
    table = resample_pos_embed(pos_embed, height, width)
    return x + F.pad(table, (0, 0, 0, x.shape[2] - width, 0, x.shape[1] - height))
