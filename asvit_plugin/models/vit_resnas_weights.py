"""ViT-ResNAS weight files, ours and the authors' training checkpoints, brought to a model's names and grids."""

import argparse
import math
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..layers import resample_pos_embed
from ._build import require_full_cover
from .vit_resnas_genotype import NetworkDef

_AUTHORS_REDUCTION = {"patch_reduce": "conv", "token_transform": "token_proj"}
_AUTHORS_HEADS = {"cls_head": "head", "dst_head": "head_dist"}


def read_network_def(path: str | Path) -> str | None:
    """The definition that an authors' training checkpoint holds in its ``args``; None where the file has none.

    Raises:
        ValueError: if the file cannot be read.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (AttributeError, EOFError, OSError, RuntimeError, pickle.UnpicklingError, ValueError) as error:
        raise ValueError(f"network_def cannot be read from {path}: {_why_unreadable(error)}") from error
    args = checkpoint.get("args") if isinstance(checkpoint, dict) else None
    return getattr(args, "network_def", None)


def _why_unreadable(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    unsafe = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
    return f"it holds objects that are not read for safety ({unsafe[1]})" if unsafe else "it is no PyTorch checkpoint"


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, torch.Tensor]:
    """Bring a checkpoint, ours or of the authors' layout, to the model's names and position grids.

    The training-only patch head is dropped where the model has none.

    Raises:
        ValueError: if the file does not cover the model, or brings tensors that it has no place for.
    """
    state_dict = state_dict.get("model", state_dict)
    state_dict = dict(state_dict.get("state_dict", state_dict))
    if "tokens" in state_dict:
        state_dict = _from_authors(state_dict, NetworkDef.parse(model.network_def))
    heads = {name: getattr(model, name) for name in ("head", "head_dist", "patch_head")}
    gone = [name for name, head in heads.items() if isinstance(head, nn.Identity)]
    gone += ["patch_head"] if model.patch_head is None else []
    state_dict = {name: value for name, value in state_dict.items() if name.split(".")[0] not in gone}
    tables = [name for name in model.state_dict() if name.split(".")[-1] == "pos_embed"]
    require_full_cover(state_dict, model, resampled=tuple(tables))
    for name in tables:
        grid = model.get_parameter(name).shape[1:3]
        state_dict[name] = resample_pos_embed(_as_grid(name, state_dict[name]), *grid)
    return state_dict


def _from_authors(state_dict: dict[str, Any], net: NetworkDef) -> dict[str, Any]:
    """Rename the authors' flat list of blocks and reductions, and take tokens and positions apart."""
    state_dict = dict(state_dict)
    tokens, positions = state_dict.pop("tokens"), state_dict.pop("pos_embed", None)
    if not _is_row(tokens) or tokens.shape[1] > 2 or not (positions is None or _is_row(positions)):
        raise ValueError("the weight file's tokens and pos_embed must be of shape (1, 1 or 2, C) and (1, positions, C)")
    prefixes = _flat_prefixes(net)
    renamed = {"cls_token": tokens[:, :1]}
    if tokens.shape[1] == 2:
        renamed["dist_token"] = tokens[:, 1:]
    if positions is not None:
        renamed["prefix_pos_embed"] = positions[:, : tokens.shape[1]]
        renamed["pos_embed"] = positions[:, tokens.shape[1] :]
    for name, value in state_dict.items():
        first, _, rest = name.partition(".")
        if first == "blocks":
            index, _, leaf = rest.partition(".")
            part, dot, tail = leaf.partition(".")
            prefix = prefixes.get(index, f"blocks.{index}")
            part = _AUTHORS_REDUCTION.get(part, part) if prefix.endswith("downsample") else part
            renamed[f"{prefix}.{part}{dot}{tail}"] = value
        elif name.startswith("patch_embed.conv_proj."):
            renamed[name.replace("conv_proj", "proj")] = value
        else:
            renamed[f"{_AUTHORS_HEADS.get(first, first)}.{rest}" if rest else name] = value
    return renamed


def _is_row(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 3 and len(value) == 1


def _flat_prefixes(net: NetworkDef) -> dict[str, str]:
    """Our name of each entry of the authors' flat list; removed blocks take an index there and have no name."""
    names, index = {}, 0
    for stage, blocks in enumerate(net.stages):
        if stage:
            names[str(index)] = f"stages.{stage}.downsample"
            index += 1
        present = 0
        for block in blocks:
            if block.exists:
                names[str(index)] = f"stages.{stage}.blocks.{present}"
                present += 1
            index += 1
    return names


def _as_grid(name: str, table: torch.Tensor) -> torch.Tensor:
    """A position table as (1, H, W, C); the authors store (1, H * W, C), of square grids."""
    if isinstance(table, torch.Tensor) and table.ndim == 4:
        return table
    side = math.isqrt(table.shape[1]) if isinstance(table, torch.Tensor) and table.ndim == 3 else 0
    if side == 0 or side**2 != table.shape[1]:
        raise ValueError(f"the weight file's {name} has no square grid of positions")
    return table.unflatten(1, (side, side))
