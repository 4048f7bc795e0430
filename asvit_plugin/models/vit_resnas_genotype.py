"""ViT-ResNAS's network definition: the tuple that fixes a multi-stage ViT (Liao, Karaman, Sze, arXiv 2109.00642)."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PATCH_SIZE = 14  # pixels; every definition has it
_LINEAR, _CONV, _CONV_WIDTH = 0, 4, 5  # kinds of stem
_BLOCK, _HEAD, _REDUCTION = 1, 2, 3


@dataclass(frozen=True)
class BlockDef:
    """One transformer block: heads of ``head_dim`` channels each, and the hidden width of its MLP.

    A block that a search removed (``exists=False``) still counts for the drop-path rates of the others.
    """

    num_heads: int
    head_dim: int
    mlp_hidden_dim: int
    exists: bool = True


@dataclass(frozen=True)
class NetworkDef:
    """A ViT-ResNAS net: its stem, and the width and blocks of each stage.

    Written in the authors' notation, a tuple of tuples: ``(4, D)`` is a convolutional stem 24 channels wide
    (``(5, D, mid)`` of another width, ``(0, D)`` one linear patch embedding), ``(1, (D, heads, head_dim), (D, mlp),
    exists)`` a block, ``(3, D_in, D_out)`` a spatial reduction between stages, and last ``(2, D, classes)`` the head.

    Attributes:
        dims: Channels of each stage.
        stages: Blocks of each stage.
        stem_width: Channels inside the convolutional stem; 0 for the linear one.
        num_classes: Classes that the definition names; a model's own ``num_classes`` wins.
    """

    dims: tuple[int, ...]
    stages: tuple[tuple[BlockDef, ...], ...]
    stem_width: int = 24
    num_classes: int = 1000

    @classmethod
    def parse(cls, definition: "str | Sequence[Any] | NetworkDef") -> "NetworkDef":
        """Read the authors' notation, as text or as tuples.

        Raises:
            ValueError: naming the entry that is unknown, incomplete or does not follow from the one before it.
        """
        if isinstance(definition, cls):
            return definition
        entries = _literal(definition)
        stem_dim, stem_width = _parse_stem(entries[0])
        dims, stages = [stem_dim], [[]]
        for index, entry in enumerate(entries[1:-1], start=1):
            if entry[:1] == (_BLOCK,):
                stages[-1].append(_parse_block(entry, index, dims[-1]))
            elif entry[:1] == (_REDUCTION,):
                dims.append(_parse_reduction(entry, index, dims[-1]))
                stages.append([])
            else:
                raise ValueError(f"{_at(index, entry)}; it must begin with 1 (block) or 3 (spatial reduction)")
        head = _numbers(entries[-1], 3, len(entries) - 1, "(2, D, classes)")
        if head[0] != _HEAD or head[1] != dims[-1]:
            raise ValueError(f"{_at(len(entries) - 1, entries[-1])}; the last must be (2, {dims[-1]}, classes)")
        return cls(tuple(dims), tuple(map(tuple, stages)), stem_width, head[2])

    @classmethod
    def from_table(cls, dims: tuple[int, ...], head_dims: tuple[int, ...], stages: tuple[str, ...]) -> "NetworkDef":
        """A net from text such as ``"3/704 (3/576)"``: per block heads / MLP width, removed blocks in brackets."""
        blocks = tuple(
            tuple(
                BlockDef(int(heads), head_dim, int(mlp), exists=not text.startswith("("))
                for text in stage.split()
                for heads, mlp in [text.strip("()").split("/")]
            )
            for head_dim, stage in zip(head_dims, stages)
        )
        return cls(dims, blocks)

    def __str__(self) -> str:
        """The authors' notation."""
        stem = {0: (_LINEAR, self.dims[0]), 24: (_CONV, self.dims[0])}
        entries: list[tuple] = [stem.get(self.stem_width, (_CONV_WIDTH, self.dims[0], self.stem_width))]
        for index, (dim, stage) in enumerate(zip(self.dims, self.stages)):
            if index:
                entries.append((_REDUCTION, self.dims[index - 1], dim))
            for block in stage:
                attn, mlp = (dim, block.num_heads, block.head_dim), (dim, block.mlp_hidden_dim)
                entries.append((_BLOCK, attn, mlp, int(block.exists)))
        return str((*entries, (_HEAD, self.dims[-1], self.num_classes)))


def _literal(definition: str | Sequence[Any]) -> tuple[tuple, ...]:
    if isinstance(definition, str):
        try:
            definition = ast.literal_eval(definition)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"network_def is {definition!r}; it must be a tuple of tuples of whole numbers") from None
    entries = _tuples(definition)
    if not isinstance(entries, tuple) or not all(isinstance(entry, tuple) for entry in entries) or len(entries) < 3:
        raise ValueError(f"network_def is {definition!r}; it must be a tuple of tuples: a stem, blocks and a head")
    return entries


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, (list, tuple)) else value


def _at(index: int, entry: Any) -> str:
    return f"network_def entry {index} is {entry!r}"


def _numbers(entry: Any, length: int, index: int, form: str) -> tuple[int, ...]:
    """The entry's numbers, where it has as many as it must and all are positive (the first may be 0)."""
    whole = isinstance(entry, tuple) and len(entry) == length and all(type(number) is int for number in entry)
    if not whole or entry[0] < 0 or min(entry[1:]) < 1:
        raise ValueError(f"{_at(index, entry)}; it must be {form} with whole numbers from 1 up")
    return entry


def _parse_stem(entry: tuple) -> tuple[int, int]:
    """Channels behind and inside the stem (0 for the linear one)."""
    kind = entry[0] if entry else None
    if kind == _LINEAR:
        return _numbers(entry, 2, 0, "(0, D)")[1], 0
    if kind == _CONV:
        return _numbers(entry, 2, 0, "(4, D)")[1], 24
    if kind == _CONV_WIDTH:
        return _numbers(entry, 3, 0, "(5, D, width)")[1:]
    raise ValueError(f"{_at(0, entry)}; it must be a stem: (4, D), (5, D, width) or (0, D)")


def _parse_block(entry: tuple, index: int, dim: int) -> BlockDef:
    form = f"(1, ({dim}, heads, head_dim), ({dim}, mlp), 0 or 1)"
    if len(entry) != 4 or entry[3] not in (0, 1):
        raise ValueError(f"{_at(index, entry)}; it must be {form}")
    attn = _numbers(entry[1], 3, index, f"the attention part of {form}")
    mlp = _numbers(entry[2], 2, index, f"the MLP part of {form}")
    if attn[0] != dim or mlp[0] != dim:
        raise ValueError(f"{_at(index, entry)}; the stage has {dim} channels, so it must be {form}")
    return BlockDef(attn[1], attn[2], mlp[1], bool(entry[3]))


def _parse_reduction(entry: tuple, index: int, dim: int) -> int:
    _, dim_in, dim_out = _numbers(entry, 3, index, "(3, D_in, D_out)")
    if dim_in != dim or dim_out < dim_in:
        raise ValueError(f"{_at(index, entry)}; it must be (3, {dim}, D_out) with D_out of at least {dim}")
    return dim_out
