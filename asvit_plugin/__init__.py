"""Efficient vision-transformer backbones as ordinary timm models; importing this package registers them."""

from ._version import __version__
from .layers import MaskStatistics, finish, mask_statistics, switch_attention
from .models import (
    AsViT,
    AsViTGenotype,
    FBNetV2,
    NetworkDef,
    ScaledPiT,
    ScaledVideoViT,
    ScaledViT,
    ViTResNAS,
    castle,
    inflate,
    list_models,
)
from .schedules import AttentionState, AttentionSwitching, Phase, ProgressiveTokenization
from .tasks import DistillationTask, InplaceDistillationTask, PatchHeadCrossEntropy, SwitchTokenMix

__all__ = [
    "AsViT",
    "AsViTGenotype",
    "AttentionState",
    "AttentionSwitching",
    "DistillationTask",
    "FBNetV2",
    "InplaceDistillationTask",
    "MaskStatistics",
    "NetworkDef",
    "PatchHeadCrossEntropy",
    "Phase",
    "ProgressiveTokenization",
    "ScaledPiT",
    "ScaledViT",
    "ScaledVideoViT",
    "SwitchTokenMix",
    "ViTResNAS",
    "__version__",
    "castle",
    "finish",
    "inflate",
    "list_models",
    "mask_statistics",
    "switch_attention",
]
