"""Mask R-CNN with ViTDet's simple feature pyramid on a scaled ViT, as in mask_rcnn_scaled_vit.yaml.

A net that tools/scale.py has found: ``model.backbone.net.name=output/scale/net_3.yaml``. All values are ours; not run
by us.
"""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from asvit_plugin.backbones.detectron2_backbone import TimmBackbone
from asvit_plugin.backbones.simple_feature_pyramid import TimmFeaturePyramid

from .common.mask_rcnn import make_mask_rcnn
from .common.training import dataloader, lr_multiplier, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]  # what a LazyConfig is made of

_backbone = L(TimmFeaturePyramid)(
    net=L(TimmBackbone)(
        name="scaled_vit",
        img_size=1024,
        norm="trunk",
        drop_path_rate=0.1,
    ),
    out_channels=256,
    top_block=L(LastLevelMaxPool)(),
)
model = make_mask_rcnn(_backbone)
optimizer.params.layer_decay = 0.7  # ViTDet's of ViT-B
train.output_dir = "output/lazy_mask_rcnn_scaled_vit"
