"""Mask R-CNN with FPN on a small As-ViT, on scenes of handwritten digits: tiny/mask_rcnn_as_vit.yaml as LazyConfig.

Its scenes are made by ``python detection/digits_scenes.py --output output/digits_scenes --train 1200``.
"""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from fvcore.common.param_scheduler import CosineParamScheduler

from asvit_plugin.backbones.detectron2_backbone import TimmBackbone

from ..common.mask_rcnn import make_mask_rcnn
from ..common.training import dataloader, lr_multiplier, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]  # what a LazyConfig is made of

_backbone = L(FPN)(
    bottom_up=L(TimmBackbone)(
        name="as_vit", img_size=128, model_kwargs=dict(genotype="8,4,2,1|4,2,2,1|4,1,2,2|4,1,2,1|8,32")
    ),
    in_features=["stage0", "stage1", "stage2", "stage3"],
    out_channels=48,
    norm="LN",
    top_block=L(LastLevelMaxPool)(),
)
model = make_mask_rcnn(_backbone, channels=48, sizes=(8, 16, 32, 64, 128))
model.proposal_generator.batch_size_per_image = 64
model.proposal_generator.pre_nms_topk = (200, 100)
model.proposal_generator.post_nms_topk = (100, 50)
model.roi_heads.num_classes = 10
model.roi_heads.batch_size_per_image = 32
model.roi_heads.box_head.fc_dims = [128, 128]
model.roi_heads.mask_head.conv_dims = [32, 32, 32]

optimizer.lr = 1e-3
lr_multiplier.scheduler = L(CosineParamScheduler)(start_value=1.0, end_value=0.0)
lr_multiplier.warmup_length = 20 / 1400

for _loader in (dataloader.train, dataloader.test):
    _loader.num_workers = 0  # tiny images: starting loader processes costs more than they save
    _loader.mapper.augmentations[0].update(short_edge_length=128, max_size=192)
del dataloader.train.mapper.augmentations[1]  # a mirrored digit is none
dataloader.train.total_batch_size = 8

train.max_iter = 1400
train.seed = 0
train.amp.enabled = False
train.checkpointer.period = 200
train.eval_period = 0  # at the end only
train.output_dir = "output/lazy_tiny_mask_rcnn"
_folder = "output/digits_scenes"
train.data = dict(
    train_json=f"{_folder}/annotations_train.json",
    train_images=f"{_folder}/train",
    test_json=f"{_folder}/annotations_val.json",
    test_images=f"{_folder}/val",
)
