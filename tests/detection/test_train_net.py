"""The script as users run it: tiny detectors learn, stop at any moment, go on, and are evaluated."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from detection_runs import CONFIGS, LAZY, ROOT, YACS, small, train_net

pytest.importorskip("detectron2", reason="detectron2 is not installed, and on no index; the README says how")

from detection_config import load_config
from detectron2.engine import default_argument_parser

import asvit_plugin
from asvit_plugin.layers import castled_attention

TINY = sorted((CONFIGS / "tiny").glob("mask_rcnn_*.yaml"))


def checkpoint(folder: Path) -> dict:
    name = (folder / "last_checkpoint").read_text()
    return torch.load(folder / name, weights_only=True)


def optimizer_steps(state: dict) -> set[int]:
    return {int(each["step"]) for each in state["trainer"]["_trainer"]["optimizer"]["state"].values()}


def parse(*argv: str):
    return default_argument_parser().parse_args([*argv])


@pytest.mark.parametrize("config", TINY, ids=lambda path: path.stem)
def test_yacs_trains_and_goes_on(config: Path, scenes: Path, tmp_path: Path) -> None:
    results = train_net(config, *small(config, scenes, tmp_path))
    assert {"bbox", "segm"} <= set(results)
    train_net(config, "--resume", *small(config, scenes, tmp_path, iterations=3))
    state = checkpoint(tmp_path)
    assert (state["iteration"], optimizer_steps(state)) == (2, {3})
    assert state["trainer"]["hooks"]["LRScheduler"]["last_epoch"] == 3
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == [
        "model_0000000.pth",
        "model_0000001.pth",
        "model_0000002.pth",
        "model_final.pth",
    ]


OTHERS = {
    "cascade": (YACS, {"MODEL.ROI_HEADS.NAME": "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True}),
    "boxes": (YACS, {"MODEL.MASK_ON": False, "SOLVER.OPTIMIZER": "SGD", "SOLVER.LAYER_DECAY": 0.8}),
    "retinanet": (
        CONFIGS / "retinanet_as_vit_small.yaml",
        {
            "MODEL.TIMM.NAME": "as_vit",
            "MODEL.TIMM.IMG_SIZE": 64,
            "MODEL.RETINANET.NUM_CLASSES": 10,
            "MODEL.FPN.OUT_CHANNELS": 16,
            "INPUT.MIN_SIZE_TRAIN": (64,),
            "INPUT.MIN_SIZE_TEST": 64,
            "DATALOADER.NUM_WORKERS": 0,
        },
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_detectors_and_optimizers_train(kind: str, scenes: Path, tmp_path: Path) -> None:
    config, entries = OTHERS[kind]
    results = train_net(config, *small(config, scenes, tmp_path, **entries))
    assert ("segm" in results) == (kind == "cascade")


def test_gradients_are_clipped_together() -> None:
    from parts import ClipGradients

    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    for parameter, gradient in zip(parameters, (3.0, 4.0)):
        parameter.grad = torch.tensor([gradient])
    hook = ClipGradients(1.0)
    hook.trainer = SimpleNamespace(optimizer=torch.optim.SGD(parameters, 0.1))
    hook.after_backward()
    assert [each.grad.item() for each in parameters] == pytest.approx([0.6, 0.8], rel=1e-5)


def test_lazy_trains_and_goes_on(scenes: Path, tmp_path: Path) -> None:
    results = train_net(LAZY, *small(LAZY, scenes, tmp_path))
    assert {"bbox", "segm"} <= set(results)
    train_net(LAZY, "--resume", *small(LAZY, scenes, tmp_path, iterations=3))
    state = checkpoint(tmp_path)
    assert state["iteration"] == 2
    assert {int(each["step"]) for each in state["trainer"]["optimizer"]["state"].values()} == {3}
    again = train_net(LAZY, "--eval-only", "--resume", *small(LAZY, scenes, tmp_path))
    assert again.keys() == results.keys()


def test_evaluation_alone_gives_the_results_of_the_end(
    finished: tuple[Path, dict], scenes: Path, tmp_path: Path
) -> None:
    folder, results = finished
    weights = {"MODEL.WEIGHTS": folder / "model_final.pth"}
    again = train_net(YACS, "--eval-only", *small(YACS, scenes, tmp_path, **weights))
    assert json.dumps(again) == json.dumps(results)


def test_a_finished_run_resumes_at_its_end(finished: tuple[Path, dict], scenes: Path) -> None:
    folder, results = finished
    assert json.dumps(train_net(YACS, "--resume", *small(YACS, scenes, folder))) == json.dumps(results)


def test_killed_and_resumed(scenes: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "detection" / "train_net.py"), "--config-file", str(YACS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *small(YACS, scenes, tmp_path, iterations=1000)],
        env=environment,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
    )
    try:
        last, deadline = tmp_path / "last_checkpoint", time.monotonic() + 100
        while not last.is_file() or last.read_text() < "model_0000002.pth":
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = checkpoint(tmp_path)["iteration"] + 1
    assert done >= 3
    train_net(YACS, "--resume", *small(YACS, scenes, tmp_path, iterations=done + 2))
    state = checkpoint(tmp_path)
    assert (state["iteration"], optimizer_steps(state)) == (done + 1, {done + 2})
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert rows[-1]["iteration"] >= done


@pytest.fixture(params=["yacs", "lazy"])
def castled(request: pytest.FixtureRequest, scenes: Path, tmp_path: Path):
    """A trainer of a castled detector, by either kind of config, that has not begun."""
    import lazy_runs
    import yacs_runs
    from datasets_config import check_datasets, register_splits

    if request.param == "yacs":
        config, more = CONFIGS / "tiny" / "mask_rcnn_castled.yaml", {"SCHEDULES.LINEAR_FROM": 0.6}
    else:
        config = LAZY
        more = {"train.schedules": "[{_target_: asvit_plugin.AttentionSwitching, linear_from: 0.6}]"}
    args = parse("--config-file", str(config), *small(config, scenes, tmp_path, iterations=3, **more))
    cfg = load_config(args)
    if request.param == "lazy":
        _castle(cfg)
    check_datasets(cfg)
    register_splits(cfg)
    return (yacs_runs if request.param == "yacs" else lazy_runs), cfg, args


def _castle(cfg) -> None:
    from detectron2.config import LazyCall
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool

    from asvit_plugin.backbones.detectron2_backbone import TimmBackbone
    from asvit_plugin.backbones.simple_feature_pyramid import TimmFeaturePyramid

    arguments = dict(base="scaled_vit", depth=2, num_heads=2, head_dim=16, mlp_ratio=2.0)
    net = LazyCall(TimmBackbone)(name="castled", img_size=128, model_kwargs=arguments)
    top = LazyCall(LastLevelMaxPool)()
    cfg.model.backbone = LazyCall(TimmFeaturePyramid)(net=net, out_channels=48, top_block=top)


def test_schedules_reach_their_end_and_the_trunk_finishes(castled) -> None:
    from asvit_plugin.backbones.weights import find_trunk

    runs, cfg, args = castled
    trainer = runs.start_training(cfg, args)
    model = trainer.model
    trunk = find_trunk(model)[1].model
    blends: list[float] = []
    forward = model.backbone.forward

    def watch(*inputs):
        if model.training:
            blends.append(next(iter(castled_attention(trunk).values())).blend)
        return forward(*inputs)

    model.backbone.forward = watch
    runs.finish_training(trainer)
    assert blends == [2.0**-20, 1.0, 1.0]
    assert all((each.blend, each.threshold) == (1.0, 1.0) for each in castled_attention(trunk).values())
    asvit_plugin.finish(trunk)
    assert not any(each.softmax_branch for each in castled_attention(trunk).values())


def test_a_checkpoint_is_evaluated_in_the_state_that_it_was_trained_in(scenes: Path, tmp_path: Path) -> None:
    from yacs_runs import make_detector

    from asvit_plugin.backbones.weights import find_trunk

    config = CONFIGS / "tiny" / "mask_rcnn_castled.yaml"
    train_net(config, *small(config, scenes, tmp_path))
    states = {}
    for name in ("model_0000000", "model_final"):
        entries = {"MODEL.WEIGHTS": tmp_path / f"{name}.pth", "SCHEDULES.BLEND_UNTIL": 0.8}
        cfg = load_config(parse("--config-file", str(config), *small(config, scenes, tmp_path, **entries)))
        attention = castled_attention(find_trunk(make_detector(cfg))[1].model)["blocks.0"]
        states[name] = (attention.blend, attention.threshold)
    halfway = (pytest.approx(0.5 / 0.8), pytest.approx(0.02 ** (1 - 0.2 / 0.5)))
    assert states == {"model_0000000": halfway, "model_final": (1.0, 1.0)}


def test_progressive_tokenization_ends_with_all_tokens(scenes: Path, tmp_path: Path) -> None:
    import yacs_runs
    from datasets_config import check_datasets, register_splits

    from asvit_plugin.backbones.weights import find_trunk

    settings = {"SCHEDULES.PROGRESSIVE_TOKENIZATION": True, "SCHEDULES.PHASES": [[0.4, 8], [1.0, 4]]}
    args = parse("--config-file", str(YACS), *small(YACS, scenes, tmp_path, **settings))
    cfg = load_config(args)
    check_datasets(cfg)
    register_splits(cfg)
    trainer = yacs_runs.start_training(cfg, args)
    stem = find_trunk(trainer.model)[1].model.patch_embed.proj
    strides = []
    stem.register_forward_hook(lambda module, *_: strides.append(module.stride) if trainer.model.training else None)
    yacs_runs.finish_training(trainer)
    assert strides == [(8, 8), (4, 4)]
    assert stem.stride == (4, 4)


def test_weights_in_timms_layout_start_the_trunk(scenes: Path, tmp_path: Path) -> None:
    import yacs_runs
    from datasets_config import check_datasets, register_splits

    from asvit_plugin.backbones.weights import find_trunk

    file = tmp_path / "as_vit.pth"
    args = parse("--config-file", str(YACS), *small(YACS, scenes, tmp_path, **{"MODEL.WEIGHTS": file}))
    cfg = load_config(args)
    genotype = cfg.MODEL.TIMM.KWARGS.genotype
    model = timm.create_model("as_vit", genotype=genotype, img_size=128, num_classes=5)
    torch.save(model.state_dict(), file)
    check_datasets(cfg)
    register_splits(cfg)
    trunk = find_trunk(yacs_runs.start_training(cfg, args).model)[1].model
    weights = model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trunk.state_dict().items())
