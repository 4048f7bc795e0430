"""timm backbones for detectron2's yacs configs; importing this module registers the builders.

``cfg.MODEL.BACKBONE.NAME`` is one of ``build_timm_backbone`` (the maps themselves), ``build_timm_fpn_backbone`` (for
R-CNNs) and ``build_retinanet_timm_fpn_backbone``. A trunk of several strides goes under detectron2's FPN, one of a
single map under ViTDet's simple pyramid.
"""

import math
from typing import Any

from torch import nn

from ._detectron2 import BACKBONE_REGISTRY, FPN, Backbone, CfgNode, LastLevelMaxPool, LastLevelP6P7, ShapeSpec
from .building import plain
from .detectron2_backbone import TimmBackbone
from .simple_feature_pyramid import SCALES, TimmFeaturePyramid


def add_timm_config(cfg: CfgNode) -> None:
    """Add ``MODEL.TIMM``, the arguments of :class:`TimmBackbone`, and what pyramids need beside ``MODEL.FPN``.

    None stands for the model's own, and takes any type. ``MODEL.BACKBONE.FREEZE_AT`` is for detectron2's ResNets only.
    """
    node = CfgNode()
    node.NAME = ""  # of a timm model; or local-dir:FOLDER, hf-hub:ID
    node.PRETRAINED = False
    node.WEIGHTS = ""  # a file, a folder or hf-hub:ID; MODEL.WEIGHTS is for checkpoints of the whole detector
    node.OUT_INDICES = None
    node.FROZEN_STAGES = -1  # 0: the stem, n: the first n stages too
    node.WINDOW_POLICY = None
    node.IMG_SIZE = None
    node.NORM = ""  # "trunk", "LN"
    node.DROP_PATH = 0.0
    node.GRAD_CHECKPOINTING = False
    node.KWARGS = CfgNode(new_allowed=True)  # further arguments of the model
    node.SCALE_FACTORS = None  # of the simple pyramid; None: 4, 2, 1, 0.5, and for RetinaNet 2, 1, 0.5
    node.SQUARE_PAD = 0  # pad images to squares of this many pixels
    cfg.MODEL.TIMM = node


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """The trunk that ``cfg.MODEL.TIMM`` describes, for images of ``input_shape.channels``."""
    node = cfg.MODEL.TIMM
    return TimmBackbone(
        node.NAME,
        pretrained=node.PRETRAINED,
        weights=node.WEIGHTS,
        out_indices=node.OUT_INDICES,
        frozen_stages=node.FROZEN_STAGES,
        window_policy=node.WINDOW_POLICY,
        img_size=node.IMG_SIZE,
        norm=node.NORM,
        drop_path_rate=node.DROP_PATH,
        grad_checkpointing=node.GRAD_CHECKPOINTING,
        in_chans=input_shape.channels,
        model_kwargs=plain(node.KWARGS),
    )


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """A pyramid for R-CNNs, with one coarser map by max pooling: p2 to p6 where the trunk has strides 4 to 32."""
    trunk = build_timm_backbone(cfg, input_shape)
    if len(trunk.map_names) == 1:
        return _simple_pyramid(cfg, trunk, SCALES, _max_pool)
    return _fpn(cfg, trunk, list(trunk.map_names), _max_pool)


@BACKBONE_REGISTRY.register()
def build_retinanet_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """A pyramid for RetinaNet, from stride 8, with two coarser maps by convolution: p3 to p7 of the usual strides."""
    trunk = build_timm_backbone(cfg, input_shape)
    if len(trunk.map_names) == 1:
        return _simple_pyramid(cfg, trunk, SCALES[1:], _p6_p7)
    names = [name for name, stride in zip(trunk.map_names, trunk.strides) if stride >= 8]
    return _fpn(cfg, trunk, names, _p6_p7)


def _fpn(cfg: CfgNode, trunk: TimmBackbone, names: list[str], make_top: Any) -> FPN:
    shapes = trunk.output_shape()
    names = list(cfg.MODEL.FPN.IN_FEATURES) or names
    strides = [shapes[name].stride for name in names if name in shapes]
    if len(strides) < len(names) or strides != [strides[0] * 2**i for i in range(len(names))]:
        offered = ", ".join(f"{name} (stride {shape.stride})" for name, shape in shapes.items())
        raise ValueError(f"MODEL.FPN.IN_FEATURES is {names}; it must be maps whose strides double, of {offered}")
    trunk.keep_maps([index for index, name in zip(trunk.indices, trunk.map_names) if name in names])
    return FPN(
        bottom_up=trunk,
        in_features=names,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=make_top(cfg, strides[-1], names[-1], shapes[names[-1]].channels),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
        square_pad=cfg.MODEL.TIMM.SQUARE_PAD,
    )


def _simple_pyramid(cfg: CfgNode, trunk: TimmBackbone, scales: tuple[float, ...], make_top: Any) -> TimmFeaturePyramid:
    scales = plain(cfg.MODEL.TIMM.SCALE_FACTORS) or scales
    coarsest = int(trunk.strides[0] / scales[-1])
    return TimmFeaturePyramid(
        trunk,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        scale_factors=scales,
        top_block=make_top(cfg, coarsest, _level(coarsest), cfg.MODEL.FPN.OUT_CHANNELS),
        norm=cfg.MODEL.FPN.NORM,
        square_pad=cfg.MODEL.TIMM.SQUARE_PAD,
    )


def _max_pool(cfg: CfgNode, stride: int, source: str, channels: int) -> nn.Module:
    """One map of the pyramid's coarsest, wherever that is: detectron2's takes p5 in any case."""
    block = LastLevelMaxPool()
    block.in_feature = _level(stride)
    return block


def _p6_p7(cfg: CfgNode, stride: int, source: str, channels: int) -> nn.Module:
    """Two maps of the trunk's coarsest, as in RetinaNet; above a simple pyramid, of the pyramid's."""
    return LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS, in_feature=source)


def _level(stride: int) -> str:
    """detectron2's name of a pyramid's map."""
    return f"p{int(math.log2(stride))}"
