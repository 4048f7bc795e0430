"""castle(), finish() and the registered ``castled``: weights kept, states saved, softmax really gone."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from plugin_models import cheap
from public_weights import hub_cache
from timm.models import save_for_hf
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import asvit_plugin
from asvit_plugin.layers import LinearAngularAttention, castled_attention

_VIT = dict(depth=3, embed_dim=32, num_heads=2)
# timm's models of every kind that castles, made small.
TIMM_MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": dict(_VIT, img_size=64),
    "deit_tiny_distilled_patch16_224": dict(_VIT, img_size=64),
    "deit3_small_patch16_224": dict(_VIT, img_size=64),
    "vit_base_patch16_clip_224": dict(_VIT, img_size=64),
    "vit_small_patch14_dinov2": dict(_VIT, img_size=70),
    "vit_small_patch14_reg4_dinov2": dict(_VIT, img_size=70),
    "vit_base_patch16_siglip_224": dict(_VIT, img_size=64),
    "vit_wee_patch16_reg1_gap_256": dict(_VIT, img_size=64),
    "vit_small_patch16_18x2_224": dict(_VIT, img_size=64),
    "pit_ti_224": dict(depth=[1, 1, 1], base_dims=[8, 8, 8], img_size=64),
    "pit_ti_distilled_224": dict(depth=[1, 1, 1], base_dims=[8, 8, 8], img_size=64),
    "crossvit_tiny_240": {},
}
OURS = ("as_vit", "scaled_pit", "scaled_vit", "vit_resnas")


def small(name: str) -> nn.Module:
    if name in OURS:
        return cheap(name)
    return timm.create_model(name, num_classes=10, **TIMM_MODELS[name]).eval()


def images_for(model: nn.Module, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, *timm.models.get_model_input_config(model)["input_size"])


def awaken(model: nn.Module) -> None:
    """Give the new parameters values that matter."""
    for attention in castled_attention(model).values():
        nn.init.normal_(attention.dconv.weight)
        nn.init.uniform_(attention.gain, 0.5, 2)


@pytest.mark.parametrize("name", [*TIMM_MODELS, *OURS])
def test_keeps_the_model_and_its_weights(name: str) -> None:
    model = small(name)
    x, before = images_for(model), model.state_dict()
    with torch.no_grad():
        expected = model(x)
        castled = asvit_plugin.castle(model)
        assert castled is model
        torch.testing.assert_close(castled(x), expected, rtol=0, atol=1e-6)
        after = castled.state_dict()
        new = set(after) - set(before)
        assert new
        assert all(key.endswith((".attn.dconv.weight", ".attn.gain")) for key in new)
        assert all(torch.equal(after[key], before[key]) for key in before)
        asvit_plugin.switch_attention(castled, blend=1.0, threshold=1.0)
        assert castled(x).isfinite().all()
        assert not torch.allclose(castled(x), expected)


@pytest.mark.parametrize("name", [*TIMM_MODELS, *OURS])
@pytest.mark.parametrize("state", [(0.0, 0.02), (0.4, 0.1), (1.0, 1.0), "finished"], ids=str)
def test_a_saved_model_is_rebuilt_in_its_state(name: str, state: Any, tmp_path: Path) -> None:
    blocks = list(range(0, len(castlable(name)), 2))
    model = asvit_plugin.castle(small(name), blocks=blocks, dwconv_kernel_size=3, mode="linear")
    awaken(model)
    if state == "finished":
        asvit_plugin.finish(model)
    else:
        asvit_plugin.switch_attention(model, *state)
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert loaded.pretrained_cfg["architecture"] == "castled"
    assert list(castled_attention(loaded)) == [castlable(name)[i] for i in blocks]
    x = images_for(model)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert {each.finished for each in castled_attention(loaded).values()} == {state == "finished"}


def castlable(name: str) -> list[str]:
    model = small(name)
    return asvit_plugin.layers.castle_blocks(model, "all")


@pytest.mark.parametrize("name", timm.list_models("castling_*"))
def test_every_castling_model_is_its_base_with_new_parameters(name: str) -> None:
    model = timm.create_model(name, device="meta")
    cfg = model.pretrained_cfg
    assert cfg["architecture"] == name
    assert cfg["input_size"] == (3, *[int(name.rpartition("_")[2])] * 2)
    base = timm.create_model(cfg["hf_hub_id"].removeprefix("timm/"), device="meta", img_size=cfg["input_size"][1:])
    own, theirs = (
        {key: tensor.shape for key, tensor in each.state_dict().items() if not key.endswith(("dconv.weight", "gain"))}
        for each in (model, base)
    )
    assert own == theirs
    assert all(attention.mode == "linear" for attention in castled_attention(model).values())
    assert len(castled_attention(model)) == sum(key.endswith("attn.qkv.weight") for key in theirs)


def test_castling_models_start_linear_and_are_saved_under_their_name(tmp_path: Path) -> None:
    model = cheap("castling_deit_tiny_patch16_224", blocks=["blocks.1", "blocks.3"])
    awaken(model)
    assert {attention.mode for attention in castled_attention(model).values()} == {"linear"}
    asvit_plugin.switch_attention(model, 0.5, 0.1)
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert loaded.pretrained_cfg["architecture"] == "castling_deit_tiny_patch16_224"
    x = images_for(model)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize(
    "name, weights",
    [
        ("castling_deit_tiny_patch16_224", "deit_tiny_patch16_224.fb_in1k"),
        ("castling_deit_tiny_patch16_384", "deit_tiny_patch16_224.fb_in1k"),
        ("castling_vit_small_patch16_224", "vit_small_patch16_224.augreg_in21k_ft_in1k"),
        ("castling_pit_ti_224", "pit_ti_224.in1k"),
    ],
)
def test_pretrained_loads_the_public_weights(name: str, weights: str, tmp_path: Path) -> None:
    public = timm.create_model(weights).eval()
    cache = hub_cache(tmp_path, {f"timm/{weights}": public})
    model = timm.create_model(name, pretrained=True, cache_dir=str(cache), img_size=224).eval()
    assert model.pretrained_cfg["mean"] == public.pretrained_cfg["mean"]
    new = set(model.state_dict()) - set(public.state_dict())
    assert all(key.endswith((".attn.dconv.weight", ".attn.gain")) for key in new)
    asvit_plugin.switch_attention(model, 0.0, 0.02)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(x), public(x), rtol=0, atol=1e-5)


def test_pretrained_base_of_the_registered_model(tmp_path: Path) -> None:
    public = timm.create_model("deit_tiny_patch16_224").eval()
    cache = hub_cache(tmp_path, {"timm/deit_tiny_patch16_224.fb_in1k": public})
    kwargs = dict(base="deit_tiny_patch16_224", blend=0.0, num_classes=7, pretrained=True, cache_dir=str(cache))
    model = timm.create_model("castled", **kwargs).eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model.forward_features(x), public.forward_features(x))
        assert model(x).shape == (1, 7)


def test_timms_scripts_get_the_config_of_the_base() -> None:
    """They resolve the registered config of ``castled`` first and hand it over."""
    arguments = timm.models.resolve_model_input_args("castled", {}, base="vit_small_patch16_224", num_classes=5)
    model = timm.create_model(**arguments, depth=1)
    assert model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    assert model.pretrained_cfg["hf_hub_id"] == "timm/vit_small_patch16_224.augreg_in21k_ft_in1k"
    assert model.pretrained_cfg["architecture"] == "castled"


def test_files_of_base_weights_and_of_castled_ones(tmp_path: Path) -> None:
    base = cheap("scaled_vit")
    torch.save(base.state_dict(), tmp_path / "base.pth")
    overlay = dict(file=str(tmp_path / "base.pth"), num_classes=10)
    model = cheap("castled", pretrained=True, pretrained_cfg_overlay=overlay, blend=0.0)
    x = images_for(model)
    with torch.no_grad():
        assert torch.equal(model(x), base(x))
    awaken(model)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "castled.pth")
    again = cheap("castled", pretrained=True, pretrained_cfg_overlay=dict(overlay, file=str(tmp_path / "castled.pth")))
    assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("gone", ["blocks.2.attn.gain", "blocks.1.attn.qkv.weight"])
def test_half_a_file_is_refused(gone: str, tmp_path: Path) -> None:
    weights = cheap("castled").state_dict()
    del weights[gone]
    torch.save(weights, tmp_path / "half.pth")
    overlay = dict(file=str(tmp_path / "half.pth"), num_classes=10)
    for classes in (10, 5):
        with pytest.raises(ValueError, match=f"it lacks {gone}"):
            cheap("castled", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes)


def test_a_half_file_of_a_stock_base_is_refused(tmp_path: Path) -> None:
    """timm alone loads it without a word when the number of classes differs."""
    weights = timm.create_model("vit_tiny_patch16_224", **TIMM_MODELS["vit_tiny_patch16_224"]).state_dict()
    del weights["blocks.1.mlp.fc1.weight"]
    torch.save(weights, tmp_path / "half.pth")
    kwargs = dict(TIMM_MODELS["vit_tiny_patch16_224"], base="vit_tiny_patch16_224", num_classes=5, pretrained=True)
    with pytest.raises(ValueError, match=r"it lacks blocks.1.mlp.fc1.weight"):
        timm.create_model("castled", pretrained_cfg_overlay=dict(file=str(tmp_path / "half.pth")), **kwargs)


def test_gains_are_calibrated_on_images() -> None:
    """To what the heads give in the model as it was, also behind other castled blocks."""
    model = small("vit_tiny_patch16_224")
    x = images_for(model, 4)
    asvit_plugin.castle(model, images=x, mode="linear")
    asvit_plugin.switch_attention(model, 0.0, 0.02)
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    for block in model.blocks:
        q, k, v = block.attn.heads(block.norm1(tokens))
        lengths = nn.functional.scaled_dot_product_attention(q, k, v).norm(dim=-1).mean(dim=(0, 2))
        torch.testing.assert_close(block.attn.gain.data, lengths.detach())
        tokens = block(tokens)


def test_class_and_register_tokens_stay_out_of_the_convolution() -> None:
    prefixes = {"deit_tiny_distilled_patch16_224": 2, "vit_small_patch14_reg4_dinov2": 5, "pit_ti_224": 1, "as_vit": 0}
    prefixes["crossvit_tiny_240"] = 1
    for name, number in prefixes.items():
        model = asvit_plugin.castle(small(name))
        assert {attention.num_prefix_tokens for attention in castled_attention(model).values()} == {number}


@pytest.mark.parametrize("wrapper", ["compiled", "averaged", "features"])
def test_wrappers_are_looked_through(wrapper: str, tmp_path: Path) -> None:
    model = small("vit_tiny_patch16_224")
    wrapped = {
        "compiled": lambda: torch.compile(model, backend="eager"),
        "averaged": lambda: timm.utils.ModelEmaV3(model),
        "features": lambda: cheap("scaled_vit", features_only=True),
    }[wrapper]()
    assert asvit_plugin.castle(wrapped) is wrapped
    inner = timm.utils.unwrap_model(wrapped)
    inner = inner.model if wrapper == "features" else inner
    assert list(castled_attention(inner)) == inner._model_args["blocks"]
    assert {attention.num_prefix_tokens for attention in castled_attention(inner).values()} == {1}
    if wrapper != "features":
        save_for_hf(inner, str(tmp_path), safe_serialization=True)
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_measuring_leaves_the_model_as_it_was() -> None:
    """Batch statistics and dropout are off while images are looked at, and a failure undoes the swap."""
    model = timm.create_model("mobilevit_xxs").eval()
    x = torch.randn(2, 3, 256, 256)
    expected = model(x)
    asvit_plugin.castle(model.train(), images=3 * x)
    assert model.training
    assert torch.equal(model.eval()(x), expected)
    fixed = small("vit_tiny_patch16_224")
    with pytest.raises(ValueError, match=r"images of shape \(1, 3, 100, 100\) do not fit the model"):
        asvit_plugin.castle(fixed, images=torch.zeros(1, 3, 100, 100))
    assert not castled_attention(fixed)
    asvit_plugin.castle(fixed)


def test_half_precision_and_back_keeps_the_state() -> None:
    model = asvit_plugin.castle(small("vit_tiny_patch16_224"))
    asvit_plugin.switch_attention(model, 0.3, 0.1)
    x = images_for(model)
    model.half().float()  # rounds the weights
    expected = model(x)
    asvit_plugin.switch_attention(model, 0.3, 0.1)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("img_size, expected", [(64, 0), (128, 4)])
def test_auto_castles_where_linear_pays(img_size: int, expected: int) -> None:
    """Heads of 8 channels: from 64 tokens on. At 64 px there are 17, at 128 px 65."""
    model = cheap("scaled_vit")
    if expected:
        asvit_plugin.castle(model, blocks="auto", img_size=img_size)
        assert model._model_args["blocks"] == [f"blocks.{i}" for i in range(expected)]
    else:
        with pytest.raises(ValueError, match=r"nothing: blocks.0 has 17 tokens and linear attention pays from 64 on;"):
            asvit_plugin.castle(model, blocks="auto", img_size=img_size)


def test_auto_goes_by_measurements_where_there_are_any(tmp_path: Path) -> None:
    from asvit_plugin.costs import AttentionTiming, write_attention_timings

    timings = [AttentionTiming(2, 8, 16, softmax=1.0, linear=0.9), AttentionTiming(2, 8, 64, softmax=4.0, linear=1.0)]
    table = write_attention_timings(timings, "cpu", "eager", tmp_path / "table.json")
    model = asvit_plugin.castle(cheap("scaled_vit"), blocks="auto", table=str(table))
    assert len(castled_attention(model)) == 4
    with pytest.raises(ValueError, match="castles nothing"):
        asvit_plugin.castle(cheap("scaled_vit"), blocks="auto", table=str(table), runtime="compile")


def test_auto_of_a_pyramid_takes_its_large_stages() -> None:
    model = asvit_plugin.castle(cheap("scaled_pit"), blocks="auto", img_size=128)
    assert model._model_args["blocks"] == ["transformers.0.blocks.0"]


@pytest.mark.parametrize(
    "name, reason",
    [
        ("beit_base_patch16_224", "a relative position bias"),
        ("swin_tiny_patch4_window7_224", "a relative position bias"),
        ("vit_relpos_small_patch16_224", "a relative position bias"),
        ("levit_128s", "a position bias on its weights"),
        ("mvitv2_tiny", "a relative position bias"),
        ("vit_small_patch16_dinov3", "EvaAttention has rotary positions"),
        ("vit_base_patch16_xp_224", "blocks.0 is a ParallelScalingBlock"),
        ("resnet18", "no module is timm.layers.Attention"),
    ],
)
def test_what_has_no_linear_form_is_refused_by_name(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has no attention that can be castled: .*{reason}"):
        asvit_plugin.castle(timm.create_model(name, device="meta"))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(blocks=[]), "blocks is empty"),
        (dict(blocks="some"), "blocks is 'some'; it must be 'all', or a list"),
        (dict(blocks=0), "blocks is 0; it must be 'all', or a list"),
        (dict(blocks="auto", runtime="tensorrt"), "runtime is 'tensorrt'; it must be one of 'eager', 'compile'"),
        (dict(blocks="auto", img_size="big"), "img_size is 'big'"),
        (dict(blocks=[4]), "blocks names 4; castled can be 'blocks.0' to 'blocks.3', or 0 to 3"),
        (dict(blocks=["blocks.9"]), "blocks names 'blocks.9'"),
        (dict(mode="cosine"), "mode is 'cosine'"),
        (dict(dwconv="2d_head"), "dwconv must be '1d_head' in a castled model"),
        (dict(images=torch.zeros(1, 3, 64, 64), output_gain=False), "there are no gains to set"),
        (dict(blocks="auto", table="/nowhere.json"), "cannot be read from /nowhere.json"),
    ],
)
def test_bad_arguments_get_one_sentence(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asvit_plugin.castle(cheap("scaled_vit"), **kwargs)


def test_cross_attention_is_refused_by_name() -> None:
    model = timm.create_model("crossvit_tiny_240", device="meta")
    with pytest.raises(ValueError, match=r"'blocks.0.fusion.0', whose attention cannot be castled: CrossAttention has"):
        asvit_plugin.castle(model, blocks=["blocks.0.fusion.0"])


def test_more_refusals() -> None:
    with pytest.raises(ValueError, match="'kernel' is no option of castling"):
        asvit_plugin.castle(cheap("scaled_vit"), kernel=3)
    with pytest.raises(ValueError, match="castled already, in blocks.0"):
        asvit_plugin.castle(cheap("castled"))
    with pytest.raises(ValueError, match="base is 'vit_of_mine'; it must be the name of a timm model"):
        timm.create_model("castled", base="vit_of_mine")
    with pytest.raises(ValueError, match="'deit_tiny_patch16_224.mine' names weights that timm does not know"):
        timm.create_model("castled", base="deit_tiny_patch16_224.mine")
    model = cheap("scaled_vit")
    model.blocks[1].attn.qkv = nn.Sequential(model.blocks[1].attn.qkv)
    with pytest.raises(ValueError, match="blocks.1.attn.qkv is a Sequential; castling needs an nn.Linear"):
        asvit_plugin.castle(model)
    assert not castled_attention(model)
    with pytest.raises(ValueError, match="blocks is 'auto'; it must be 'all' or a list here"):
        timm.create_model("castled", blocks="auto")
    with pytest.raises(ValueError, match="scaled_vit has no castled block"):
        asvit_plugin.switch_attention(cheap("scaled_vit"), 1, 1)
    with pytest.raises(ValueError, match=r"img_size is 100; .*224"):
        asvit_plugin.castle(timm.create_model("deit_tiny_patch16_224", device="meta"), blocks="auto", img_size=100)


def test_a_module_of_no_factory_castles_too() -> None:
    model = nn.Sequential(timm.models.vision_transformer.Block(16, 2))
    asvit_plugin.castle(model)
    assert isinstance(model[0].attn, LinearAngularAttention)


@pytest.mark.parametrize("name", ["castling_deit_tiny_patch16_224", "castling_pit_ti_224"])
def test_one_compiled_program_serves_all_sizes(name: str) -> None:
    model, counter = cheap(name), CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        for size in ((64, 64), (96, 128), (100, 150), (160, 96), (130, 70)):
            x = torch.randn(2, 3, *size)
            torch.testing.assert_close(compiled(x), model(x))
    assert counter.frame_count <= 2
