"""finish(): when the softmax branch may go, and that it is gone from the exported graph."""

from typing import Any

import pytest
import timm
import torch
from plugin_models import cheap, images
from torch import nn

import asvit_plugin
from asvit_plugin.layers import castle_blocks, castled_attention, mask_statistics
from asvit_plugin.layers.castling import calibrate_gains

TOKENS = 17  # of a cheap ViT at 64 px


def castled(threshold: float, blend: float = 1.0, scale: float = 1.0) -> nn.Module:
    """``scale`` sharpens the softmax."""
    model = cheap("castled", blend=blend, threshold=threshold)
    with torch.no_grad():
        for attention in castled_attention(model).values():
            attention.qkv.weight *= scale
    return model


def test_goes_when_the_threshold_is_one() -> None:
    model, x = castled(threshold=1.0), images()
    expected = model(x)
    assert asvit_plugin.finish(model) is model
    assert torch.equal(model(x), expected)
    assert {attention.mode for attention in castled_attention(model).values()} == {"linear"}


@pytest.mark.parametrize(
    "blend, threshold, message",
    [
        (1.0, 0.5, r"threshold is 0.5 in blocks.0; the softmax branch can go when it is 1, or when images are given"),
        (0.9, 1.0, r"blend is 0.9 in blocks.0; the softmax branch can go when it is 1"),
    ],
)
def test_does_not_go_before(blend: float, threshold: float, message: str) -> None:
    model = castled(threshold, blend)
    with pytest.raises(ValueError, match=message):
        asvit_plugin.finish(model)
    assert not any(attention.finished for attention in castled_attention(model).values())


def test_images_show_that_the_mask_is_empty() -> None:
    """No weight of this net's nearly flat softmax reaches 0.99, and every row has one of 1 / 17 or more."""
    model, x = castled(threshold=0.99), images()
    expected = model(x)
    asvit_plugin.finish(model, x)
    torch.testing.assert_close(model(x), expected)
    live = castled(threshold=0.9 / TOKENS)
    with pytest.raises(ValueError, match=r"in use: in blocks.\d, .*% of its weights .* make .*% of the output; tol"):
        asvit_plugin.finish(live, x)
    asvit_plugin.finish(live, x, tolerance=100.0)


NO_IMAGES = "it must be a float tensor"


@pytest.mark.parametrize(
    "x, message",
    [
        (images() * float("nan"), "in use"),
        (images(0), "images holds none"),
        (images()[0], NO_IMAGES),
        (images().to(torch.uint8), NO_IMAGES),
        ([1], f"images is a list; {NO_IMAGES}"),
        (images()[:, :1], r"images of shape \(\d, 1, 64, 64\) do not fit the model: .* 3 channels"),
        (images().half(), r"do not fit the model: Input type"),
    ],
    ids=["nan", "none", "one", "bytes", "list", "channels", "half"],
)
def test_images_that_show_nothing_are_refused(x: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asvit_plugin.finish(castled(threshold=0.99), x)


@pytest.mark.parametrize("x", [images(0), images() * float("nan"), images()[:, :1]], ids=["none", "nan", "channels"])
def test_gains_stay_where_images_show_nothing(x: torch.Tensor) -> None:
    model = cheap("scaled_vit")
    castle_blocks(model, "all", mode="softmax", output_gain=True)
    with pytest.raises(ValueError, match="images"):
        calibrate_gains(model, x)
    assert all(torch.equal(each.gain, torch.ones(each.num_heads)) for each in castled_attention(model).values())


def test_gains_are_set_in_all_blocks_or_none() -> None:
    """The second block makes what is not finite."""
    model = cheap("scaled_vit")
    castle_blocks(model, "all", mode="softmax", output_gain=True)
    with torch.no_grad():
        model.blocks[1].attn.qkv.bias.fill_(float("inf"))
    with pytest.raises(ValueError, match="images give blocks.1 outputs that are not finite"):
        calibrate_gains(model, images())
    assert torch.equal(model.blocks[0].attn.gain, torch.ones(model.blocks[0].attn.num_heads))


def test_statistics_by_brute_force() -> None:
    model, x = castled(threshold=0.06, scale=20), images()
    statistics = mask_statistics(model, x)
    assert list(statistics) == [f"blocks.{i}" for i in range(4)]
    attention = model.blocks[0].attn
    q, k, v = attention.heads(model.blocks[0].norm1(model.norm_pre(model._pos_embed(model.patch_embed(x)))))
    weights = (q @ k.transpose(-2, -1) * attention.scale).softmax(-1)
    assert statistics["blocks.0"].density == pytest.approx((weights > 0.06).float().mean().item())
    branch = torch.where(weights > 0.06, weights, 0) @ v
    unit_q, unit_k = nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1)
    y = v / 2 + unit_q @ unit_k.transpose(-2, -1) @ v / torch.pi + branch
    assert statistics["blocks.0"].share == pytest.approx((branch.norm(dim=-1) / y.norm(dim=-1)).mean().item(), rel=1e-4)


def test_a_finished_model_stays_so() -> None:
    model = asvit_plugin.finish(castled(threshold=1.0))
    asvit_plugin.switch_attention(model, 1.0, 1.0)
    with pytest.raises(ValueError, match="finished attention stays at 1 and 1"):
        asvit_plugin.switch_attention(model, 0.5, 1.0)


def square_tensors(model: nn.Module, img_size: int = 64) -> list[str]:
    """Operations of the exported and decomposed graph that make a tensor of tokens x tokens."""
    program = torch.export.export(model.eval(), (torch.randn(2, 3, img_size, img_size),)).run_decompositions()
    found = []
    for node in program.graph.nodes:
        value: Any = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.ndim >= 2 and value.shape[-1] == value.shape[-2] == TOKENS:
            found.append(node.name)
    return found


def test_no_token_by_token_tensor_is_left() -> None:
    assert not square_tensors(asvit_plugin.finish(castled(threshold=1.0)))
    some = cheap("castled", blocks=[0, 1, 2])
    assert square_tensors(asvit_plugin.finish(some))  # the last block is still softmax


@pytest.mark.parametrize("mode", ["stock", "softmax", "masked"])
def test_the_stock_model_and_other_states_have_one(mode: str) -> None:
    model = cheap("scaled_vit")
    assert square_tensors(model if mode == "stock" else asvit_plugin.castle(model, mode=mode))


def test_wrappers_are_looked_through() -> None:
    model = castled(threshold=1.0)
    asvit_plugin.finish(torch.compile(model, backend="eager"))
    assert all(attention.finished for attention in castled_attention(model).values())
    assert model._model_args["finished"] is True


def test_deit_at_224_px() -> None:
    """The real size: 197 tokens."""
    model = timm.create_model("deit_tiny_patch16_224", depth=1)
    program = torch.export.export(model.eval(), (torch.randn(1, 3, 224, 224),)).run_decompositions()
    assert any(tuple(node.meta["val"].shape[-2:]) == (197, 197) for node in tensors(program))
    finished = asvit_plugin.finish(asvit_plugin.castle(model, mode="linear"))
    program = torch.export.export(finished, (torch.randn(1, 3, 224, 224),)).run_decompositions()
    assert not any(tuple(node.meta["val"].shape[-2:]) == (197, 197) for node in tensors(program))


def tensors(program: torch.export.ExportedProgram) -> list[torch.fx.Node]:
    return [node for node in program.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
