"""COCO, AdamW and a schedule for LazyConfigs: the values of Base-RCNN-FPN-timm.yaml."""

import detectron2.data.transforms as T
import torch
from detectron2.config import LazyCall as L
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.evaluation import COCOEvaluator
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import OmegaConf

from asvit_plugin.backbones.detectron2_optimizer import layer_decay_params

train = dict(
    output_dir="./output",
    init_checkpoint="",  # of the whole detector, or weights of the trunk in timm's layout
    max_iter=270000,  # 36 epochs of COCO
    amp=dict(enabled=True, dtype="float16"),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=5000, max_to_keep=100),
    eval_period=30000,
    log_period=20,
    device="auto",  # a GPU where there is one; "cuda" insists
    clip_norm=1.0,  # of all gradients together; None for none
    schedules=[],  # L(ProgressiveTokenization)(), L(AttentionSwitching)(): without the model
    data=dict(train_json="", train_images="", test_json="", test_images=""),  # take the place of named data
)

optimizer = L(torch.optim.AdamW)(
    params=L(layer_decay_params)(base_lr="${..lr}", layer_decay=1.0, weight_decay_norm=0.0),
    lr=1e-4,
    weight_decay=0.05,
)

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01], milestones=[210000, 250000], num_updates="${train.max_iter}"
    ),
    warmup_length=1000 / 270000,
    warmup_factor=0.001,
)

dataloader = OmegaConf.create()

dataloader.train = L(build_detection_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names="coco_2017_train"),
    mapper=L(DatasetMapper)(
        is_train=True,
        augmentations=[
            L(T.ResizeShortestEdge)(short_edge_length=1024, max_size=1024),
            L(T.RandomFlip)(horizontal=True),
        ],
        image_format="RGB",
        use_instance_mask=True,
    ),
    total_batch_size=16,
    num_workers=4,
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="coco_2017_val", filter_empty=False),
    mapper=L(DatasetMapper)(
        is_train=False,
        augmentations=[L(T.ResizeShortestEdge)(short_edge_length=1024, max_size=1024)],
        image_format="RGB",
    ),
    num_workers=4,
)

dataloader.evaluator = L(COCOEvaluator)(dataset_name="${..test.dataset.names}")
