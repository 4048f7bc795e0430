"""The As-ViT genotype: one string that fixes a net of the As-ViT space (Chen et al., ICLR 2022)."""

from dataclasses import dataclass
from typing import Any

import timm
from torch import nn

NUM_STAGES = 4
MAX_DIM = 1024  # the authors cap the channels of a stage here
_NOTATION = "'K,S,E[,L]|K,S,E[,L]|K,S,E[,L]|K,S,E[,L]|H[,width]' with whole numbers"


@dataclass(frozen=True)
class AsViTGenotype:
    """Topology and size of one As-ViT.

    Written in the authors' notation ``K,S,E,L|K,S,E,L|K,S,E,L|K,S,E,L|H,width``: per stage the kernel size K of the
    convolution that enters it (the stem, then the merges), the window split S, the MLP ratio E and the depth L; then
    the number of heads H of the last stage and the width of the first. The short form leaves L (1) and width (32) out.

    Attributes:
        kernel_sizes: Kernel side of the stem (image pixels) and of the three merges (tokens), each at least 2.
        splits: Windows per side in each stage; 1 is global attention.
        mlp_ratios: Hidden width of a stage's MLPs over its channels.
        depths: Blocks per stage.
        num_heads: Heads of the last stage; the stages have 1/8, 1/4, 1/2 and all of them.
        embed_dim: Channels of the first stage; they double with each stage, up to 1024.
    """

    kernel_sizes: tuple[int, int, int, int]
    splits: tuple[int, int, int, int]
    mlp_ratios: tuple[int, int, int, int]
    depths: tuple[int, int, int, int] = (1, 1, 1, 1)
    num_heads: int = 32
    embed_dim: int = 32

    def __post_init__(self) -> None:
        for letter, values, smallest in (
            ("K", self.kernel_sizes, 2),
            ("S", self.splits, 1),
            ("E", self.mlp_ratios, 1),
            ("L", self.depths, 1),
        ):
            if len(values) != NUM_STAGES:
                raise ValueError(f"genotype field {letter} has {len(values)} values; {NUM_STAGES} stages are needed")
            for stage, value in enumerate(values, start=1):
                _check(f"{letter}{stage} ({_MEANING[letter]})", value, smallest)
        _check("H (heads of the last stage)", self.num_heads, 8)
        _check("width (channels of the first stage)", self.embed_dim, 1)
        for stage, (dim, heads) in enumerate(zip(self.dims, self.heads), start=1):
            if dim < heads:
                raise ValueError(
                    f"genotype field width is {self.embed_dim}, which gives stage {stage} {dim} channels for {heads} "
                    f"heads; there must be at least one channel per head"
                )

    @classmethod
    def parse(cls, text: "str | AsViTGenotype") -> "AsViTGenotype":
        """Read the authors' notation, long or short form.

        Raises:
            ValueError: if a field is missing, no whole number or out of range; the message names the field.
        """
        if isinstance(text, cls):
            return text
        if not isinstance(text, str):
            raise ValueError(f"genotype is {text!r}; it must be a string such as {_NOTATION}")
        *stages, tail = (part.split(",") for part in text.strip().split("|"))
        if len(stages) != NUM_STAGES:
            raise ValueError(
                f"genotype {text!r} has {len(stages)} stages before its last field; it must have {NUM_STAGES}: "
                f"{_NOTATION}"
            )
        lengths = {len(stage) for stage in stages}
        if lengths not in ({3}, {4}):
            raise ValueError(
                f"genotype {text!r} has stages of {sorted(lengths)} fields; each stage must have 3 (K,S,E), or each "
                f"4 (K,S,E,L)"
            )
        if len(tail) > 2:
            raise ValueError(f"genotype {text!r} ends in {len(tail)} fields; the last part must be H or H,width")
        columns = [
            tuple(_whole(f"{letter}{stage}", value) for stage, value in enumerate(column, start=1))
            for letter, column in zip("KSEL", zip(*stages))
        ]
        heads_and_width = [_whole(field, value) for field, value in zip(("H", "width"), tail)]
        return cls(*columns, **dict(zip(("num_heads", "embed_dim"), heads_and_width)))

    def __str__(self) -> str:
        """The long form of the authors' notation."""
        stages = zip(self.kernel_sizes, self.splits, self.mlp_ratios, self.depths)
        return "|".join([*(",".join(map(str, stage)) for stage in stages), f"{self.num_heads},{self.embed_dim}"])

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(min(MAX_DIM, self.embed_dim * 2**stage) for stage in range(NUM_STAGES))

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each stage."""
        return tuple(self.num_heads // 2 ** (NUM_STAGES - 1 - stage) for stage in range(NUM_STAGES))

    def build(self, **kwargs: Any) -> nn.Module:
        """The timm model of this genotype; ``kwargs`` are those of ``timm.create_model("as_vit", ...)``."""
        return timm.create_model("as_vit", genotype=str(self), **kwargs)


_MEANING = {"K": "kernel size", "S": "window split", "E": "MLP ratio", "L": "depth"}


def _whole(field: str, text: str) -> int:
    if not text.strip().removeprefix("-").isdecimal():
        raise ValueError(f"genotype field {field} is {text!r}; it must be a whole number, as in {_NOTATION}")
    return int(text)


def _check(field: str, value: int, smallest: int) -> None:
    if not isinstance(value, int) or value < smallest:
        raise ValueError(f"genotype field {field} is {value!r}; it must be a whole number of at least {smallest}")
