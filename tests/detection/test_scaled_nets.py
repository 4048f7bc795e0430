"""What tools/scale.py writes becomes a detector's trunk: by its file, or by arguments on the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from detection_runs import CONFIGS, LAZY, ROOT, refusal, small, train_net

pytest.importorskip("detectron2", reason="detectron2 is not installed, and on no index; the README says how")

from detection_config import load_config
from detectron2.config import LazyCall, instantiate
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model
from torch import nn

from asvit_plugin.backbones.detectron2_backbone import TimmBackbone
from asvit_plugin.backbones.simple_feature_pyramid import TimmFeaturePyramid
from asvit_plugin.backbones.weights import find_trunk

TINY = CONFIGS / "tiny" / "mask_rcnn_scaled_vit.yaml"
FULL = CONFIGS / "mask_rcnn_scaled_vit.yaml"
FULL_LAZY = CONFIGS / "mask_rcnn_scaled_vit.py"
PITS = CONFIGS / "mask_rcnn_scaled_pit.yaml"
BASE = ["--base", "deit_tiny", "depth=2", "num_heads=2", "head_dim=8", "img_size=32", "patch_size=8"]


@pytest.fixture(scope="session")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last net of a path, as the command leaves it."""
    folder = tmp_path_factory.mktemp("scale")
    command = [sys.executable, "tools/scale.py", *BASE, "--to", "3e5", "--factors", "depth=2,3", "mlp_ratio=4,6"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command += ["--oracle", "parameters", "--output", str(folder)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return max(folder.glob("net_*.yaml"), key=lambda path: int(path.stem.removeprefix("net_")))


def net_file(folder: Path, model: str, **kwargs: object) -> Path:
    path = folder / "net_1.yaml"
    path.write_text(yaml.safe_dump({"model": model, "img_size": 64, "model_kwargs": kwargs}))
    return path


def load(config: Path, *overrides: str):
    return load_config(default_argument_parser().parse_args(["--config-file", str(config), *overrides]))


def build(config: Path, *overrides: str) -> nn.Module:
    """The detector on meta tensors."""
    lazy = config.suffix == ".py"
    cfg = load(config, *overrides, *([] if lazy else ["MODEL.DEVICE", "meta"]))
    with torch.device("meta"):
        return instantiate(cfg.model) if lazy else build_model(cfg)


def net_of(file: Path) -> nn.Module:
    """timm's model of a net's file, with its weights drawn anew."""
    net = yaml.safe_load(file.read_text())
    return timm.create_model(net["model"], img_size=net["img_size"], num_classes=5, **net["model_kwargs"])


def test_a_net_of_scale_trains_and_goes_on(scaled: Path, scenes: Path, tmp_path: Path) -> None:
    """Its classifier's weights start the trunk, and the run's own config says all of the net."""
    classifier = net_of(scaled)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    overrides = ["MODEL.TIMM.KWARGS", "{}", "MODEL.TIMM.NAME", str(scaled)]
    start = {"MODEL.WEIGHTS": tmp_path / "classifier.pth", "SOLVER.BASE_LR": 1e-12, "SOLVER.WARMUP_ITERS": 0}
    results = train_net(TINY, *small(TINY, scenes, tmp_path / "run", **start), *overrides)
    assert {"bbox", "segm"} <= set(results)
    state = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["model"]
    wanted = classifier.blocks[-1].mlp.fc2.weight
    torch.testing.assert_close(state[f"backbone.net.model.blocks.{len(classifier.blocks) - 1}.mlp.fc2.weight"], wanted)
    kept = tmp_path / "run" / "config.yaml"
    assert str(scaled) not in kept.read_text()
    kwargs = yaml.safe_load(scaled.read_text())["model_kwargs"]
    assert yaml.safe_load(kept.read_text())["MODEL"]["TIMM"]["KWARGS"] == kwargs
    more = small(TINY, scenes, tmp_path / "run", iterations=3)
    train_net(kept, "--resume", *more)  # no file of the net any more
    final = tmp_path / "run" / "model_final.pth"
    again = train_net(kept, "--eval-only", *small(TINY, scenes, tmp_path / "eval", **{"MODEL.WEIGHTS": final}))
    last = (tmp_path / "run" / "metrics.json").read_text().splitlines()[-1]
    assert again["bbox"]["AP"] == pytest.approx(json.loads(last)["bbox/AP"], nan_ok=True)


def test_the_detectors_image_size_counts(scaled: Path) -> None:
    trunk = find_trunk(build(TINY, "MODEL.TIMM.KWARGS", "{}", "MODEL.TIMM.NAME", str(scaled)))[1]
    assert trunk.model.patch_embed.grid_size == (16, 16)
    assert len(trunk.model.blocks) == yaml.safe_load(scaled.read_text())["model_kwargs"]["depth"]


def test_a_lazy_config_takes_the_file(tmp_path: Path) -> None:
    file = net_file(tmp_path, "scaled_vit", depth=2, num_heads=[1, 2], embed_dim=16, head_dim=8, patch_size=14)
    cfg = load(FULL_LAZY, f"model.backbone.net.name={file}")
    net = cfg.model.backbone.net
    assert (net.name, net.img_size, net.model_kwargs.num_heads) == ("scaled_vit", 1024, [1, 2])
    lazy, yacs = (
        {name: tuple(each.shape) for name, each in model.named_parameters()}
        for model in (build(FULL_LAZY, f"model.backbone.net.name={file}"), build(FULL, "MODEL.TIMM.NAME", str(file)))
    )
    assert lazy == yacs
    assert lazy["backbone.net.model.blocks.1.attn.qkv.weight"] == (48, 16)


def test_a_lazy_config_trains(scaled: Path, scenes: Path, tmp_path: Path) -> None:
    import lazy_runs
    from datasets_config import check_datasets, register_splits

    args = default_argument_parser().parse_args(["--config-file", str(LAZY), *small(LAZY, scenes, tmp_path)])
    cfg = load_config(args)
    cfg.model.backbone = LazyCall(TimmFeaturePyramid)(
        net=LazyCall(TimmBackbone)(name=str(scaled)), scale_factors=[2.0, 1.0, 0.5], out_channels=48
    )
    cfg.model.proposal_generator.in_features = ["p2", "p3", "p4"]
    cfg.model.proposal_generator.anchor_generator.update(sizes=[[8], [16], [32]], strides=[4, 8, 16])
    cfg.model.roi_heads.update(box_in_features=["p2", "p3", "p4"], mask_in_features=["p2", "p3", "p4"])
    for pooler in (cfg.model.roi_heads.box_pooler, cfg.model.roi_heads.mask_pooler):
        pooler.scales = [1 / 4, 1 / 8, 1 / 16]
    check_datasets(cfg)
    register_splits(cfg)
    trainer = lazy_runs.start_training(cfg, args)
    assert {"bbox", "segm"} <= set(lazy_runs.finish_training(trainer))


@pytest.mark.parametrize("name", ["mask_rcnn_scaled_pit", "retinanet_scaled_vit"])
def test_pyramids_by_file(name: str, tmp_path: Path) -> None:
    kwargs = dict(depth=[1, 2, 1], num_heads=[1, [2, 1], 4], embed_dims=[8, 16, 32], head_dim=8, mlp_ratio=2)
    model = build(CONFIGS / f"{name}.yaml", "MODEL.TIMM.NAME", str(net_file(tmp_path, "scaled_pit", **kwargs)))
    trunk = find_trunk(model)[1]
    assert (trunk.strides, trunk.channels) == ((8, 16, 32), (8, 16, 32))
    assert trunk.model.grid_size == (127, 127)


PATCHES = {  # as the comments of the config say
    8: ["MODEL.TIMM.SCALE_FACTORS", "[2.0, 1.0, 0.5]", "MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64], [128], [256]]"]
    + ["MODEL.RPN.IN_FEATURES", "['p2', 'p3', 'p4', 'p5']", "MODEL.ROI_HEADS.IN_FEATURES", "['p2', 'p3', 'p4']"],
    12: [],
    14: [],
    16: [],
    28: ["MODEL.RPN.IN_FEATURES", "['p3', 'p4', 'p5', 'p6', 'p7']"]
    + ["MODEL.ROI_HEADS.IN_FEATURES", "['p3', 'p4', 'p5', 'p6']"],
}
PATCHES[32] = PATCHES[28]


@pytest.mark.parametrize("patch_size", PATCHES)
def test_patches(patch_size: int) -> None:
    kwargs = ["MODEL.TIMM.KWARGS", f"{{'depth': 1, 'patch_size': {patch_size}, 'head_dim': 8}}"]
    model = build(FULL, *kwargs, *PATCHES[patch_size])
    shapes = model.backbone.output_shape()
    taken = model.proposal_generator.in_features
    assert [shapes[name].stride for name in taken] == list(model.proposal_generator.anchor_generator.strides)
    assert shapes[taken[0]].stride == (8 if patch_size > 16 else 4)


def test_the_comments_say_so() -> None:
    comments = "".join(line[1:] for line in FULL.read_text().splitlines() if line.startswith("#"))
    for overrides in PATCHES.values():
        for entry, value in zip(overrides[::2], overrides[1::2]):
            assert f'{entry} "{value}"' in comments


def test_arguments_on_the_command_line() -> None:
    overrides = ["MODEL.TIMM.KWARGS.depth", "2", "MODEL.TIMM.KWARGS.num_heads", "(1, 2)"]
    overrides += ["MODEL.TIMM.KWARGS.embed_dim", "16", "MODEL.TIMM.KWARGS.qk_norm", "True"]
    overrides += ["MODEL.TIMM.KWARGS.weight_init", "jax"]
    trunk = find_trunk(build(FULL, *overrides))[1]
    assert [block.attn.num_heads for block in trunk.model.blocks] == [1, 2]
    assert isinstance(trunk.model.blocks[0].attn.q_norm, nn.LayerNorm)
    assert trunk.recipe.arguments["weight_init"] == "jax"
    tiny = load(TINY, "MODEL.TIMM.KWARGS.depth", "6")
    assert (tiny.MODEL.TIMM.KWARGS.depth, tiny.MODEL.TIMM.KWARGS.patch_size) == (6, 8)
    assert load(TINY, "MODEL.TIMM.KWARGS", "{'depth': 6}").MODEL.TIMM.KWARGS == {"depth": 6}


MISTAKES: dict[str, tuple[Path, list[str], str]] = {
    "no file": (FULL, ["MODEL.TIMM.NAME", "none.yaml"], "name is 'none.yaml'; the file cannot be read: No such file"),
    "a config": (FULL, ["MODEL.TIMM.NAME", str(TINY)], "a net's file must have the entry model, the name of a timm"),
    "no file, lazy": (FULL_LAZY, ["model.backbone.net.name=none.yaml"], "name is 'none.yaml'; the file cannot be read"),
    "two nets": (TINY, ["MODEL.TIMM.NAME", "NET"], "depth is 4; the net in "),
    "two nets, lazy": (
        FULL_LAZY,
        ["model.backbone.net.name=NET", "model.backbone.net.model_kwargs={depth: 3}"],
        "depth is 3; the net in ",
    ),
    "arguments": (FULL, ["MODEL.TIMM.KWARGS", "[3]"], "MODEL.TIMM.KWARGS is '[3]'; it must be arguments by name"),
    "odd": (FULL, ["MODEL.TIMM.KWARGS.depth"], "an override does not fit the config"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_refuses(mistake: str, scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config, overrides, sentence = MISTAKES[mistake]
    file = str(net_file(tmp_path, "scaled_vit", depth=2))
    usual = small(config, scenes, tmp_path / "run") if config is TINY else []
    message = refusal(capfd, config, *usual, *(each.replace("NET", file) for each in overrides))
    assert sentence in message


BUILDING: dict[str, tuple[list[str], str]] = {
    "argument": (["MODEL.TIMM.KWARGS.deep", "3"], "deep is 3; scaled_vit does not take it"),
    "value": (["MODEL.TIMM.KWARGS.depth", "0"], "depth is 0; it must be a whole number of at least 1"),
    "coarse patches": (
        ["MODEL.TIMM.KWARGS.patch_size", "32"],
        "the detector takes the map 'p2', and the pyramid over its trunk gives p4 (stride 16), p5 (stride 32), ",
    ),
    "pyramid": (
        ["MODEL.TIMM.NAME", "scaled_pit", "MODEL.TIMM.KWARGS", "{}"],
        "the detector takes the map 'p2', and the pyramid over its trunk gives p3 (stride 8), p4 (stride 16), ",
    ),
    "anchors": (
        ["MODEL.RPN.IN_FEATURES", "['p2', 'p3', 'p4']"],
        "MODEL.ANCHOR_GENERATOR does not fit the maps: Got sizes of length 4",
    ),
}


@pytest.mark.parametrize("mistake", BUILDING)
def test_refuses_as_it_builds(mistake: str, scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    overrides, sentence = BUILDING[mistake]
    assert sentence in refusal(capfd, TINY, *small(TINY, scenes, tmp_path), *overrides)


def test_a_lazy_config_refuses_maps_that_do_not_fit(
    scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = net_file(tmp_path, "scaled_vit", depth=1, head_dim=8, patch_size=32)
    data = [each for each in small(LAZY, scenes, tmp_path) if "data" in each]
    overrides = [f"model.backbone.net.name={file}", "model.roi_heads.num_classes=10", *data]
    message = refusal(capfd, FULL_LAZY, *overrides, f"train.output_dir={tmp_path}")
    assert "the detector takes the map 'p2', and the pyramid over its trunk gives p3 (stride 8)" in message


def test_weights_of_another_net_are_refused(
    scaled: Path, scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.pth"
    torch.save(timm.create_model("scaled_vit", depth=1, head_dim=16).state_dict(), other)
    overrides = ["MODEL.TIMM.KWARGS", "{}", "MODEL.TIMM.NAME", str(scaled)]
    message = refusal(capfd, TINY, *small(TINY, scenes, tmp_path / "run", **{"MODEL.WEIGHTS": other}), *overrides)
    assert "the weight file does not fit scaled_vit" in message
