"""Scaled ViTs whose blocks see part of the tokens: the same features of the whole grid, at the cost of the part."""

from typing import Any

import pytest
import timm
import torch
from timm.models import get_model_args

from asvit_plugin.costs import ViTShape, macs, params
from asvit_plugin.models.scaled_vit import ScaledViT, StridedViT, sample_tokens, spread_tokens

SMALL: dict[str, Any] = dict(depth=2, num_heads=2, head_dim=8, img_size=96, num_classes=5)


def model(**kwargs: Any) -> StridedViT:
    return timm.create_model("scaled_vit", **SMALL | kwargs).eval()


@pytest.mark.parametrize("stride", [1, 2, 3, 7])
@pytest.mark.parametrize("grid", [(6, 6), (5, 7), (1, 4)], ids=str)
def test_tokens_go_to_the_places_that_they_stand_for(grid: tuple[int, int], stride: int) -> None:
    x = torch.arange(2.0 * (2 + grid[0] * grid[1]) * 3).reshape(2, -1, 3)
    few = sample_tokens(x, grid, stride, 2)
    assert few.shape[1] == 2 + -(-grid[0] // stride) * -(-grid[1] // stride)
    spread = spread_tokens(few, grid, stride, 2)
    assert torch.equal(spread[:, :2], x[:, :2])
    whole, source = spread[:, 2:].unflatten(1, grid), x[:, 2:].unflatten(1, grid)
    for row in range(grid[0]):
        for column in range(grid[1]):
            assert torch.equal(whole[:, row, column], source[:, row - row % stride, column - column % stride])


@pytest.mark.parametrize("kwargs", [{}, {"reg_tokens": 2, "no_embed_class": True}, {"pre_norm": True}], ids=str)
@pytest.mark.parametrize("size", [(96, 96), (90, 70)], ids=str)
def test_blocks_see_every_second_row_and_column(size: tuple[int, int], kwargs: dict[str, Any]) -> None:
    """Written out with the parts of the whole ViT."""
    whole = timm.create_model("scaled_vit", **SMALL | kwargs).eval()
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # so that nothing hides
    net = model(token_stride=2, **kwargs)
    assert type(whole) is ScaledViT
    net.load_state_dict(whole.state_dict())
    x, prefix = torch.randn(2, 3, *size), whole.num_prefix_tokens
    rows, columns = (-(-side // 16) for side in size)
    tokens = whole.norm_pre(whole._pos_embed(whole.patch_embed(x)))
    patches = tokens[:, prefix:].unflatten(1, (rows, columns))[:, ::2, ::2]
    few = whole.blocks(torch.cat([tokens[:, :prefix], patches.flatten(1, 2)], dim=1))
    assert len(few[0]) == prefix + -(-rows // 2) * -(-columns // 2)
    expected = whole.norm(spread_tokens(few, (rows, columns), 2, prefix))
    assert torch.equal(net.forward_features(x), expected)
    assert torch.equal(net(x), whole.forward_head(expected))
    assert not torch.allclose(net(x), whole(x), atol=1e-3)


def test_features_keep_the_whole_grid() -> None:
    net = model(token_stride=2, depth=3)
    x = torch.randn(2, 3, 90, 70)
    final, features = net.forward_intermediates(x, indices=[0, 2], norm=True)
    assert torch.equal(final, net.forward_features(x))
    assert [tuple(each.shape) for each in features] == [(2, 16, 6, 5)] * 2
    assert torch.equal(features[1].flatten(2).mT, final[:, 1:])
    pairs = net.forward_intermediates(
        x, indices=1, return_prefix_tokens=True, output_fmt="NLC", norm=True, intermediates_only=True, stop_early=True
    )
    assert torch.equal(torch.cat(pairs[0][::-1], dim=1), final)
    found = net.forward_intermediates(x, indices=1, return_prefix_tokens=True, output_dict=True)
    assert sorted(found) == ["image_features", "image_intermediates", "image_intermediates_prefix"]
    pyramid = timm.create_model("scaled_vit", features_only=True, out_indices=(0, 1), **SMALL, token_stride=2)
    assert pyramid.feature_info.reduction() == [16, 16]
    assert [tuple(each.shape[2:]) for each in pyramid(x)] == [(6, 5)] * 2


@pytest.mark.parametrize("stride", [1, 2, 3, 20])
@pytest.mark.parametrize("img_size", [96, 90])
def test_formula_equals_the_count(img_size: int, stride: int) -> None:
    net = timm.create_model("scaled_vit", **SMALL | {"img_size": img_size}, token_stride=stride, device="meta")
    shape = ViTShape([2] * 2, [4] * 2, 16, 8, img_size, num_classes=5, token_stride=stride)
    assert (macs(net), params(net)) == (shape.macs, shape.params)


def test_is_built_again_from_its_arguments() -> None:
    net = model(token_stride=2)
    assert get_model_args(net)["token_stride"] == 2
    again = timm.create_model("scaled_vit", **get_model_args(net)).eval()
    again.load_state_dict(net.state_dict())
    x = torch.randn(1, 3, 96, 96)
    assert torch.equal(again(x), net(x))
    net.set_input_size((64, 128))
    assert net(torch.randn(1, 3, 64, 128)).shape == (1, 5)


def test_scripts_exports_and_checkpoints() -> None:
    net, x = model(token_stride=2), torch.randn(2, 3, 90, 70)
    expected = net(x)
    torch.testing.assert_close(torch.jit.script(net)(x), expected)
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), expected)
    net.set_grad_checkpointing()
    torch.testing.assert_close(net(x), expected)
    torch.testing.assert_close(net.forward_intermediates(x)[0], net.forward_features(x))


def test_attention_masks_are_for_the_tokens_that_blocks_see() -> None:
    net, x = model(token_stride=2), torch.randn(2, 3, 96, 96)
    mask = torch.zeros(10, 10)
    torch.testing.assert_close(net.forward_features(x, attn_mask=mask), net.forward_features(x))
    torch.testing.assert_close(net.forward_intermediates(x, attn_mask=mask)[0], net.forward_features(x))


@pytest.mark.parametrize("stride", [0, -1, 1.5, "2", True])
def test_strides_that_are_none_are_refused(stride: Any) -> None:
    with pytest.raises(ValueError, match="token_stride is .*; it must be a whole number of at least 1"):
        StridedViT(stride, **SMALL)


def test_a_grid_with_holes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"patch_drop_rate is 0.5; it must be 0 with a token_stride"):
        model(token_stride=2, patch_drop_rate=0.5)
