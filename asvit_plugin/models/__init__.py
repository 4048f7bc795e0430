"""timm backbones, one file per family; importing this package registers them all."""

from .as_vit import AsViT
from .as_vit_genotype import AsViTGenotype
from .scaled_vit import ScaledViT
from .vit_resnas import ViTResNAS
from .vit_resnas_genotype import NetworkDef

__all__ = ["AsViT", "AsViTGenotype", "NetworkDef", "ScaledViT", "ViTResNAS"]
