# Mask R-CNN with FPN on a small As-ViT, on scenes of handwritten digits, on 2 CPU cores: the trunk, the data and the
# solver of tiny/mask_rcnn_as_vit.yaml. The scenes are made by
#
#   python detection/digits_scenes.py --output output/digits_scenes --train 1200
#
# All values are ours.
_base_ = "mask_rcnn_as_vit_small.py"

scenes = "output/digits_scenes/"
classes = dict(classes=tuple("0123456789"))

model = dict(
    data_preprocessor=dict(pad_mask=True),
    backbone=dict(name="as_vit", img_size=128, model_kwargs=dict(genotype="8,4,2,1|4,2,2,1|4,1,2,2|4,1,2,1|8,32")),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=48),
    rpn_head=dict(
        in_channels=48,
        feat_channels=48,
        anchor_generator=dict(scales=[2]),  # digits are 28 to 61 pixels large
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=48),
        bbox_head=dict(in_channels=48, fc_out_channels=128, num_classes=10),
        mask_roi_extractor=dict(out_channels=48),
        mask_head=dict(in_channels=48, conv_out_channels=32, num_convs=2, num_classes=10),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=100, max_per_img=50)),
)

_load = dict(type="LoadImageFromFile")
_annotations = dict(type="LoadAnnotations", with_bbox=True, with_mask=True)
_resize = dict(type="Resize", scale=(128, 128), keep_ratio=True)
train_pipeline = [_load, _annotations, _resize, dict(type="PackDetInputs")]  # a mirrored digit is none
test_pipeline = [
    _load,
    _resize,
    _annotations,
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=scenes,
        ann_file="annotations_train.json",
        data_prefix=dict(img="train/"),
        metainfo=classes,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=scenes,
        ann_file="annotations_val.json",
        data_prefix=dict(img="val/"),
        metainfo=classes,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=scenes + "annotations_val.json")
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=10, val_interval=10)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=20),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=20, end=1500),
]
optim_wrapper = dict(optimizer=dict(lr=0.001), clip_grad=dict(max_norm=1.0))
randomness = dict(seed=0)
work_dir = "output/mmdet_tiny_mask_rcnn_as_vit"
