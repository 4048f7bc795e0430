"""The cost of a plain ViT or PiT as a formula of its shape, for searches that must price thousands of shapes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

_BY_STAGE = ("num_heads", "mlp_ratio", "head_dim")


@dataclass(frozen=True)
class ViTShape:
    """Shape of a plain ViT with a class token, learned positions and biases, as ``scaled_vit`` builds it.

    Attributes:
        num_heads: Heads of each block; its length is the depth.
        mlp_ratio: Hidden width of each block's MLP over ``embed_dim``.
        embed_dim: Channels of a token.
        head_dim: Channels per head.
        img_size: Side of the square image in pixels.
        patch_size: Side of a patch in pixels; the image is padded to a multiple of it.
        in_chans: Image channels.
        num_classes: Classes.
        token_stride: The blocks see every so many-th row and column of the patches.

    Raises:
        ValueError: ``num_heads`` and ``mlp_ratio`` are of different numbers of blocks.
    """

    num_heads: Sequence[int]
    mlp_ratio: Sequence[float]
    embed_dim: int
    head_dim: int = 64
    img_size: int = 224
    patch_size: int = 16
    in_chans: int = 3
    num_classes: int = 1000
    token_stride: int = 1

    def __post_init__(self) -> None:
        check_lengths("num_heads", len(self.num_heads), "mlp_ratio", len(self.mlp_ratio), "block")

    @property
    def num_patches(self) -> int:
        """Patches that cover the image."""
        return (-(-self.img_size // self.patch_size)) ** 2

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image, equal to the counted ones."""
        side = -(-self.img_size // self.patch_size)
        tokens, dim = (-(-side // self.token_stride)) ** 2 + 1, self.embed_dim
        total = self.num_patches * self.in_chans * self.patch_size**2 * dim + dim * self.num_classes
        for heads, ratio in zip(self.num_heads, self.mlp_ratio):
            total += block_macs(tokens, dim, heads * self.head_dim, int(dim * ratio))
        return total

    @property
    def params(self) -> int:
        """Parameters, equal to the counted ones; positions are those of ``img_size``."""
        dim, grid = self.embed_dim, (self.img_size // self.patch_size) ** 2
        total = self.in_chans * self.patch_size**2 * dim + dim  # patch embedding
        total += dim + (grid + 1) * dim + 2 * dim + (dim + 1) * self.num_classes  # class token, positions, norm, head
        for heads, ratio in zip(self.num_heads, self.mlp_ratio):
            total += block_params(dim, heads * self.head_dim, int(dim * ratio))
        return total


@dataclass(frozen=True)
class PiTShape:
    """Shape of a PiT, as ``scaled_pit`` builds it.

    Attributes:
        num_heads: Heads of each block, one sequence per stage; their lengths are the depths.
        mlp_ratio: Hidden width of each block's MLP over the stage's channels, likewise.
        embed_dims: Channels of a token, per stage.
        head_dim: Channels per head, one number or one per stage.
        img_size: Side of the square image in pixels.
        patch_size: Side of a patch in pixels.
        stride: Pixels from one patch to the next; the image is padded until patches cover it.
        in_chans: Image channels.
        num_classes: Classes.
        distilled: With a distillation token and its head.

    Raises:
        ValueError: Two of them are of different numbers of stages, or of blocks of a stage.
    """

    num_heads: Sequence[Sequence[int]]
    mlp_ratio: Sequence[Sequence[float]]
    embed_dims: Sequence[int]
    head_dim: int | Sequence[int] = 32
    img_size: int = 224
    patch_size: int = 16
    stride: int = 8
    in_chans: int = 3
    num_classes: int = 1000
    distilled: bool = False

    def __post_init__(self) -> None:
        for name in ("num_heads", "mlp_ratio") if isinstance(self.head_dim, int) else _BY_STAGE:
            check_lengths("embed_dims", len(self.embed_dims), name, len(getattr(self, name)), "stage")
        for stage, (heads, ratios) in enumerate(zip(self.num_heads, self.mlp_ratio)):
            check_lengths(f"num_heads[{stage}]", len(heads), f"mlp_ratio[{stage}]", len(ratios), "block")

    @property
    def num_patches(self) -> list[int]:
        """Patch tokens of each stage; a pooling halves the sides, rounding up."""
        side = -(-max(self.img_size - self.patch_size, 0) // self.stride) + 1
        return [(-(-side // 2**stage)) ** 2 for stage in range(len(self.embed_dims))]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image, equal to the counted ones."""
        dims, patches, prefix = self.embed_dims, self.num_patches, 1 + self.distilled
        total = patches[0] * self.in_chans * self.patch_size**2 * dims[0] + prefix * dims[-1] * self.num_classes
        for before, after, count in zip(dims, dims[1:], patches[1:]):
            total += 9 * count * after + prefix * before * after  # pooling: depthwise convolution, prefix tokens
        for stage, dim, attn_dim, hidden in self._blocks():
            total += block_macs(prefix + patches[stage], dim, attn_dim, hidden)
        return total

    @property
    def params(self) -> int:
        """Parameters, equal to the counted ones; positions are those of ``img_size``."""
        dims, prefix = self.embed_dims, 1 + self.distilled
        total = (self.in_chans * self.patch_size**2 + 1) * dims[0]  # patch embedding
        total += (prefix + self.num_patches[0]) * dims[0]  # prefix tokens, positions
        total += 2 * dims[-1] + prefix * (dims[-1] + 1) * self.num_classes  # norm, heads
        total += sum(10 * after + (before + 1) * after for before, after in pairwise(dims))  # poolings
        return total + sum(block_params(dim, attn_dim, hidden) for _, dim, attn_dim, hidden in self._blocks())

    def _blocks(self) -> Iterator[tuple[int, int, int, int]]:
        """Stage, channels, attention width and MLP width of every block."""
        head_dims = [self.head_dim] * len(self.embed_dims) if isinstance(self.head_dim, int) else self.head_dim
        for stage, (dim, head_dim) in enumerate(zip(self.embed_dims, head_dims)):
            for heads, ratio in zip(self.num_heads[stage], self.mlp_ratio[stage]):
                yield stage, dim, heads * head_dim, int(dim * ratio)


def check_lengths(name: str, length: int, other: str, other_length: int, part: str) -> None:
    """Refuse two attributes that do not have one number per part each."""
    if length != other_length:
        raise ValueError(f"{name} has {length} and {other} {other_length}; both must have one value per {part}")


def block_macs(tokens: int, dim: int, attn_dim: int, hidden: int) -> int:
    """Multiply-accumulates of a transformer block: projections, attention and MLP."""
    return 4 * tokens * dim * attn_dim + 2 * tokens**2 * attn_dim + 2 * tokens * dim * hidden


def block_params(dim: int, attn_dim: int, hidden: int) -> int:
    """Parameters of a transformer block with biases: projections, MLP and two norms."""
    return (dim + 1) * 3 * attn_dim + (attn_dim + 1) * dim + (dim + 1) * hidden + (hidden + 1) * dim + 4 * dim
