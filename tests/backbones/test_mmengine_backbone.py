"""The trunk as a module of mmengine: from configs, in its runner, which must not initialise it anew."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from trunks import TRUNKS, arguments, make_trunk, strides_of

pytest.importorskip(
    "mmengine.runner", reason="mmengine or OpenCV is not installed: pip install 'asvit-plugin[openmmlab]'"
)

from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from asvit_plugin.backbones.mmengine_backbone import TimmTrunk


class Segmentor(BaseModel):
    """A backbone, and a head that mmengine initialises."""

    def __init__(self, backbone: dict[str, Any], init_cfg: dict[str, Any] | None = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.backbone = MODELS.build(backbone)
        self.head = nn.Conv2d(self.backbone.channels[0], 1, 1)

    def forward(self, inputs: torch.Tensor, mode: str = "loss") -> Any:
        maps = self.backbone(inputs)
        return dict(loss=sum(each.square().mean() for each in maps) + self.head(maps[0]).mean())


def config(name: str, **kwargs: Any) -> dict[str, Any]:
    return dict(type="TimmTrunk", **arguments(name, **kwargs))


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def check_same(module: nn.Module, before: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("name", list(TRUNKS))
def test_maps_and_initialisation(name: str) -> None:
    trunk = MODELS.build(config(name))
    assert isinstance(trunk, BaseModule)
    assert trunk.strides == strides_of(name)
    reference = make_trunk(name)
    trunk.load_state_dict(reference.state_dict())
    x = torch.randn(1, 3, 70, 90)
    maps = trunk.eval()(x)
    assert isinstance(maps, tuple)
    assert all(torch.equal(own, each) for own, each in zip(maps, reference.maps(x), strict=True))
    before = state(trunk)
    trunk.init_weights()
    check_same(trunk, before)
    assert trunk.is_init


@pytest.mark.parametrize("name", list(TRUNKS))
def test_a_model_around_it_does_not_initialise_it(name: str) -> None:
    layers = ["Conv2d", "Linear", "LayerNorm", "BatchNorm2d"]
    model = Segmentor(config(name), init_cfg=dict(type="Constant", val=0.5, layer=layers))
    before = state(model.backbone)
    model.init_weights()
    check_same(model.backbone, before)
    assert (model.head.weight == 0.5).all()


def test_plain_timm_models_would_be() -> None:
    """What this is for."""
    model = BaseModule()
    model.backbone = timm.create_model("as_vit", **TRUNKS["as_vit"])
    before = state(model.backbone)
    model.init_weights()
    assert not torch.equal(model.backbone.pos_embed, before["pos_embed"])


def test_runner_trains_what_was_loaded(tmp_path: Path) -> None:
    source = timm.create_model("as_vit", num_classes=7, **TRUNKS["as_vit"])
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = Config(dict(config("as_vit", weights=str(tmp_path / "weights.pth"), frozen_stages=1)))
    segmentor = Segmentor(model)
    data = [dict(inputs=torch.randn(3, 64, 64)) for _ in range(4)]
    runner = Runner(
        segmentor,
        str(tmp_path / "run"),
        train_dataloader=DataLoader(data, batch_size=2, sampler=DefaultSampler(data, seed=0)),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.0)),
        default_hooks=dict(checkpoint=None, logger=None),
        experiment_name="run",
        log_level="ERROR",
    )
    runner.train()
    trunk = segmentor.backbone
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in trunk.model.state_dict().items())
    assert not trunk.model.patch_embed.proj.weight.requires_grad
    assert not trunk.model.stages[0].training
    assert trunk.model.stages[1].training


def test_apply_is_otherwise_as_usual() -> None:
    seen = []
    MODELS.build(config("as_vit")).apply(lambda module: seen.append(type(module).__name__))
    assert "AsViTBlock" in seen


def test_refuses_an_init_cfg() -> None:
    with pytest.raises(ValueError, match="init_cfg is .*; it must be None here: name weights by pretrained or weights"):
        TimmTrunk("test_resnet", init_cfg=dict(type="Pretrained", checkpoint="weights.pth"))
