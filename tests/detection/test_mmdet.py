"""The configs for mmdet in its real runner: trained, stopped, gone on with, evaluated; with a schedule."""

import json
from pathlib import Path
from typing import Any

import pytest
from detection_runs import CONFIGS

pytest.importorskip("mmdet", reason="mmdet is not installed: docs/detection.md says how, in an environment of its own")

import timm
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from asvit_plugin.backbones.mmengine_backbone import TimmTrunk

FULL = CONFIGS / "mmdet" / "mask_rcnn_as_vit_small.py"
TINY = CONFIGS / "mmdet" / "tiny_mask_rcnn_as_vit.py"


def tiny(scenes: Path, folder: Path, **entries: Any) -> Config:
    """The tiny config on few scenes, one epoch of 3 iterations unless ``entries`` say more."""
    cfg = Config.fromfile(TINY)
    settings = {"work_dir": str(folder), "train_cfg.max_epochs": 1, "train_cfg.val_interval": 1}
    settings |= {"train_dataloader.batch_size": 2, "default_hooks.logger.interval": 1, "log_level": "ERROR"}
    for split, part in (("train_dataloader", "train"), ("val_dataloader", "val"), ("test_dataloader", "val")):
        settings[f"{split}.dataset.data_root"] = f"{scenes}/"
        settings[f"{split}.dataset.ann_file"] = f"annotations_{part}.json"
    for name in ("val_evaluator", "test_evaluator"):
        settings[f"{name}.ann_file"] = str(scenes / "annotations_val.json")
    cfg.merge_from_dict(settings | entries)
    cfg.experiment_name = f"{folder.name}_{len(entries)}"
    return cfg


def scalars(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("*/vis_data/scalars.json"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_trains_goes_on_and_is_evaluated(scenes: Path, tmp_path: Path) -> None:
    Runner.from_cfg(tiny(scenes, tmp_path)).train()
    first = torch.load(tmp_path / "epoch_1.pth", weights_only=False)["state_dict"]
    Runner.from_cfg(tiny(scenes, tmp_path, **{"train_cfg.max_epochs": 2, "resume": True})).train()
    second = torch.load(tmp_path / "epoch_2.pth", weights_only=False)
    assert (second["meta"]["epoch"], second["meta"]["iter"]) == (2, 6)
    stem = "backbone.model.patch_embed.proj.weight"
    assert not torch.equal(first[stem], second["state_dict"][stem])
    rows = scalars(tmp_path)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 6
    assert all(torch.tensor(losses).isfinite())
    assert {"coco/bbox_mAP", "coco/segm_mAP"} <= set(rows[-1])


def test_a_schedule_ends_with_all_tokens(scenes: Path, tmp_path: Path) -> None:
    phases = [[0.4, 8], [1.0, 4]]
    hook = dict(type="ScheduleHook", schedules=dict(type="ProgressiveTokenization", phases=phases))
    runner = Runner.from_cfg(tiny(scenes, tmp_path, custom_hooks=[hook]))
    stem = runner.model.backbone.model.patch_embed.proj
    strides = []
    stem.register_forward_hook(lambda module, *_: strides.append(module.stride) if runner.model.training else None)
    runner.train()
    assert strides == [(8, 8), (8, 8), (4, 4)]
    assert stem.stride == (4, 4)


@pytest.mark.parametrize("config", [FULL, TINY], ids=["full", "tiny"])
def test_config_fits_the_trunk(config: Path) -> None:
    cfg = Config.fromfile(config)
    init_default_scope("mmdet")
    trunk = MODELS.build(cfg.model.backbone)
    assert isinstance(trunk, TimmTrunk)
    assert trunk.channels == tuple(cfg.model.neck.in_channels)
    assert trunk.strides == tuple(cfg.model.rpn_head.anchor_generator.strides[:4])


def test_weights_stay_as_they_were_loaded(tmp_path: Path) -> None:
    cfg = Config.fromfile(TINY)
    init_default_scope("mmdet")
    source = MODELS.build(cfg.model.backbone)
    torch.save({**source.model.state_dict(), **_classifier(source)}, tmp_path / "weights.pth")
    cfg.model.backbone.weights = str(tmp_path / "weights.pth")
    detector = MODELS.build(cfg.model)
    detector.init_weights()
    loaded = detector.backbone.model.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in source.model.state_dict().items())


def test_a_scaled_pit_by_its_file_trains(scenes: Path, tmp_path: Path) -> None:
    """Under FPN, whose maps have strides 8 to 128."""
    kwargs = dict(depth=[1, 2, 1], num_heads=[1, [2, 1], 2], embed_dims=[8, 16, 16], head_dim=8, mlp_ratio=2)
    file = tmp_path / "net_3.yaml"
    file.write_text(json.dumps({"model": "scaled_pit", "img_size": 64, "model_kwargs": kwargs}))  # JSON is YAML
    backbone = dict(_delete_=True, type="TimmTrunk", name=str(file), img_size=128)
    strides = [8, 16, 32, 64, 128]
    model = dict(backbone=backbone, neck=dict(in_channels=[8, 16, 16]))
    model |= dict(rpn_head=dict(anchor_generator=dict(strides=strides)))
    model |= dict(roi_head={f"{kind}_roi_extractor": dict(featmap_strides=strides[:4]) for kind in ("bbox", "mask")})
    cfg = tiny(scenes, tmp_path, model=model)
    runner = Runner.from_cfg(cfg)
    trunk = runner.model.backbone
    assert (trunk.recipe.name, trunk.strides, trunk.channels) == ("scaled_pit", (8, 16, 32), (8, 16, 16))
    runner.train()
    state = torch.load(tmp_path / "epoch_1.pth", weights_only=False)["state_dict"]
    assert state["backbone.model.pos_embed"].shape == (1, 8, 15, 15)
    losses = runner.message_hub.get_scalar("train/loss").data[0]
    assert len(losses) == 3
    assert all(torch.tensor(losses).isfinite())


def _classifier(trunk: TimmTrunk) -> dict[str, torch.Tensor]:
    """What the trunk's model has beyond the maps."""
    model = timm.create_model(trunk.recipe.name, num_classes=5, **trunk.recipe.arguments)
    own = trunk.model.state_dict()
    return {name: tensor for name, tensor in model.state_dict().items() if name not in own}
