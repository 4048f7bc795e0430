"""Small detectors over small trunks, from detectron2's own configs, and inputs for them."""

from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from torch import nn
from trunks import PLAIN, arguments

from asvit_plugin.backbones.detectron2_config import add_timm_config

CLASSES = 3
IMAGE_SIZES = ((70, 90), (64, 101))  # height and width of the images of a batch


def levels_of(name: str, retinanet: bool = False) -> list[str]:
    """Maps of the pyramid over a trunk, as heads name them."""
    first, last = {"vit_resnas": (4, 7)}.get(name, (2, 6))
    return [f"p{i}" for i in (range(first, last + 2) if retinanet else range(first, last + 1))]


def make_config(name: str, builder: str, **timm_options: Any) -> CfgNode:
    """A config of a trunk under a pyramid of 16 channels."""
    cfg = get_cfg()
    add_timm_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = builder
    cfg.MODEL.TIMM.NAME = name
    cfg.MODEL.TIMM.KWARGS.update(arguments(name)["model_kwargs"])
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.FPN.NORM = "LN" if name in PLAIN else ""
    for key, value in timm_options.items():
        cfg.MODEL.TIMM[key] = value
    return cfg


def mask_rcnn(name: str, **timm_options: Any) -> nn.Module:
    cfg = make_config(name, "build_timm_fpn_backbone", **timm_options)
    levels = levels_of(name)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.MASK_ON = "GeneralizedRCNN", True
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8 * 2**i] for i in range(len(levels))]
    cfg.MODEL.RPN.IN_FEATURES = levels
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 50
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    heads = cfg.MODEL.ROI_HEADS
    heads.NAME, heads.IN_FEATURES, heads.NUM_CLASSES = "StandardROIHeads", levels[:-1], CLASSES
    heads.BATCH_SIZE_PER_IMAGE, heads.SCORE_THRESH_TEST = 16, 0.0
    box, mask = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD
    box.NAME, box.NUM_FC, box.FC_DIM, box.POOLER_RESOLUTION = "FastRCNNConvFCHead", 2, 32, 7
    mask.NAME, mask.NUM_CONV, mask.CONV_DIM, mask.POOLER_RESOLUTION = "MaskRCNNConvUpsampleHead", 2, 16, 7
    return build_model(cfg)


def retinanet(name: str, **timm_options: Any) -> nn.Module:
    cfg = make_config(name, "build_retinanet_timm_fpn_backbone", **timm_options)
    levels = levels_of(name, retinanet=True)[0 if name == "vit_resnas" else 1 :]
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16 * 2**i] for i in range(len(levels))]
    node = cfg.MODEL.RETINANET
    node.IN_FEATURES, node.NUM_CLASSES, node.NUM_CONVS, node.SCORE_THRESH_TEST = levels, CLASSES, 1, 0.0
    node.TOPK_CANDIDATES_TEST = 50
    return build_model(cfg)


DETECTORS = {"mask_rcnn": mask_rcnn, "retinanet": retinanet}


def inputs(*instances: int | None, sizes: tuple[tuple[int, int], ...] = IMAGE_SIZES) -> list[dict[str, Any]]:
    """A batch of images (3, H, W) with so many objects each; None for none to learn from, as in inference."""
    batch = []
    for (height, width), count in zip(sizes, instances):
        batch.append({"image": torch.rand(3, height, width) * 255, "height": height, "width": width})
        if count is not None:
            batch[-1]["instances"] = _objects(count, height, width)
    return batch


def _objects(count: int, height: int, width: int) -> Instances:
    objects = Instances((height, width))
    corner = torch.rand(count, 2) * 20
    objects.gt_boxes = Boxes(torch.cat([corner, corner + 10 + torch.rand(count, 2) * 30], dim=1))
    objects.gt_classes = torch.arange(count) % CLASSES
    objects.gt_masks = BitMasks(torch.rand(count, height, width) > 0.5)
    return objects
