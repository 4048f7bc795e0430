"""FBNetV2: small convolutional nets whose widths, expansions and image size were found by channel masking.

Wan et al.: "FBNetV2: Differentiable Neural Architecture Search for Spatial and Channel Dimensions", CVPR 2020
(arXiv 2004.05565). The nets are made of timm's EfficientNet blocks with MobileNetV3's head.
"""

from functools import partial
from typing import Any

import torch
from timm.layers import LayerType, get_act_layer
from timm.models import MobileNetV3, generate_default_cfgs, register_model
from torch import nn

from .._timm_private import (
    EfficientNetBuilder,
    SqueezeExcite,
    decode_arch_def,
    efficientnet_init_weights,
    round_channels,
)
from ._build import build_model, check_head, imagenet_cfg, require_full_cover

ArchDef = list[list[str]]
OUTPUT_STRIDES = (8, 16, 32)
GLOBAL_POOLS = tuple(f"{fast}{kind}" for fast in ("", "fast") for kind in ("avg", "max", "avgmax", "catavgmax", ""))
_BLOCKS = ("ds", "ir", "er", "cn")
_ACTIVATIONS = ("nre", "nr6", "nhs", "nsw", "nmi")

# Stages in timm's notation of blocks. The search chose the expanded widths, in multiples of 8, not the ratios "e":
# those are as short as they can be for timm's rounding to give these widths. A searched "skip" is nothing between
# equal widths and a 1x1 convolution ("cn") between different ones.
ARCH_F1: ArchDef = [
    ["ds_r1_k5_s1_e1_c8_nre"],
    ["ir_r1_k5_s2_e6_c24_nre", "ir_r1_k5_s1_e4.67_c24_nre"],
    ["ir_r1_k5_s2_e5.33_c32_se0.25_nre", "ir_r1_k5_s1_e4.5_c24_se0.25_nre"],
    [
        "ir_r1_k5_s2_e5.67_c56_nhs",
        "ir_r1_k3_s1_e4.14_c56_nhs",
        "ir_r1_k3_s1_e5.14_c56_se0.25_nhs",
        "cn_r1_k1_s1_c80_nre",
        "ir_r1_k5_s1_e4.5_c80_se0.25_nhs",
        "ir_r1_k5_s1_e1.8_c80_se0.25_nhs",
    ],
    [
        "ir_r1_k3_s2_e4.6_c144_se0.25_nhs",
        "ir_r1_k5_s1_e5.83_c144_se0.25_nhs",
        "ir_r1_k5_s1_e6.89_c144_se0.25_nhs",
        "cn_r1_k1_s1_c224_nre",
    ],
    ["cn_r1_k1_s1_c1344_nhs"],
]
ARCH_F4: ArchDef = [
    ["ds_r1_k3_s1_e1_c16_nhs"],
    ["ir_r1_k5_s2_e5.5_c24_nhs", "ir_r2_k5_s1_e2_c24_nhs"],
    [
        "ir_r1_k5_s2_e5.33_c32_se0.25_nre",
        "ir_r1_k5_s1_e3.5_c32_se0.25_nre",
        "ir_r2_k5_s1_e4.5_c32_se0.25_nre",
    ],
    [
        "ir_r1_k5_s2_e5.75_c64_nhs",
        "ir_r1_k3_s1_e2.13_c64_nhs",
        "ir_r1_k3_s1_e5_c104_nhs",
        "ir_r1_k5_s1_e2.54_c104_se0.25_nhs",
        "ir_r1_k5_s1_e1.77_c104_se0.25_nhs",
        "ir_r1_k5_s1_e3.77_c112_se0.25_nhs",
    ],
    [
        "ir_r1_k3_s2_e5.57_c184_se0.25_nhs",
        "ir_r1_k5_s1_e2.83_c184_se0.25_nhs",
        "ir_r1_k5_s1_e4.87_c184_se0.25_nhs",
        "cn_r1_k1_s1_c224_nre",
    ],
    ["cn_r1_k1_s1_c1344_nhs"],
]
ARCH_L1: ArchDef = [
    ["ds_r1_k3_s1_e1_c16_nhs"],
    ["ir_r1_k5_s2_e5.5_c24_nhs", "ir_r1_k5_s1_e2_c24_nhs", "ir_r1_k3_s1_e2_c24_nhs", "ir_r1_k5_s1_e2_c24_nhs"],
    [
        "ir_r1_k5_s2_e5.33_c40_se0.25_nhs",
        "ir_r1_k5_s1_e3.6_c32_se0.25_nhs",
        "ir_r2_k5_s1_e4.5_c32_se0.25_nhs",
    ],
    [
        "ir_r1_k5_s2_e5.75_c64_nhs",
        "ir_r1_k3_s1_e2.13_c64_nhs",
        "ir_r1_k3_s1_e3.13_c64_nhs",
        "ir_r1_k3_s1_e5_c112_nhs",
        "ir_r1_k5_s1_e2.5_c112_se0.25_nhs",
        "ir_r1_k5_s1_e1.79_c112_se0.25_nhs",
        "ir_r1_k5_s1_e2.79_c112_se0.25_nhs",
        "ir_r2_k5_s1_e3.79_c112_se0.25_nhs",
    ],
    [
        "ir_r1_k3_s2_e5.57_c184_se0.25_nhs",
        "ir_r2_k5_s1_e2.83_c184_se0.25_nhs",
        "ir_r2_k5_s1_e4.87_c184_se0.25_nhs",
        "cn_r1_k1_s1_c224_nre",
    ],
    ["cn_r1_k1_s1_c1344_nhs"],
]


