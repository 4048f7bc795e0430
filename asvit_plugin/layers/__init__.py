"""Blocks that more than one family uses."""

from .patch_embed import OverlapPatchEmbed
from .patch_merging import PatchMerging
from .pos_embed import add_pos_embed, resample_pos_embed
from .windows import window_partition, window_reverse

__all__ = [
    "OverlapPatchEmbed",
    "PatchMerging",
    "add_pos_embed",
    "resample_pos_embed",
    "window_partition",
    "window_reverse",
]
