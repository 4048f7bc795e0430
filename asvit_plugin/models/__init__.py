"""timm backbones, one file per family; importing this package registers them all."""

import timm

from .as_vit import AsViT
from .as_vit_genotype import AsViTGenotype
from .scaled_vit import ScaledViT
from .vit_resnas import ViTResNAS
from .vit_resnas_genotype import NetworkDef

FAMILIES = ("as_vit", "scaled_vit", "vit_resnas")  # what timm calls the modules above

__all__ = ["FAMILIES", "AsViT", "AsViTGenotype", "NetworkDef", "ScaledViT", "ViTResNAS", "list_models"]


def list_models() -> list[str]:
    """Names of this package's models for ``timm.create_model``, family by family."""
    return [name for family in FAMILIES for name in timm.list_models(module=family)]
