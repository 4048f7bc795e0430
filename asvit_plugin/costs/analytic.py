"""The cost of a plain ViT as a formula of its shape, for searches that must price thousands of shapes."""

from collections.abc import Sequence
from dataclasses import dataclass


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
    """

    num_heads: Sequence[int]
    mlp_ratio: Sequence[float]
    embed_dim: int
    head_dim: int = 64
    img_size: int = 224
    patch_size: int = 16
    in_chans: int = 3
    num_classes: int = 1000

    @property
    def num_patches(self) -> int:
        """Patches that cover the image."""
        return (-(-self.img_size // self.patch_size)) ** 2

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image, equal to the counted ones."""
        tokens, dim = self.num_patches + 1, self.embed_dim
        total = self.num_patches * self.in_chans * self.patch_size**2 * dim + dim * self.num_classes
        for heads, ratio in zip(self.num_heads, self.mlp_ratio):
            attn_dim, hidden = heads * self.head_dim, int(dim * ratio)
            total += 4 * tokens * dim * attn_dim + 2 * tokens**2 * attn_dim + 2 * tokens * dim * hidden
        return total

    @property
    def params(self) -> int:
        """Parameters, equal to the counted ones; positions are those of ``img_size``."""
        dim, grid = self.embed_dim, (self.img_size // self.patch_size) ** 2
        total = self.in_chans * self.patch_size**2 * dim + dim  # patch embedding
        total += dim + (grid + 1) * dim + 2 * dim + (dim + 1) * self.num_classes  # class token, positions, norm, head
        for heads, ratio in zip(self.num_heads, self.mlp_ratio):
            attn_dim, hidden = heads * self.head_dim, int(dim * ratio)
            total += (dim + 1) * 3 * attn_dim + (attn_dim + 1) * dim  # attention
            total += (dim + 1) * hidden + (hidden + 1) * dim + 4 * dim  # MLP, two norms
        return total