class FBNetV2(MobileNetV3):
    """FBNetV2 backbone and classifier: a stem of stride 2, stages of inverted residuals, and MobileNetV3's head.

    Squeeze-and-excitation has a quarter of the expanded width, in multiples of 8, the block's activation inside and a
    hard sigmoid at its end. The last batch norm of a residual branch starts at 0, as the authors' does; the other
    weights start as timm's EfficientNets do.

    Args:
        arch_def: Blocks by stage, in timm's notation: "ir_r1_k5_s2_e6_c24_se0.25_nhs" is one inverted residual with a
            5x5 kernel, stride 2, expansion 6, 24 channels, squeeze-and-excitation and hard-swish; "ds" has no
            expansion, "cn" is a convolution.
        num_classes: Classes; 0 removes the classifier.
        in_chans: Image channels.
        stem_size: Channels of the stem.
        num_features: Width of the layer between pooling and classifier.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
        output_stride: 32, or less for a net whose last stages are dilated and not reduced.
        global_pool: timm's name of a pooling, or "" for none.
        norm_layer: In the place of batch norm.
        device: Where parameters are made.
        dtype: Type of the parameters.

    Raises:
        ValueError: for a block or output stride that there is not.
    """

    output_fmt = "NCHW"

    def __init__(
        self,
        arch_def: ArchDef = ARCH_F1,
        num_classes: int = 1000,
        in_chans: int = 3,
        stem_size: int = 8,
        num_features: int = 1600,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
        global_pool: str = "avg",
        norm_layer: LayerType = nn.BatchNorm2d,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_head(num_classes, global_pool, GLOBAL_POOLS, in_chans, drop_path_rate)
        if output_stride not in OUTPUT_STRIDES:
            raise ValueError(f"output_stride is {output_stride!r}; it must be one of {OUTPUT_STRIDES}")
        rounding = partial(round_channels, round_limit=0.95)
        blocks = dict(
            act_layer=get_act_layer("hard_swish"),
            norm_layer=norm_layer,
            se_layer=partial(SqueezeExcite, gate_layer="hard_sigmoid", rd_round_fn=rounding),
            se_from_exp=True,
            round_chs_fn=rounding,
            drop_path_rate=drop_path_rate,
            device=device,
            dtype=dtype,
        )
        super().__init__(
            block_args=decode_stages(arch_def),
            num_classes=num_classes,
            in_chans=in_chans,
            stem_size=stem_size,
            num_features=num_features,
            head_bias=False,
            drop_rate=drop_rate,
            global_pool=global_pool,
            **blocks,
        )
        if output_stride != 32:  # MobileNetV3 takes none, its builder does
            builder = EfficientNetBuilder(output_stride=output_stride, **blocks)
            self.blocks = nn.Sequential(*builder(self.conv_stem.out_channels, decode_stages(arch_def)))
            self.feature_info = builder.features
            efficientnet_init_weights(self.blocks)
        self._start_as_identity()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier.

        Args:
            num_classes: Classes of the new one; 0 removes it.
            global_pool: New pooling; None keeps the present one. The layer behind it keeps its width, so a pooling that
                concatenates two gives way to its like only.

        Raises:
            ValueError: for a number of classes that there is not, or a pooling that does not fit.
        """
        present = self.global_pool.pool_type
        fitting = tuple(name for name in GLOBAL_POOLS if name.endswith("catavgmax") == present.endswith("catavgmax"))
        check_head(num_classes, present if global_pool is None else global_pool, fitting)
        super().reset_classifier(num_classes, global_pool)

    def _start_as_identity(self) -> None:
        for stage in self.blocks:
            for block in stage:
                if block.has_skip:
                    last = next(name for name in ("bn3", "bn2", "bn1") if hasattr(block, name))
                    nn.init.zeros_(block.get_submodule(last).weight)


def decode_stages(arch_def: ArchDef) -> list[list[dict[str, Any]]]:
    """What timm's builder makes blocks of, from their notation by stage.

    Raises:
        ValueError: naming a block that timm cannot read, or that is none of this net's kinds.
    """
    stages = [[args for block in stage for args in _decode_block(block)] for stage in arch_def]
    if not stages or not all(stages):
        raise ValueError(f"arch_def is {arch_def!r}; it must have a stage, and every stage a block")
    return stages


def _decode_block(block: str) -> list[dict[str, Any]]:
    try:
        (repeats,) = decode_arch_def([[block]])
    except (AssertionError, KeyError, ValueError):
        repeats = []
    if not repeats or repeats[0]["stride"] not in (1, 2):
        raise ValueError(
            f"arch_def has the block {block!r}; it must be in timm's notation, such as 'ir_r1_k5_s2_e6_c24_se0.25_nhs'"
        )
    kind, *parts = block.split("_")
    if kind not in _BLOCKS:
        raise ValueError(f"arch_def has the block {block!r}; its kind must be one of {', '.join(_BLOCKS)}")
    unknown = [part for part in parts if part.startswith("n") and part not in (*_ACTIVATIONS, "noskip")]
    if unknown:
        raise ValueError(
            f"arch_def has the block {block!r} with {unknown[0]!r}; activations are {', '.join(_ACTIVATIONS)}"
        )
    return repeats


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """A file must cover the model.

    Raises:
        ValueError: if it does not.
    """
    require_full_cover(state_dict, model)
    return state_dict


def _cfg(size: int, resize: int) -> dict[str, Any]:
    """The authors' preprocessing: the shorter side to ``resize`` pixels (bilinear), a centre crop of ``size``."""
    return imagenet_cfg(
        input_size=(3, size, size),
        pool_size=(size // 32, size // 32),
        crop_pct=size / resize,
        interpolation="bilinear",
        first_conv="conv_stem",
        classifier="classifier",
        paper_ids="arXiv:2004.05565",
        paper_name="FBNetV2: Differentiable Neural Architecture Search for Spatial and Channel Dimensions",
        origin_url="https://github.com/facebookresearch/mobile-vision",
    )


# The authors' weights (CC-BY-NC-4.0) are for their own code's names of parameters and are not converted.
default_cfgs = generate_default_cfgs(
    {
        "fbnetv2_f1": _cfg(128, 151),
        "fbnetv2_f2": _cfg(160, 179),
        "fbnetv2_f3": _cfg(192, 208),
        "fbnetv2_f4": _cfg(224, 251),
        "fbnetv2_l1": _cfg(224, 256),
        "fbnetv2_l2": _cfg(256, 287),
    }
)


def _create_fbnetv2(variant: str, pretrained: bool = False, **kwargs: Any) -> FBNetV2:
    return build_model(
        FBNetV2,
        variant,
        pretrained,
        features=(0, 1, 2, 3, 4),
        pretrained_filter_fn=checkpoint_filter_fn,
        **kwargs,
    )


@register_model
def fbnetv2_f1(pretrained: bool = False, **kwargs: Any) -> FBNetV2:
    """FBNetV2-F1: 6,024,736 parameters, 56.2 million MACs at 128, the authors' image size."""
    model_args = dict(arch_def=ARCH_F1, stem_size=8, num_features=1600)
    return _create_fbnetv2("fbnetv2_f1", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def fbnetv2_f2(pretrained: bool = False, **kwargs: Any) -> FBNetV2:
    """FBNetV2-F2: 6,024,736 parameters, 85.2 million MACs at 160."""
    model_args = dict(arch_def=ARCH_F1, stem_size=8, num_features=1600)
    return _create_fbnetv2("fbnetv2_f2", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def fbnetv2_f3(pretrained: bool = False, **kwargs: Any) -> FBNetV2:
    """FBNetV2-F3: 6,924,832 parameters, 121.4 million MACs at 192."""
    model_args = dict(arch_def=ARCH_F1, stem_size=8, num_features=1984)
    return _create_fbnetv2("fbnetv2_f3", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def fbnetv2_f4(pretrained: bool = False, **kwargs: Any) -> FBNetV2:
    """FBNetV2-F4: 7,022,864 parameters, 237.6 million MACs at 224."""
    model_args = dict(arch_def=ARCH_F4, stem_size=16, num_features=1984)
    return _create_fbnetv2("fbnetv2_f4", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def fbnetv2_l1(pretrained: bool = False, **kwargs: Any) -> FBNetV2:
    """FBNetV2-L1: 8,538,776 parameters, 325.0 million MACs at 224."""
    model_args = dict(arch_def=ARCH_L1, stem_size=16, num_features=1984)
    return _create_fbnetv2("fbnetv2_l1", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def fbnetv2_l2(pretrained: bool = False, **kwargs: Any) -> FBNetV2:
    """FBNetV2-L2: 8,538,776 parameters, 422.6 million MACs at 256."""
    model_args = dict(arch_def=ARCH_L1, stem_size=16, num_features=1984)
    return _create_fbnetv2("fbnetv2_l2", pretrained=pretrained, **dict(model_args, **kwargs))
