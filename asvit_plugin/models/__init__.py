"""timm backbones, one file per family; importing this package registers them all."""

from .as_vit import AsViT
from .as_vit_genotype import AsViTGenotype

__all__ = ["AsViT", "AsViTGenotype"]
