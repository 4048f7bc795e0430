"""Nets of several families that are small enough to be measured in a test."""

from typing import Any

import timm
from torch import nn

IMG_SIZE = 32
AS_VIT = dict(genotype="5,2,2,1|2,2,3,1|3,1,2,1|2,1,2,1|8,8", img_size=64)
NETS: dict[str, dict[str, Any]] = {
    "as_vit": AS_VIT | dict(img_size=IMG_SIZE),
    "vit_resnas": dict(
        network_def="((4, 16), (1, (16, 2, 8), (16, 32), 1), (3, 16, 32), (1, (32, 2, 16), (32, 64), 1), (2, 32, 10))",
        img_size=56,
    ),
    "scaled_vit": dict(img_size=IMG_SIZE, patch_size=8, depth=2, num_heads=2, head_dim=8),
    "scaled_pit": dict(img_size=IMG_SIZE, patch_size=8, stride=4, depth=(1, 1, 1), head_dim=4),
    "vit_tiny_patch16_224": dict(img_size=IMG_SIZE, embed_dim=16, depth=2, num_heads=2, init_values=1e-5),
    "deit_tiny_distilled_patch16_224": dict(img_size=IMG_SIZE, embed_dim=16, depth=2, num_heads=2),
    "pit_ti_224": dict(img_size=IMG_SIZE, base_dims=(4, 4, 4), depth=(1, 1, 1)),
    "swin_tiny_patch4_window7_224": dict(
        img_size=IMG_SIZE, embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=4, drop_path_rate=0.1
    ),
    "convnext_atto": dict(dims=(8, 8, 16, 16), depths=(1, 1, 1, 1)),
    "resnet18": dict(channels=(8, 8, 16, 16), layers=(1, 1, 1, 1)),
}
TRANSFORMERS = [name for name in NETS if name not in ("convnext_atto", "resnet18")]


def make(name: str, **kwargs: Any) -> nn.Module:
    """A net by name, with 10 classes."""
    return timm.create_model(name, **{**NETS[name], "num_classes": 10, **kwargs})


def side(name: str) -> int:
    return NETS[name].get("img_size", IMG_SIZE)
