"""timm models as backbones of detectors: ours, and any other timm model that gives feature maps.

What is here needs no detector library. ``detectron2_backbone``, ``detectron2_config``, ``detectron2_checkpointer`` and
``simple_feature_pyramid`` need detectron2, ``mmengine_backbone`` needs mmengine: import those you use.
"""

from .layer_decay import layer_decay_factors, lr_factor_func
from .trunk import FeatureTrunk
from .weights import load_trunk_weights

__all__ = ["FeatureTrunk", "layer_decay_factors", "load_trunk_weights", "lr_factor_func"]
