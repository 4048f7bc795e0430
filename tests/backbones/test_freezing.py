"""hold_still(): what is frozen computes as in evaluation, down to dropout that has no parameters."""

import pytest
import timm
import torch
from plugin_models import CHEAP
from torch import nn

from asvit_plugin.backbones import FeatureTrunk
from asvit_plugin.backbones.freezing import hold_still, stages_of

VIT = dict(depth=2, embed_dim=16, num_heads=2, img_size=64, pos_drop_rate=0.1, drop_rate=0.1)


def frozen(model: nn.Module, *prefixes: str) -> nn.Module:
    """In training, with parameters of these names frozen."""
    for name, parameter in model.named_parameters():
        if name.startswith(prefixes):
            parameter.requires_grad_(False)
    hold_still(model.train())
    return model


def vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", **VIT)


@pytest.mark.parametrize(
    "prefixes, still",
    [
        ((), set()),
        (("patch_embed",), {"patch_embed"}),  # positions learn, and their dropout acts
        (("patch_embed", "pos_embed", "cls_token"), {"patch_embed", "pos_drop", "patch_drop", "norm_pre"}),
        (("blocks.0",), set()),
        (("blocks", "norm"), {"blocks", "norm"}),
        (
            ("patch_embed", "pos_embed", "cls_token", "blocks", "norm"),
            {"patch_embed", "pos_drop", "patch_drop", "norm_pre", "blocks", "norm", "fc_norm"},
        ),
    ],
    ids=["nothing", "patches", "stem", "a_block", "blocks", "backbone"],
)
def test_what_is_held_still(prefixes: tuple[str, ...], still: set[str]) -> None:
    model = frozen(vit(), *prefixes) if prefixes else vit().train()
    hold_still(model)
    assert {name for name, module in model.named_children() if not module.training} == still
    assert model.training
    assert model.blocks[0].training == ("blocks" not in prefixes and "blocks.0" not in prefixes)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "as_vit"])
def test_a_trunk_holds_the_same_still(name: str) -> None:
    kwargs = VIT if name != "as_vit" else {**CHEAP["as_vit"], "pos_drop_rate": 0.1}
    trunk = FeatureTrunk(name, frozen_stages=0, model_kwargs=kwargs).train()
    model = timm.create_model(name, **kwargs)
    stem = tuple(name for name, stage in stages_of(model).items() if stage == 0)
    modes = {name: module.training for name, module in frozen(model, *stem).named_modules()}
    assert not modes["pos_drop"]
    assert modes | {name: module.training for name, module in trunk.model.named_modules()} == modes


def test_shared_parameters_count_under_each_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Linear(2, 2))
    model[1][0].weight, model[1][0].bias = model[0].weight, model[0].bias
    assert not frozen(model, "0.")[1].training
    assert torch.equal(model[1](torch.ones(1, 2)), model[0](torch.ones(1, 2)))


@pytest.mark.parametrize("value", [True, False, 1.0, "1"], ids=repr)
def test_numbers_of_stages_are_whole(value: object) -> None:
    with pytest.raises(ValueError, match=rf"frozen_stages is {value!r}; it must be from -1"):
        FeatureTrunk("test_resnet", frozen_stages=value)
