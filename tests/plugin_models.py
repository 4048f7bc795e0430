"""The plugin's models as timm lists them, and a cheap version of each for tests that run it."""

import math
from typing import Any

import timm
import torch
from timm.models import MobileNetV3
from torch import nn

from asvit_plugin.models import FAMILIES

_SMALL_VIT: dict[str, Any] = dict(depth=4, num_heads=2, head_dim=8, mlp_ratio=2, img_size=64)

# Per family (file of asvit_plugin.models): arguments that make any of its models run in milliseconds.
CHEAP: dict[str, dict[str, Any]] = {
    "as_vit": dict(genotype="5,2,2,1|2,2,3,2|3,1,2,2|4,1,2,1|8,8", img_size=64),
    "castled": dict(base="scaled_vit", **_SMALL_VIT),
    "castling_pit": dict(depth=(1, 2, 1), num_heads=(1, 2, 4), head_dim=8, mlp_ratio=2, img_size=64),
    "castling_vit": _SMALL_VIT,
    "fbnetv2": dict(
        arch_def=[
            ["ds_r1_k3_s1_e1_c8_nre"],
            ["ir_r1_k5_s2_e2_c8_nre"],
            ["ir_r2_k3_s2_e2_c16_se0.25_nre"],
            ["ir_r1_k5_s2_e2_c24_nhs", "cn_r1_k1_s1_c32_nre"],
            ["ir_r1_k3_s2_e2_c40_se0.25_nhs", "ir_r1_k3_s1_e2_c40_nhs"],
            ["cn_r1_k1_s1_c48_nhs"],
        ],
        num_features=64,
    ),
    "scaled_pit": dict(depth=(1, 2, 1), num_heads=(1, 2, 4), head_dim=16, mlp_ratio=2, img_size=64),
    "scaled_vit": _SMALL_VIT,
    "vit_resnas": dict(
        network_def="((4, 16), (1, (16, 2, 8), (16, 32), 1), (3, 16, 24), (1, (24, 3, 4), (24, 40), 1), "
        "(1, (24, 3, 8), (24, 40), 1), (3, 24, 32), (1, (32, 4, 8), (32, 64), 0), (1, (32, 4, 8), (32, 64), 1), "
        "(2, 32, 1000))",
        img_size=64,
    ),
}
IMAGE_SIZE = 64

# With cheap arguments, these families' models are the same net; test_castled.py and test_fbnetv2.py build them all.
_ONE_OF = {
    "castling_pit": "castling_pit_ti_224",
    "castling_vit": "castling_deit_tiny_patch16_224",
    "fbnetv2": "fbnetv2_f1",
}
MODELS = {
    name: family for family in FAMILIES for name in timm.list_models(module=family) if name == _ONE_OF.get(family, name)
}
SIZED = [name for name, family in MODELS.items() if "img_size" in CHEAP[family]]  # the others have no positions


def cheap(name: str, **kwargs: Any) -> nn.Module:
    """The model called ``name`` with its family's cheap arguments, 10 classes and eval mode."""
    return timm.create_model(name, **{**CHEAP[MODELS[name]], "num_classes": 10, **kwargs}).eval()


def images(batch: int = 2, height: int = IMAGE_SIZE, width: int = IMAGE_SIZE) -> torch.Tensor:
    return torch.randn(batch, 3, height, width)


def grid_size(name: str, model: nn.Module, height: int, width: int, reduction: int) -> tuple[int, int]:
    """Rows and columns of the features at ``reduction`` that an image of height x width pixels gives."""
    if MODELS[name] in ("castling_pit", "scaled_pit"):  # overlapping patches without padding around the image
        patch_size, stride = model.patch_embed.patch_size, model.patch_embed.stride
        first = [math.ceil(max(side - patch_size, 0) / stride) + 1 for side in (height, width)]
        return tuple(math.ceil(side * stride / reduction) for side in first)
    return math.ceil(height / reduction), math.ceil(width / reduction)


def grid_of(model: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """What ``forward_features`` gives, without prefix tokens, as (B, positions, C)."""
    layout = getattr(model, "output_fmt", "NLC")
    if layout == "NHWC":
        return features.flatten(1, 2)
    if layout == "NCHW":
        return features.flatten(2).transpose(1, 2)
    return features[:, model.num_prefix_tokens :]


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Blocks in the order in which they run: children of every ``blocks`` container, or of the stages in it."""
    containers = [(name, module) for name, module in model.named_modules() if name.split(".")[-1] == "blocks"]
    if isinstance(model, MobileNetV3):
        containers = [(f"blocks.{index}", stage) for index, stage in model.blocks.named_children()]
    return {f"{name}.{index}": block for name, container in containers for index, block in container.named_children()}
