"""Mask R-CNN over a pyramid of given strides, RGB images normalised as timm's classifiers are."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
)


def make_mask_rcnn(backbone, channels=256, strides=(4, 8, 16, 32, 64), sizes=(32, 64, 128, 256, 512)):
    """A backbone with maps p2, p3, ... of these strides; boxes and masks come from all but the coarsest."""
    names = [f"p{stride.bit_length() - 1}" for stride in strides]
    return L(GeneralizedRCNN)(
        backbone=backbone,
        proposal_generator=_proposals(channels, names, strides, sizes),
        roi_heads=_heads(channels, names[:-1], strides[:-1]),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
        input_format="RGB",
    )


def _proposals(channels, names, strides, sizes):
    return L(RPN)(
        in_features=names,
        head=L(StandardRPNHead)(in_channels=channels, num_anchors=3),
        anchor_generator=L(DefaultAnchorGenerator)(
            sizes=[[size] for size in sizes], aspect_ratios=[0.5, 1.0, 2.0], strides=list(strides), offset=0.0
        ),
        anchor_matcher=L(Matcher)(thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_topk=(2000, 1000),
        post_nms_topk=(1000, 1000),
        nms_thresh=0.7,
    )


def _heads(channels, names, strides):
    return L(StandardROIHeads)(
        num_classes=80,
        batch_size_per_image=512,
        positive_fraction=0.25,
        proposal_matcher=L(Matcher)(thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False),
        box_in_features=names,
        box_pooler=_pooler(7, strides),
        box_head=L(FastRCNNConvFCHead)(
            input_shape=ShapeSpec(channels=channels, height=7, width=7), conv_dims=[], fc_dims=[1024, 1024]
        ),
        box_predictor=L(FastRCNNOutputLayers)(
            input_shape=L(ShapeSpec)(channels="${...box_head.fc_dims[1]}"),
            test_score_thresh=0.05,
            box2box_transform=L(Box2BoxTransform)(weights=(10, 10, 5, 5)),
            num_classes="${..num_classes}",
        ),
        mask_in_features=names,
        mask_pooler=_pooler(14, strides),
        mask_head=L(MaskRCNNConvUpsampleHead)(
            input_shape=ShapeSpec(channels=channels, height=14, width=14),
            num_classes="${..num_classes}",
            conv_dims=[256, 256, 256, 256, 256],  # the last is the upsampling
        ),
    )


def _pooler(size, strides):
    return L(ROIPooler)(
        output_size=size, scales=[1 / stride for stride in strides], sampling_ratio=0, pooler_type="ROIAlignV2"
    )
