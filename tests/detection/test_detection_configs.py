"""Every config builds its detector, on meta tensors; LazyConfigs build what their yacs counterparts build."""

from pathlib import Path

import pytest
import torch
from detection_runs import CONFIGS

pytest.importorskip("detectron2", reason="detectron2 is not installed, and on no index; the README says how")

from detection_config import load_config
from detectron2.config import instantiate
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model
from torch import nn

from asvit_plugin.backbones import FeatureTrunk, layer_decay_factors

YAMLS = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml") if "Base" not in path.name)
LAZY = {
    "mask_rcnn_as_vit_small.py": "mask_rcnn_as_vit_small.yaml",
    "mask_rcnn_castling_deit_tiny.py": "mask_rcnn_castling_deit_tiny.yaml",
    "mask_rcnn_scaled_vit.py": "mask_rcnn_scaled_vit.yaml",
    "tiny/tiny_mask_rcnn.py": "tiny/mask_rcnn_as_vit.yaml",
}


def load(name: str, *overrides: str):
    return load_config(default_argument_parser().parse_args(["--config-file", str(CONFIGS / name), *overrides]))


def build_yacs(name: str) -> nn.Module:
    cfg = load(name, "MODEL.DEVICE", "meta", "MODEL.TIMM.PRETRAINED", "False")
    with torch.device("meta"):
        return build_model(cfg)


def build_lazy(name: str) -> nn.Module:
    cfg = load(name, *(["model.backbone.net.pretrained=False"] if "deit" in name else []))
    with torch.device("meta"):
        return instantiate(cfg.model)


def check_levels(model: nn.Module) -> None:
    """Proposals and heads take maps that the pyramid has, with anchors for each."""
    shapes = model.backbone.output_shape()
    part = getattr(model, "proposal_generator", model)
    names = list(getattr(part, "in_features", None) or part.head_in_features)
    assert set(names) <= set(shapes)
    assert len(part.anchor_generator.cell_anchors) == len(names)
    assert list(part.anchor_generator.strides) == [shapes[name].stride for name in names]


@pytest.mark.parametrize("name", YAMLS)
def test_a_yacs_config_builds(name: str) -> None:
    model = build_yacs(name)
    check_levels(model)
    trunks = [module for module in model.modules() if isinstance(module, FeatureTrunk)]
    assert len(trunks) == ("resnet" not in Path(name).stem.split("_"))
    assert model.input_format == "RGB"
    assert model.pixel_mean.flatten().shape == (3,)


@pytest.mark.parametrize("lazy, yacs", LAZY.items())
def test_a_lazy_config_builds_the_same(lazy: str, yacs: str) -> None:
    model = build_lazy(lazy)
    check_levels(model)
    ours = {name: tuple(each.shape) for name, each in model.named_parameters()}
    theirs = {name: tuple(each.shape) for name, each in build_yacs(yacs).named_parameters()}
    assert {name.replace(".net.", ".bottom_up.") for name in ours} == {
        name.replace(".net.", ".bottom_up.") for name in theirs
    }
    assert ours == theirs


def test_every_lazy_config_is_tested() -> None:
    others = ("common", "mmdet")  # parts, and configs of another library
    found = {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.py") if path.parent.name not in others}
    assert found == {*LAZY}


@pytest.mark.parametrize("name", [name for name in YAMLS if name.startswith("tiny") and "resnet" not in name])
def test_layer_decay_covers_the_trunk(name: str) -> None:
    """The stem learns slowest, all of the trunk slower than the heads, and nothing is left out."""
    model = build_yacs(name)
    factors = layer_decay_factors(model, 0.5)
    assert set(factors) == {parameter for parameter, _ in model.named_parameters()}
    trunk = next(path for path, module in model.named_modules() if isinstance(module, FeatureTrunk)) + ".model."
    inside = {parameter: factor for parameter, factor in factors.items() if parameter.startswith(trunk)}
    assert len(inside) > 10
    assert all(factor < 1 for factor in inside.values())
    assert min(inside.values()) == 0.5 ** len(set(inside.values()))
    assert all(factor == 1 for parameter, factor in factors.items() if parameter not in inside)


def test_layer_decay_reaches_the_optimizer() -> None:
    from yacs_runs import Trainer

    cfg = load("tiny/mask_rcnn_as_vit.yaml", "SOLVER.LAYER_DECAY", "0.5", "MODEL.DEVICE", "meta")
    model = build_yacs("tiny/mask_rcnn_as_vit.yaml")
    optimizer = Trainer.build_optimizer(cfg, model)
    rates = {id(each): group["lr"] for group in optimizer.param_groups for each in group["params"]}
    factors = layer_decay_factors(model, 0.5)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {name: rates[id(each)] / 1e-3 for name, each in model.named_parameters()} == pytest.approx(factors)
    decays = {id(each): group["weight_decay"] for group in optimizer.param_groups for each in group["params"]}
    named = {name: decays[id(each)] for name, each in model.named_parameters()}
    assert named["backbone.bottom_up.model.pos_embed"] == 0
    assert named["roi_heads.box_head.fc1.weight"] == 0.05
