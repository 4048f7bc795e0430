"""A net of the As-ViT space that is small enough to run in milliseconds: 64 pixels, widths 8, 16, 32 and 64."""

from typing import Any

import timm

from asvit_plugin import AsViT

GENOTYPE = "5,2,2,1|2,2,3,2|3,1,2,2|4,1,2,1|8,8"


def tiny(**kwargs: Any) -> AsViT:
    """The tiny net in eval mode, at 64 pixels with 10 classes unless ``kwargs`` say otherwise."""
    return timm.create_model("as_vit", **{**dict(genotype=GENOTYPE, img_size=64, num_classes=10), **kwargs}).eval()
