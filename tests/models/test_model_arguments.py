"""Arguments that all families share: refused in one sentence, and features of nets with few blocks or stages."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from plugin_models import CHEAP, cheap
from timm.layers import DiffAttention
from torch import nn

from asvit_plugin import ScaledVideoViT

FAMILIES = ("as_vit", "fbnetv2_f1", "scaled_pit", "scaled_vit", "vit_resnas")
ONE_STAGE = "((4, 16), (1, (16, 2, 8), (16, 32), 1), (2, 16, 1000))"

REFUSED = {
    "negative_classes": (dict(num_classes=-1), "num_classes is -1; it must be a whole number of at least 0"),
    "no_number": (dict(num_classes="10"), "num_classes is '10'; it must be a whole number of at least 0"),
    "true_classes": (dict(num_classes=True), "num_classes is True; it must be a whole number of at least 0"),
    "no_channels": (dict(in_chans=0), "in_chans is 0; it must be a whole number of at least 1"),
    "rate": (dict(drop_path_rate=1.5), "drop_path_rate is 1.5; it must be a number from 0 to 1"),
    "nan": (dict(drop_path_rate=float("nan")), "drop_path_rate is nan; it must be a number from 0 to 1"),
    "pool": (dict(global_pool="foo"), "global_pool is 'foo'; it must be one of '"),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kwargs, message", REFUSED.values(), ids=REFUSED)
def test_bad_arguments(family: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        timm.create_model(family, **{**CHEAP.get(family, {}), **kwargs})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_classes, global_pool", [(-1, None), (True, None), (5, "foo")], ids=str)
def test_a_refused_classifier_leaves_the_old_one(family: str, num_classes: int, global_pool: str | None) -> None:
    model = cheap(family)
    head, classes, pool = model.get_classifier(), model.num_classes, model.global_pool
    with pytest.raises(ValueError, match="^num_classes is|^global_pool is 'foo'; it must be one of"):
        model.reset_classifier(num_classes, global_pool)
    assert (model.get_classifier(), model.num_classes, model.global_pool) == (head, classes, pool)


@pytest.mark.parametrize(
    "family, built, pool",
    [
        ("scaled_vit", dict(class_token=False, global_pool="avg"), "token"),
        ("scaled_vit", dict(global_pool="avg"), "map"),
        ("fbnetv2_f1", dict(global_pool="catavgmax"), "avg"),
    ],
    ids=["no_token", "no_attention_pool", "other_width"],
)
def test_a_pooling_that_the_net_is_not_built_for(family: str, built: dict[str, Any], pool: str) -> None:
    model = cheap(family, **built)
    with pytest.raises(ValueError, match=f"^global_pool is '{pool}'; it must be one of"):
        model.reset_classifier(5, pool)
    model.reset_classifier(5, built["global_pool"])
    assert model.num_classes == 5


def test_tokens_are_pooled_where_there_are_some() -> None:
    with pytest.raises(ValueError, match="^global_pool is 'token' with class_token=False;"):
        cheap("scaled_vit", class_token=False)


@pytest.mark.parametrize("family", ["as_vit", "scaled_pit", "vit_resnas"])
def test_other_formats_of_features(family: str) -> None:
    model = cheap(family)
    with pytest.raises(ValueError, match="^output_fmt is 'NLC'; it must be one of 'NCHW'$"):
        model.forward_intermediates(torch.zeros(1, 3, 64, 64), output_fmt="NLC")


@pytest.mark.parametrize("attn_layer", [DiffAttention, "diff", nn.Identity], ids=["class", "name", "other"])
def test_other_attention_is_not_dropped_silently(attn_layer: Any) -> None:
    with pytest.raises(ValueError, match="^attn_layer is .*; it must be timm's Attention"):
        cheap("scaled_vit", attn_layer=attn_layer)
    cheap("scaled_vit", attn_layer="attn")


@pytest.mark.parametrize("value", [True, 0, 2.5], ids=str)
@pytest.mark.parametrize(
    "family, field", [("as_vit", "stem_stride"), ("scaled_vit", "depth"), ("scaled_pit", "patch_size")]
)
def test_whole_numbers(family: str, field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} is {value}; it must be a whole number of at least 1"):
        cheap(family, **{field: value})


@pytest.mark.parametrize(
    "family, kwargs, indices",
    [
        ("scaled_vit", dict(depth=2), [0, 1]),
        ("scaled_vit", dict(depth=4), [1, 2, 3]),
        ("castling_deit_tiny_patch16_224", dict(depth=1), [0]),
        ("castling_pit_ti_224", dict(depth=(1, 1), num_heads=(2, 4)), [0, 1]),
        ("scaled_pit", dict(depth=(1,), num_heads=1), [0]),
        ("vit_resnas", dict(network_def=ONE_STAGE), [0]),
        ("fbnetv2_f1", dict(arch_def=[["ds_r1_k3_s1_e1_c16_nhs"], ["ir_r1_k5_s2_e2_c24_nhs"]]), [0, 1]),
    ],
    ids=str,
)
def test_features_of_shallow_nets(family: str, kwargs: dict[str, Any], indices: list[int]) -> None:
    model = timm.create_model(family, features_only=True, **kwargs)
    assert list(model.out_indices) == indices
    maps = model(torch.zeros(1, 3, 224, 224))
    assert [each.shape[1] for each in maps] == model.feature_info.channels()
    assert len(maps) == len(indices)
    one = timm.create_model(family, features_only=True, out_indices=(0,), **kwargs)
    assert list(one.out_indices) == [0]
    named = timm.create_model(family, features_only=True, feature_cls="getter", out_indices=(0,), **kwargs)
    assert type(named) is type(one)


def image_model() -> nn.Module:
    return cheap("scaled_vit")


def video_model() -> nn.Module:
    return ScaledVideoViT(num_frames=4, depth=1, num_heads=1, head_dim=8, img_size=32, num_classes=2)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(img_size=0), "img_size is 0; it must be a positive whole number or"),
        (dict(img_size="a"), "img_size is 'a'; it must be"),
        (dict(img_size=True), "img_size is True; it must be"),
        (dict(img_size=8), r"img_size is \(8, 8\); it must be at least patch_size, which is \(16, 16\)"),
        (dict(patch_size=0), "patch_size is 0; it must be"),
    ],
    ids=["zero", "text", "true", "below_a_patch", "patch"],
)
@pytest.mark.parametrize("make", [image_model, video_model])
def test_a_refused_size_changes_nothing(make: Callable[[], nn.Module], kwargs: dict[str, Any], message: str) -> None:
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sizes = dict(vars(model.patch_embed))
    frames = dict(num_frames=8) if make is video_model else {}
    with pytest.raises(ValueError, match=f"^{message}"):
        model.set_input_size(**kwargs, **frames)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    for field in ("img_size", "grid_size", "num_patches", "patch_size", "num_frames"):
        assert getattr(model.patch_embed, field, None) == sizes.get(field)


def test_sizes_and_frames_change_together() -> None:
    model = video_model()
    model.set_input_size(img_size=48, num_frames=8)
    assert (model.patch_embed.img_size, model.patch_embed.num_frames) == ((48, 48), 8)
    assert (model.pos_embed.shape[1], model.time_embed.shape[1]) == (1 + 9, 4)
    assert model(torch.zeros(1, 3, 8, 48, 48)).shape == (1, 2)
