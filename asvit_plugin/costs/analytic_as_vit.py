"""The cost of an As-ViT as a formula of its genotype, for searches that must price thousands of nets."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .analytic import block_params

if TYPE_CHECKING:
    from ..models.as_vit_genotype import AsViTGenotype


@dataclass(frozen=True)
class AsViTShape:
    """Shape of an As-ViT whose windows are cut by number (the "split" policy).

    Attributes:
        genotype: The net.
        img_size: Side of the square image in pixels; it is padded to what the windows divide.
        stem_stride: Pixels per token of the first stage.
        in_chans: Image channels.
        num_classes: Classes, at least 1.
        pos_embed: With a position embedding.
    """

    genotype: "AsViTGenotype"
    img_size: int = 224
    stem_stride: int = 4
    in_chans: int = 3
    num_classes: int = 1000
    pos_embed: bool = True

    @property
    def grids(self) -> list[int]:
        """Tokens per side of each stage, padding included."""
        strides = [self.stem_stride * 2**stage for stage in range(len(self.genotype.dims))]
        unit = math.lcm(*(stride * split for stride, split in zip(strides, self.genotype.splits)))
        side = -(-self.img_size // unit) * unit
        return [side // stride for stride in strides]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image, equal to the counted ones."""
        total = sum(grid**2 * inputs * dim for grid, (inputs, dim) in zip(self.grids, self._entries()))
        for stage, dim, attn_dim, hidden in self._blocks():
            tokens, windows = self.grids[stage] ** 2, self.genotype.splits[stage] ** 2
            total += tokens * (4 * dim * attn_dim + 2 * (tokens // windows) * attn_dim + 2 * dim * hidden)
        last = self.genotype.dims[-1]
        return total + last * last + last * self.num_classes  # the head has a hidden layer

    @property
    def params(self) -> int:
        """Parameters, equal to the counted ones; positions are those of ``img_size``."""
        (stem, first), *merges = self._entries()
        total = (stem + 3) * first  # weights, bias, norm
        total += self.pos_embed * (-(-self.img_size // self.stem_stride)) ** 2 * first
        total += sum(inputs * dim + 2 * inputs for inputs, dim in merges)  # weights without bias, norm
        total += sum(block_params(dim, attn_dim, hidden) for _, dim, attn_dim, hidden in self._blocks())
        last = self.genotype.dims[-1]
        return total + 2 * last + (last + 1) * (last + self.num_classes)  # norm, head

    def _entries(self) -> list[tuple[int, int]]:
        """Numbers that a token of each stage is computed from, and its channels: of the stem, then the merges."""
        dims = self.genotype.dims
        before = (self.in_chans, *dims)
        return [(count * kernel**2, dim) for count, kernel, dim in zip(before, self.genotype.kernel_sizes, dims)]

    def _blocks(self) -> Iterator[tuple[int, int, int, int]]:
        """Stage, channels, attention width and MLP width of every block."""
        net = self.genotype
        for stage, (dim, heads, ratio) in enumerate(zip(net.dims, net.heads, net.mlp_ratios)):
            for _ in range(net.depths[stage]):
                yield stage, dim, heads * (dim // heads), int(dim * ratio)
