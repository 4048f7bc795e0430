# Mask R-CNN with FPN on As-ViT Small, for mmdet (onedl-mmdetection). Images are 1024 pixels on their longer side, and
# windows keep their size of pretraining. The solver is that of mmdet's Swin detectors; that it suits this trunk is our
# guess. Not run by us on COCO.
_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "mmdet::_base_/default_runtime.py",
]
custom_imports = dict(
    imports=["asvit_plugin.backbones.mmengine_backbone", "asvit_plugin.hooks.mmengine_hook"],
    allow_failed_imports=False,
)

model = dict(
    backbone=dict(
        _delete_=True,
        type="TimmTrunk",
        name="as_vit_small",
        img_size=1024,
        window_policy="size",
        drop_path_rate=0.1,
        # weights="as_vit_small.safetensors",  # of a classifier
    ),
    neck=dict(in_channels=[88, 176, 352, 704]),  # the trunk's ``channels``
)

_load = dict(type="LoadImageFromFile")
_annotations = dict(type="LoadAnnotations", with_bbox=True, with_mask=True)
_resize = dict(type="Resize", scale=(1024, 1024), keep_ratio=True)
train_pipeline = [_load, _annotations, _resize, dict(type="RandomFlip", prob=0.5), dict(type="PackDetInputs")]
test_pipeline = [
    _load,
    _resize,
    _annotations,
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

max_epochs = 36
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", begin=0, end=max_epochs, by_epoch=True, milestones=[27, 33], gamma=0.1),
]
optim_wrapper = dict(
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={"pos_embed": dict(decay_mult=0.0)}),
    optimizer=dict(_delete_=True, type="AdamW", lr=0.0001, betas=(0.9, 0.999), weight_decay=0.05),
)
# custom_hooks = [dict(type="ScheduleHook", schedules=dict(type="ProgressiveTokenization"))]
work_dir = "output/mmdet_mask_rcnn_as_vit_small"
