"""As-ViT's geometry: image sizes, padding, windows, positions, the feature pyramid."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny

from asvit_plugin.layers import resample_pos_embed

SIZES = [(32, 32), (64, 64), (65, 64), (33, 97), (100, 75), (1, 1), (31, 200)]
SPLIT_3 = "4,3,2|2,1,2|2,1,2|2,1,2|8,8"  # pads 64 pixels to 96: a whole row and column of last-stage tokens


@pytest.mark.parametrize("window_policy", ["split", "size"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_size_gives_ceil_grids(size: tuple[int, int], window_policy: str) -> None:
    model = tiny(window_policy=window_policy, pretrain_img_size=32)
    x = torch.randn(2, 3, *size)
    final, pyramid = model.forward_intermediates(x)
    for i, feature in enumerate(pyramid):
        grid = [math.ceil(side / (4 * 2**i)) for side in size]
        assert feature.shape == (2, 8 * 2**i, *grid)
        assert feature.isfinite().all()
    torch.testing.assert_close(final, model.forward_features(x))
    assert model(x).shape == (2, 10)


def test_pyramid_precedes_the_merges() -> None:
    """Each stage's feature, merged, is what the next stage's blocks see."""
    model = tiny()
    x = torch.randn(1, 3, 64, 64)
    pyramid = model.forward_intermediates(x, intermediates_only=True)
    for before, stage, after in zip(pyramid, model.stages[1:], pyramid[1:]):
        expected = stage.blocks(stage.downsample(before.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        torch.testing.assert_close(after, expected)


def test_norm_is_applied_to_the_last_feature_only() -> None:
    model = tiny()
    torch.nn.init.normal_(model.norm.weight)
    x = torch.randn(1, 3, 64, 64)
    raw = model.forward_intermediates(x, intermediates_only=True)
    normed = model.forward_intermediates(x, intermediates_only=True, norm=True)
    assert all(torch.equal(a, b) for a, b in zip(raw[:3], normed[:3]))
    torch.testing.assert_close(normed[3].permute(0, 2, 3, 1), model.forward_features(x))


@pytest.mark.parametrize(
    "kwargs, size",
    [(dict(genotype=SPLIT_3), (64, 64)), (dict(window_policy="size", pretrain_img_size=64), (70, 130))],
    ids=["split3", "size"],
)
def test_pooled_feature_covers_the_image_alone(kwargs: dict, size: tuple[int, int]) -> None:
    model = tiny(**kwargs)
    tokens = []
    model.stages.register_forward_hook(lambda module, args, output: tokens.append(output))
    logits = model(torch.randn(2, 3, *size))
    height, width = (math.ceil(side / 32) for side in size)
    assert tokens[0].shape[1] > height  # there are tokens in the padding alone
    assert tokens[0].shape[2] > width
    normed = model.norm(tokens[0])

    def classify(pooled: torch.Tensor) -> torch.Tensor:
        return model.head.fc(torch.tanh(model.head.pre_logits.fc(pooled)))

    torch.testing.assert_close(logits, classify(normed[:, :height, :width].mean((1, 2))))
    assert not torch.allclose(logits, classify(normed.mean((1, 2))), atol=1e-4)


def test_no_padding_where_none_is_needed() -> None:
    model = tiny()
    seen = []
    model.patch_embed.proj.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    x = torch.randn(1, 3, 64, 96)
    model(x)
    before, after = model.patch_embed.kernel_pad
    assert torch.equal(seen[0], F.pad(x, (before, after, before, after)))


def test_padding_equals_zeros_around_the_image() -> None:
    model = tiny(genotype=SPLIT_3, pos_embed=False)
    x = torch.randn(1, 3, 64, 80)
    by_hand = F.pad(x, (0, 16, 0, 32))  # to 96 x 96
    torch.testing.assert_close(model.forward_features(x), model.forward_features(by_hand)[:, :2, :3], rtol=0, atol=0)


@pytest.mark.parametrize("size", [64, (64, 128)], ids=str)
def test_size_policy_equals_split_policy_at_the_pretraining_size(size: int | tuple[int, int]) -> None:
    split = tiny(img_size=size)
    sized = tiny(img_size=size, window_policy="size", pretrain_img_size=size)
    sized.load_state_dict(split.state_dict())
    x = torch.randn(2, 3, *split.img_size)
    assert torch.equal(sized(x), split(x))


def test_size_policy_keeps_windows_while_the_image_grows() -> None:
    model = tiny(img_size=256, window_policy="size", pretrain_img_size=64)
    windows = []
    for stage in model.stages:
        stage.blocks[0].attn.register_forward_hook(lambda module, args, output: windows.append(tuple(args[0].shape)))
    model.forward_features(torch.randn(1, 3, 256, 256))
    # 16 regions of 64 pixels: grids of 16, 8, 4 and 2 tokens, cut by the splits 2, 2, 1 and 1
    assert windows == [(64, 64, 8), (64, 16, 16), (16, 16, 32), (16, 4, 64)]


def test_size_policy_stretches_regions_to_tile_the_nominal_size() -> None:
    model = tiny(img_size=1024, window_policy="size", pretrain_img_size=224)
    assert model.patch_embed.pad_multiple == (256, 256)


def test_set_tokenization_coarsens_and_returns() -> None:
    model = tiny()
    x = torch.randn(1, 3, 128, 96)
    fine = model(x)
    assert model.forward_features(x).shape == (1, 4, 3, 64)
    model.set_tokenization(stride=16, dilation=4)
    assert model.forward_features(x).shape == (1, 1, 1, 64)
    assert not torch.allclose(model(x), fine)
    model.set_tokenization()
    assert torch.equal(model(x), fine)


def test_set_input_size_resamples_positions() -> None:
    model = tiny()
    table = model.pos_embed.detach().clone()
    model.pos_embed.requires_grad_(False)
    model.set_input_size((128, 64))
    assert model.pos_embed.shape == (1, 32, 16, 8)
    assert not model.pos_embed.requires_grad
    assert torch.equal(model.pos_embed, resample_pos_embed(table, 32, 16))


def test_positions_follow_the_image_without_set_input_size() -> None:
    model = tiny()
    x = torch.randn(1, 3, 96, 64)
    before = model(x)
    model.set_input_size((96, 64))
    torch.testing.assert_close(model(x), before)
    torch.nn.init.normal_(model.pos_embed)
    assert not torch.allclose(model(x), before)


@pytest.mark.parametrize(
    "kwargs, words",
    [
        (dict(img_size=0), "img_size is 0"),
        (dict(img_size=(64, 64, 64)), "img_size is"),
        (dict(img_size="64"), "img_size is '64'"),
        (dict(pretrain_img_size=-1), "pretrain_img_size is -1"),
        (dict(window_policy="shifted"), "window_policy is 'shifted'"),
        (dict(genotype="4,17,2|2,1,2|2,1,2|2,1,2|8,8"), r"S1 \(window split\) is 17; .* between 1 and 16"),
        (dict(genotype="4,1,2|2,1,2|2,1,2|2,3,2|8,8"), r"S4 \(window split\) is 3; .* between 1 and 2"),
    ],
    ids=["zero", "three_sides", "text", "negative", "policy", "split1", "split4"],
)
def test_bad_arguments_are_refused(kwargs: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        tiny(**kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kwargs, words",
    [
        (dict(img_size=(0, 64)), "img_size is"),
        (dict(img_size=16), "S1"),
        (dict(window_policy="shifted"), "window_policy is 'shifted'"),
        (dict(patch_size=16), "patch_size is 16"),
    ],
    ids=["size", "split", "policy", "patch_size"],
)
def test_refused_resize_leaves_the_model_as_it_was(kwargs: dict, words: str) -> None:
    model = tiny(genotype="4,8,2|2,1,2|2,1,2|2,1,2|8,8")
    x = torch.randn(1, 3, 64, 64)
    before = model(x)
    with pytest.raises(ValueError, match=words):
        model.set_input_size(**kwargs)
    assert model.img_size == (64, 64)
    model.set_input_size()
    assert torch.equal(model(x), before)


@pytest.mark.parametrize(
    "field, value", [("stem_stride", 0), ("stem_stride", -1), ("stem_stride", 2.0), ("weight_init", "zzz")]
)
def test_bad_arguments_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field} is {value!r}; it must be"):
        tiny(**{field: value})
