"""The one place that imports timm's private names; each is needed by any model outside timm's own tree."""

from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models._efficientnet_builder import (
    EfficientNetBuilder,
    decode_arch_def,
    efficientnet_init_weights,
    round_channels,
)
from timm.models._features import FeatureGetterNet, feature_take_indices
from timm.models._input import update_model_args, update_model_input_size

__all__ = [
    "EfficientNetBuilder",
    "FeatureGetterNet",
    "SqueezeExcite",
    "decode_arch_def",
    "efficientnet_init_weights",
    "feature_take_indices",
    "round_channels",
    "update_model_args",
    "update_model_input_size",
]
