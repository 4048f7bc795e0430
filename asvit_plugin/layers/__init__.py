"""Blocks that more than one family uses."""

from .castling import castle_blocks, castled_attention, switch_attention
from .finishing import MaskStatistics, finish, mask_statistics
from .linear_angular import linear_angular
from .linear_angular_attention import LinearAngularAttention
from .patch_embed import OverlapPatchEmbed
from .patch_merging import PatchMerging
from .pos_embed import add_pos_embed, resample_pos_embed
from .sync_batch_norm import SyncBatchNorm2d, convert_sync_batchnorm
from .windows import window_partition, window_reverse

__all__ = [
    "LinearAngularAttention",
    "MaskStatistics",
    "OverlapPatchEmbed",
    "PatchMerging",
    "SyncBatchNorm2d",
    "add_pos_embed",
    "castle_blocks",
    "castled_attention",
    "convert_sync_batchnorm",
    "finish",
    "linear_angular",
    "mask_statistics",
    "resample_pos_embed",
    "switch_attention",
    "window_partition",
    "window_reverse",
]
