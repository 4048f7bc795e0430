"""The one place that imports timm's private names; each is needed by any model outside timm's own tree."""

from timm.models._features import FeatureGetterNet, feature_take_indices
from timm.models._input import update_model_args, update_model_input_size

__all__ = ["FeatureGetterNet", "feature_take_indices", "update_model_args", "update_model_input_size"]
