"""Counted costs: torch's counter on meta tensors, fvcore's table beside it."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import asvit_plugin  # noqa: F401
from asvit_plugin.costs import cost_table, macs, params

MODELS = {
    "as_vit": dict(genotype="4,2,2|2,1,2|2,1,2|2,1,2|16,16", img_size=64),
    "vit_tiny_patch16_224": dict(img_size=64),
    "swin_tiny_patch4_window7_224": dict(),
    "resnet18": dict(),
}


def unfuse_attention(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False


@pytest.mark.parametrize("name", MODELS)
def test_macs_are_half_of_the_flops_that_torch_counts_while_running(name: str) -> None:
    model = timm.create_model(name, **MODELS[name]).eval()
    unfuse_attention(model)  # torch 2.11 does not count the fused kernel of the CPU
    size = MODELS[name].get("img_size", 224)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(2, 3, size, size))
    assert macs(model, (2, 3, size, size)) == counter.get_total_flops() // 2
    assert macs(model, (2, 3, size, size)) == 2 * macs(model, (3, size, size))


def test_linear_layer_by_hand() -> None:
    assert macs(nn.Linear(20, 30), torch.zeros(7, 20)) == 7 * 20 * 30
    assert params(nn.Linear(20, 30)) == 20 * 30 + 30


@pytest.mark.parametrize("fused", [True, False])
def test_attention_counts_the_same_fused_or_not(fused: bool) -> None:
    model = timm.create_model("vit_tiny_patch16_224")
    if not fused:
        unfuse_attention(model)
    assert macs(model) == 1_253_683_200


def test_default_input_is_the_models_own() -> None:
    model = timm.create_model("as_vit_small", device="meta", in_chans=1, img_size=256)
    assert macs(model) == macs(model, (1, 1, 256, 256)) > macs(model, (1, 224, 224))


def test_attention_pooling_counts() -> None:
    model = timm.create_model("test_vit3", img_size=64)  # its pooling query is expanded from a parameter
    assert macs(model, (2, 3, 64, 64)) == 2 * macs(model, (3, 64, 64)) > 0


def test_no_input_for_a_model_without_one() -> None:
    with pytest.raises(ValueError, match="a Linear names no input size"):
        macs(nn.Linear(3, 3))
    model = timm.create_model("resnet18", device="meta")
    model.pretrained_cfg = None
    with pytest.raises(ValueError, match="a ResNet names no input size"):
        macs(model)
    assert macs(model, (3, 64, 64)) > 0


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(4, 4)
    assert params(nn.Sequential(layer, layer)) == 20


def test_model_is_left_as_it_was() -> None:
    model = timm.create_model("resnet18").train()
    model.layer1.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    macs(model)
    assert model.training
    assert model.layer2.training
    assert not any(module.training for module in model.layer1.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(tensor.device.type == "cpu" for tensor in model.state_dict().values())


def test_compiled_models_are_looked_through() -> None:
    model = timm.create_model("vit_tiny_patch16_224", device="meta")
    assert macs(torch.compile(model)) == macs(model)


@pytest.mark.parametrize("shape", [(224,), (0, 3, 224, 224), (3, 224.0, 224), "224", 64])
def test_bad_shapes_are_refused(shape: object) -> None:
    with pytest.raises(ValueError, match="input is .* must be a tensor, or the shape"):
        macs(nn.Identity(), shape)


REFUSED = {
    "lstm": (
        nn.LSTM(3, 4),
        (2, 5, 3),
        r"LSTM takes no input of shape \[1, 2, 5, 3\] \(three numbers mean one image\): ",
    ),
    "channels": (nn.Conv2d(3, 4, 1), (1, 2, 5, 5), r"Conv2d takes no input of shape \[1, 2, 5, 5\]: "),
    "size": (
        timm.create_model("vit_tiny_patch16_224", depth=1, img_size=64, device="meta"),
        (3, 65, 64),
        r"VisionTransformer takes no input of shape \[1, 3, 65, 64\] \(three numbers mean one image\): ",
    ),
    "dims": (nn.Flatten(5), torch.zeros(2, 3), r"Flatten takes no input of shape \[2, 3\]: "),
    "arguments": (nn.Bilinear(2, 2, 2), torch.zeros(2, 3), r"Bilinear takes no input of shape \[2, 3\]: "),
}


@pytest.mark.parametrize("count", [macs, cost_table])
@pytest.mark.parametrize("case", REFUSED)
def test_inputs_that_a_model_does_not_take(case: str, count: Callable[..., Any]) -> None:
    if count is cost_table:
        pytest.importorskip("fvcore")
    model, given, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        count(model, given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["as_vit", "vit_tiny_patch16_224"])
def test_table_shows_the_same_total_as_the_count(name: str) -> None:
    pytest.importorskip("fvcore")
    model = timm.create_model(name, **MODELS[name])
    total = cost_table(model, (1, 3, 64, 64), max_depth=2).splitlines()[2].split("|")
    unit = {"K": 1e3, "M": 1e6, "G": 1e9}
    figures = [float(text.strip()[:-1]) * unit[text.strip()[-1]] for text in total[2:4]]
    assert figures == pytest.approx([params(model), macs(model, (1, 3, 64, 64))], rel=1e-3)


def test_table_of_a_meta_model() -> None:
    pytest.importorskip("fvcore")
    real, meta = (timm.create_model("as_vit", **MODELS["as_vit"], device=device) for device in ("cpu", "meta"))
    assert cost_table(meta) == cost_table(real)
    assert all(parameter.is_meta for parameter in meta.parameters())
