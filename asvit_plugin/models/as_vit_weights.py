"""As-ViT weight files: our own layout and that of the authors' code, brought to a model's names and position grid."""

import math
import re
from typing import Any

import torch
from timm.layers import to_2tuple
from torch import nn

from ..layers import resample_pos_embed
from ._build import require_full_cover

_AUTHORS_NAMES = [
    (r"^absolute_pos_embed$", "pos_embed"),
    (r"^layers\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (r"^layers\.", "stages."),
    (r"\.mlps\.0\.0\.", ".norm2."),
    (r"\.mlps\.0\.1\.", ".mlp."),
    (r"^head\.0\.", "head.pre_logits.fc."),
    (r"^head\.2\.", "head.fc."),
]


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, torch.Tensor]:
    """Bring a checkpoint, ours or of the authors' layout, to the model's names and position grid.

    Raises:
        ValueError: if the file does not cover the model, or brings tensors that it has no place for.
    """
    state_dict = state_dict.get("model", state_dict)
    state_dict = dict(state_dict.get("state_dict", state_dict))
    if any(name.startswith("layers.") for name in state_dict):
        for pattern, name in _AUTHORS_NAMES:
            state_dict = {re.sub(pattern, name, key): value for key, value in state_dict.items()}
    if isinstance(model.head.pre_logits, nn.Identity):  # a backbone without head has no use for one
        state_dict = {key: value for key, value in state_dict.items() if not key.startswith("head.")}
    require_full_cover(state_dict, model, resampled=("pos_embed",))
    if model.pos_embed is not None:
        table = _as_grid(state_dict["pos_embed"], model)
        state_dict["pos_embed"] = resample_pos_embed(table, *model.pos_embed.shape[1:3])
    return state_dict


def _as_grid(table: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """A position table as (1, H, W, C); the authors store (1, H * W, C)."""
    if not isinstance(table, torch.Tensor) or table.ndim not in (3, 4) or table.shape[-1] != model.embed_dim:
        raise ValueError(
            f"the weight file's position embedding must be a tensor of {model.embed_dim} channels per token"
        )
    if table.ndim == 4:
        return table
    source = model.pretrained_model_args.get("img_size") or model.pretrained_cfg["input_size"][-2:]
    grid = [math.ceil(side / model.stem_stride) for side in to_2tuple(source)]
    if math.prod(grid) != table.shape[1]:
        grid = [math.isqrt(table.shape[1])] * 2
    if math.prod(grid) != table.shape[1]:
        raise ValueError(
            f"the weight file's position embedding has shape {tuple(table.shape)}, which is no square grid: pass the "
            f"image size that it was trained at, pretrained_cfg_overlay=dict(file=..., input_size=(3, height, width))"
        )
    return table.unflatten(1, grid)
