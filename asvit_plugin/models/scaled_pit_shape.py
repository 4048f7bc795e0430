"""The shape arguments of a scaled PiT, checked and spread over its stages and blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..checks import check_whole
from .scaled_vit import per_block


@dataclass(frozen=True)
class StageShape:
    """Shape of one stage: channels of a token and of a head, heads and MLP ratio of each block."""

    embed_dim: int
    head_dim: int
    num_heads: list[int]
    mlp_ratio: list[float]


def stage_shapes(
    depth: Sequence[int],
    embed_dims: int | Sequence[int] | None,
    num_heads: int | Sequence[int | Sequence[int]],
    head_dim: int | Sequence[int],
    mlp_ratio: float | Sequence[float | Sequence[float]],
) -> list[StageShape]:
    """The stages that a model's arguments describe.

    Raises:
        ValueError: naming the argument that is out of range or has not one value per stage or block.
    """
    if not _is_list(depth) or not depth or not all(_is_whole(blocks) for blocks in depth):
        raise ValueError(f"depth is {depth!r}; it must be whole numbers of at least 1, one per stage")
    heads = _per_stage_and_block("num_heads", num_heads, depth, int)
    ratios = _per_stage_and_block("mlp_ratio", mlp_ratio, depth, float)
    head_dims = _per_stage("head_dim", head_dim, len(depth))
    if embed_dims is None:
        dims = _dims_of_heads(heads, head_dims)
    else:
        dims = _per_stage("embed_dims", embed_dims, len(depth))
    if any(after % before for before, after in pairwise(dims)):
        how = "" if embed_dims is not None else " (num_heads * head_dim)"
        raise ValueError(f"embed_dims is {dims}{how}; each must be a multiple of the one before")
    return [StageShape(*stage) for stage in zip(dims, head_dims, heads, ratios)]


def check_patches(patch_size: int, stride: int) -> None:
    """Refuse patches that do not reach the next one."""
    check_whole("patch_size", patch_size)
    if not _is_whole(stride) or stride > patch_size:
        raise ValueError(f"stride is {stride!r}; it must be a whole number from 1 to patch_size, which is {patch_size}")


def _dims_of_heads(heads: list[list[int]], head_dims: list[int]) -> list[int]:
    for i, stage in enumerate(heads):
        if len(set(stage)) > 1:
            raise ValueError(f"num_heads[{i}] is {stage}; where blocks differ in heads, embed_dims must be given")
    return [stage[0] * head_dim for stage, head_dim in zip(heads, head_dims)]


def _per_stage(field: str, value: Any, stages: int) -> list[int]:
    _check_length(field, value, stages)
    return per_block(field, value, stages, int)


def _per_stage_and_block(
    field: str, value: Any, depth: Sequence[int], kind: type[int] | type[float]
) -> list[list[Any]]:
    if not _is_list(value):
        return [per_block(field, value, blocks, kind) for blocks in depth]
    _check_length(field, value, len(depth))
    return [per_block(f"{field}[{i}]", each, blocks, kind) for i, (each, blocks) in enumerate(zip(value, depth))]


def _check_length(field: str, value: Any, stages: int) -> None:
    if _is_list(value) and len(value) != stages:
        raise ValueError(f"{field} has {len(value)} values; depth has {stages} stages, so it must have one or {stages}")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
