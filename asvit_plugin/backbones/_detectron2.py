"""The one place that imports detectron2, and says what to do where it is missing."""

try:
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import CfgNode
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import BACKBONE_REGISTRY, Backbone
    from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
    from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
    from detectron2.solver.build import get_default_optimizer_params
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "asvit_plugin.backbones needs detectron2 for this; it is on no package index: build it from its repository"
    ) from error

__all__ = [
    "BACKBONE_REGISTRY",
    "FPN",
    "Backbone",
    "CfgNode",
    "DetectionCheckpointer",
    "LastLevelMaxPool",
    "LastLevelP6P7",
    "ShapeSpec",
    "SimpleFeaturePyramid",
    "get_default_optimizer_params",
]
