"""Efficient vision-transformer backbones as ordinary timm models; importing this package registers them."""

from ._version import __version__
from .models import AsViT, AsViTGenotype, NetworkDef, ScaledViT, ViTResNAS, list_models
from .schedules import Phase, ProgressiveTokenization

__all__ = [
    "AsViT",
    "AsViTGenotype",
    "NetworkDef",
    "Phase",
    "ProgressiveTokenization",
    "ScaledViT",
    "ViTResNAS",
    "__version__",
    "list_models",
]
