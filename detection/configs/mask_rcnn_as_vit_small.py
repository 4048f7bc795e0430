"""Mask R-CNN with FPN on As-ViT Small, as in mask_rcnn_as_vit_small.yaml. All values are ours; not run by us."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool

from asvit_plugin.backbones.detectron2_backbone import TimmBackbone

from .common.mask_rcnn import make_mask_rcnn
from .common.training import dataloader, lr_multiplier, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]  # what a LazyConfig is made of

_backbone = L(FPN)(
    bottom_up=L(TimmBackbone)(
        name="as_vit_small",
        img_size=1024,  # the paper's input size
        window_policy="size",  # windows of pretraining size, however large the image
        drop_path_rate=0.1,
    ),
    in_features=["stage0", "stage1", "stage2", "stage3"],
    out_channels=256,
    norm="LN",
    top_block=L(LastLevelMaxPool)(),
)
model = make_mask_rcnn(_backbone)
train.output_dir = "output/lazy_mask_rcnn_as_vit_small"
