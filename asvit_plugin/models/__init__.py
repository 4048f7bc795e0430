"""timm backbones, one file per family; importing this package registers them all."""

import timm

from . import castling_pit, castling_vit  # noqa: F401 - registers their models
from .as_vit import AsViT
from .as_vit_genotype import AsViTGenotype
from .castled import castle
from .fbnetv2 import FBNetV2
from .scaled_pit import ScaledPiT
from .scaled_video_vit import ScaledVideoViT
from .scaled_vit import ScaledViT
from .video_inflation import inflate
from .vit_resnas import ViTResNAS
from .vit_resnas_genotype import NetworkDef

# What timm calls the modules above.
FAMILIES = ("as_vit", "castled", "castling_pit", "castling_vit", "fbnetv2", "scaled_pit", "scaled_vit", "vit_resnas")

__all__ = [
    "FAMILIES",
    "AsViT",
    "AsViTGenotype",
    "FBNetV2",
    "NetworkDef",
    "ScaledPiT",
    "ScaledViT",
    "ScaledVideoViT",
    "ViTResNAS",
    "castle",
    "inflate",
    "list_models",
]


def list_models() -> list[str]:
    """Names of this package's models for ``timm.create_model``, family by family."""
    return [name for family in FAMILIES for name in timm.list_models(module=family)]
