"""Scaled PiTs: timm's PiT at PiT's shapes, and any other shape at the cost that the formula says."""

import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import Attention
from timm.models import save_for_hf
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

from asvit_plugin.costs import PiTShape, macs, params
from asvit_plugin.layers import resample_pos_embed

_SIZES: dict[str, dict[str, Any]] = {
    "pit_ti": {},
    "pit_xs": dict(head_dim=48),
    "pit_s": dict(head_dim=48, num_heads=[3, 6, 12]),
    "pit_b": dict(head_dim=64, num_heads=[4, 8, 16], depth=[3, 6, 4], patch_size=14, stride=7),
}
PIT = {
    **{f"{name}_224": shape for name, shape in _SIZES.items()},
    **{f"{name}_distilled_224": dict(shape, distilled=True) for name, shape in _SIZES.items()},
}
TINY: dict[str, Any] = dict(depth=(1, 2, 1), num_heads=(1, 2, 4), head_dim=8, mlp_ratio=2, img_size=64, num_classes=10)
IMAGES = [(64, 64), (65, 63), (100, 150), (128, 128), (56, 72)]


def tiny(**kwargs: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("scaled_pit", **{**TINY, **kwargs})
    for parameter in model.parameters():  # so that nothing hides behind small initial values
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def pretrained(path: Path, classes: int = 10, **kwargs: Any) -> torch.nn.Module:
    """A scaled PiT with the weights of a file that has ``classes`` classes."""
    overlay = dict(file=str(path), num_classes=classes)
    return timm.create_model("scaled_pit", pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()


@pytest.mark.parametrize("name", PIT)
def test_has_pits_counts_and_names(name: str) -> None:
    ours = timm.create_model("scaled_pit", device="meta", **PIT[name])
    theirs = timm.create_model(name, device="meta")
    shapes = [(key, tensor.shape) for key, tensor in theirs.state_dict().items()]
    assert [(key, tensor.shape) for key, tensor in ours.state_dict().items()] == shapes
    assert macs(ours) == macs(theirs)


@pytest.mark.parametrize("name", ["pit_ti_224", "pit_b_distilled_224"])
@pytest.mark.parametrize("authors", [False, True], ids=["timms", "authors"])
def test_weights_go_both_ways_and_give_the_same_outputs(name: str, authors: bool, tmp_path: Path) -> None:
    """Full size in everything but depth; in timm's names and in those that the public files were made with."""
    shape = dict(PIT[name], depth=[1, 1, 1], num_classes=10)
    theirs = timm.create_model(name, depth=[1, 1, 1], num_classes=10).eval()
    weights = theirs.state_dict()
    if authors:
        stage = re.compile(r"^transformers\.(\d)\.pool")
        weights = {stage.sub(lambda m: f"pools.{int(m[1]) - 1}", key): value for key, value in weights.items()}
        assert "pools.1.conv.weight" in weights
        weights = {"model": weights}
    torch.save(weights, tmp_path / "pit.pth")
    ours = pretrained(tmp_path / "pit.pth", **shape)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
        tokens = ours.forward_features(x)
        assert torch.equal(tokens[:, : ours.num_prefix_tokens], theirs.forward_features(x))
        features = zip(
            ours.forward_intermediates(x, intermediates_only=True),
            theirs.forward_intermediates(x, intermediates_only=True),
        )
        assert all(torch.equal(mine, timms) for mine, timms in features)
    theirs.load_state_dict(ours.state_dict())


def test_weights_for_another_size_bring_a_resampled_table(tmp_path: Path) -> None:
    source = timm.create_model("pit_ti_224", depth=[1, 1, 1])
    torch.save(source.state_dict(), tmp_path / "pit.pth")
    for size, grid in ((288, (35, 35)), ((160, 231), (19, 28))):
        ours = pretrained(tmp_path / "pit.pth", classes=1000, depth=[1, 1, 1], img_size=size)
        table = resample_pos_embed(source.pos_embed.permute(0, 2, 3, 1), *grid).permute(0, 3, 1, 2)
        torch.testing.assert_close(ours.pos_embed, table)


def _without(weights: dict[str, Any], part: str) -> dict[str, Any]:
    return {name: value for name, value in weights.items() if part not in name}


BAD_FILES = {
    "block_missing": (lambda w: _without(w, "transformers.1.blocks.1"), r"it lacks transformers\.1\.blocks\.1"),
    "pool_missing": (lambda w: _without(w, "pool.fc"), r"it lacks transformers\.1\.pool\.fc"),
    "distilled": (lambda w: tiny(distilled=True).state_dict(), r"the model has no head_dist.*cls_token \(1, 2, 8\)"),
    "left_over": (lambda w: {**w, "pools.7.conv.weight": torch.zeros(1)}, r"has no transformers\.8\.pool"),
    "shape": (lambda w: {**w, "norm.weight": torch.zeros(3)}, r"norm.weight \(3,\) for \(32,\)"),
    "flat_table": (lambda w: {**w, "pos_embed": torch.zeros(1, 49, 8)}, "pos_embed must be a tensor of shape"),
    "other_family": (lambda w: timm.create_model("test_vit").state_dict(), "it lacks"),
}


@pytest.mark.parametrize("classes", [10, 4], ids=["same_classes", "other_classes"])
@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_do_not_fit_are_refused(case: str, classes: int, tmp_path: Path) -> None:
    spoil, message = BAD_FILES[case]
    torch.save(spoil(tiny().state_dict()), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message) as caught:
        pretrained(tmp_path / "weights.pth", **{**TINY, "num_classes": classes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(20))
def test_formula_equals_the_count(seed: int) -> None:
    draw = random.Random(seed)
    depth = [draw.randint(1, 3) for _ in range(draw.randint(1, 4))]
    widths = [8 * draw.randint(1, 8), *(draw.randint(1, 3) for _ in depth[1:])]
    patch_size = draw.choice([7, 14, 16])
    shape: dict[str, Any] = dict(
        num_heads=[[draw.randint(1, 8) for _ in range(blocks)] for blocks in depth],
        mlp_ratio=[[draw.choice([1, 2.5, 3, 4]) for _ in range(blocks)] for blocks in depth],
        embed_dims=list(itertools.accumulate(widths, lambda width, factor: width * factor)),
        head_dim=draw.choice([24, [draw.choice([8, 16]) for _ in depth]]),
        img_size=draw.randint(8, 288),
        patch_size=patch_size,
        stride=draw.randint(patch_size // 2, patch_size),
        in_chans=draw.choice([1, 3]),
        num_classes=draw.choice([10, 1000]),
        distilled=draw.random() < 0.5,
    )
    model = timm.create_model("scaled_pit", depth=depth, device="meta", **shape)
    formula = PiTShape(**shape)
    count = macs(model, (shape["in_chans"], shape["img_size"], shape["img_size"]))
    assert (params(model), count) == (formula.params, formula.macs)


def test_widths_differ_by_stage_and_block() -> None:
    model = tiny(embed_dims=(16, 16, 48), num_heads=(3, (1, 5), 2), head_dim=(4, 8, 12), mlp_ratio=(2, [1, 2.5], 3))
    blocks = [(i, block) for i, stage in enumerate(model.transformers) for block in stage.blocks]
    assert [stage for stage, _ in blocks] == [0, 1, 1, 2]
    assert {type(block.attn) for _, block in blocks} == {Attention}
    widths = [(block.attn.num_heads, block.attn.head_dim, block.mlp.fc1.out_features) for _, block in blocks]
    assert widths == [(3, 4, 32), (1, 8, 16), (5, 8, 40), (2, 12, 144)]
    assert [info["num_chs"] for info in model.feature_info] == [16, 16, 48]
    model(torch.randn(2, 3, 64, 48)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_any_number_of_stages_gives_all_its_features() -> None:
    for depth in ((1,), (1, 1), (1, 1, 1, 1)):
        model = timm.create_model("scaled_pit", depth=depth, num_heads=1, head_dim=8, features_only=True)
        assert [f.shape[2] for f in model(torch.zeros(1, 3, 64, 64))] == [7, 4, 2, 1][: len(depth)]
        assert model.feature_info.reduction() == [8, 16, 32, 64][: len(depth)]


@pytest.mark.parametrize("side, rows", [(1, 1), (16, 1), (17, 2), (24, 2), (25, 3), (224, 27), (230, 28)])
def test_patches_cover_every_pixel_once_padded(side: int, rows: int) -> None:
    model = tiny(img_size=side)
    assert model.pos_embed.shape[2:] == (rows, rows)
    x = torch.randn(1, 3, side, 40)
    assert model.patch_embed(x).shape[2:] == (rows, 4)
    pixels = x.requires_grad_()
    model.patch_embed(pixels).sum().backward()
    assert (pixels.grad != 0).all()
    padded = torch.nn.functional.pad(x, (0, 0, 0, 8 * (rows - 1) + 16 - side))
    torch.testing.assert_close(model(x), model(padded))


def test_images_of_another_size_get_a_resampled_table() -> None:
    model, x = tiny(), torch.randn(1, 3, 100, 70)
    free = model(x)
    model.set_input_size((100, 70))
    torch.testing.assert_close(model(x), free)
    with pytest.raises(ValueError, match="patch_size is 8; this PiT keeps its patches of 16 pixels"):
        model.set_input_size(patch_size=8)


def test_distilled_net_averages_its_heads_and_returns_both_when_told() -> None:
    model, x = tiny(distilled=True), torch.randn(2, 3, 64, 64)
    features = model.forward_features(x)
    both = model.head(features[:, 0]), model.head_dist(features[:, 1])
    torch.testing.assert_close(model(x), (both[0] + both[1]) / 2)
    model.train().distilled_training = True
    assert [logits.shape for logits in model(x)] == [(2, 10), (2, 10)]
    with pytest.raises(ValueError, match="global_pool is 'avg' with distilled=True; it must be 'token'"):
        model.reset_classifier(4, "avg")
    model.eval().reset_classifier(4)
    assert model(x).shape == (2, 4)


@pytest.mark.parametrize("global_pool", ["token", "avg", "max"])
def test_pooling(global_pool: str) -> None:
    model, x = tiny(global_pool=global_pool), torch.randn(1, 3, 64, 64)
    tokens = model.forward_features(x)
    pooled = {"token": tokens[:, 0], "avg": tokens[:, 1:].mean(1), "max": tokens[:, 1:].amax(1)}[global_pool]
    torch.testing.assert_close(model(x), model.head(pooled))


def test_prefix_tokens_with_intermediates() -> None:
    model, x = tiny(distilled=True), torch.zeros(1, 3, 64, 64)
    final, taps = model.forward_intermediates(x, return_prefix_tokens=True, norm=True)
    assert [prefix.shape for _, prefix in taps] == [(1, 2, 8), (1, 2, 16), (1, 2, 32)]
    torch.testing.assert_close(torch.cat([taps[-1][1], taps[-1][0].flatten(2).transpose(1, 2)], 1), final)


def test_one_compiled_program_serves_all_sizes() -> None:
    model, counter = tiny(depth=(1, 1), num_heads=(1, 2)), CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        for size in IMAGES:
            x = torch.randn(2, 3, *size)
            torch.testing.assert_close(compiled(x), model(x))
    assert counter.frame_count <= 2


def test_export_script_and_fx_serve_other_sizes() -> None:
    model = tiny(depth=(1, 1), num_heads=(1, 2))
    shapes = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
    program = torch.export.export(model, (torch.randn(2, 3, 100, 150),), dynamic_shapes=shapes).module()
    scripted, traced = torch.jit.script(model), torch.fx.symbolic_trace(model)
    for size in IMAGES:
        x = torch.randn(3, 3, *size)
        for each in (program, scripted, traced):
            torch.testing.assert_close(each(x), model(x))


def test_gradient_checkpointing_changes_nothing() -> None:
    model, x = tiny(), torch.randn(1, 3, 64, 64)
    plain = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    model.set_grad_checkpointing()
    torch.testing.assert_close(torch.autograd.grad(model(x).sum(), list(model.parameters())), plain)


def test_drop_path_rises_over_all_blocks() -> None:
    model = tiny(drop_path_rate=0.3)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for stage in model.transformers for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_meta_device_then_init_weights_equals_a_direct_build() -> None:
    meta = timm.create_model("scaled_pit", device="meta", **TINY).to_empty(device="cpu")
    for parameter in meta.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    meta.init_weights()
    direct = timm.create_model("scaled_pit", **TINY)
    for (name, ours), theirs in zip(meta.named_parameters(), direct.parameters()):
        assert ours.isfinite().all(), name
        assert ours.std(correction=0).item() == pytest.approx(theirs.std(correction=0).item(), rel=0.6, abs=1e-3), name


@pytest.mark.parametrize("kwargs", [{}, dict(distilled=True, num_heads=[1, [2, 1], 4], embed_dims=[8, 16, 32])])
def test_hub_round_trip(kwargs: dict[str, Any], tmp_path: Path) -> None:
    model = tiny(**kwargs)
    model.reset_classifier(7)
    model.set_input_size((128, 64))
    save_for_hf(model, tmp_path, safe_serialization=True)
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["depth"] == [1, 2, 1]
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 3, 128, 64)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(depth=12), "depth is 12; it must be whole numbers of at least 1, one per stage"),
        (dict(depth=[]), r"depth is \[\]"),
        (dict(depth=[2, 0, 4]), r"depth is \[2, 0, 4\]"),
        (dict(head_dim=-8), "head_dim is -8"),
        (dict(head_dim=[32, 32]), "head_dim has 2 values; depth has 3 stages, so it must have one or 3"),
        (dict(patch_size=1.5), "patch_size is 1.5; it must be a whole number of at least 1"),
        (dict(stride=0), "stride is 0; it must be a whole number from 1 to patch_size, which is 16"),
        (dict(stride=17), "stride is 17"),
        (dict(num_heads=0), "num_heads is 0; it must be positive whole numbers"),
        (dict(num_heads=[2, 4]), "num_heads has 2 values; depth has 3 stages"),
        (dict(num_heads=[2, [4, 4], 8]), r"num_heads\[1\] has 2 values; depth is 6, so it must have one or 6"),
        (dict(num_heads=[[2, 1], 4, 8]), r"num_heads\[0\] is \[2, 1\]; where blocks differ in heads, embed_dims must"),
        (dict(num_heads=[2, 4.5, 8]), r"num_heads\[1\] is 4.5"),
        (
            dict(num_heads=[2, 3, 8]),
            r"embed_dims is \[64, 96, 256\] \(num_heads \* head_dim\); each must be a multiple",
        ),
        (dict(embed_dims=[64, 128, 200]), r"embed_dims is \[64, 128, 200\]; each must be a multiple of the one before"),
        (dict(embed_dims=[64, 128]), "embed_dims has 2 values; depth has 3 stages"),
        (dict(mlp_ratio="4"), "mlp_ratio is '4'; it must be positive numbers"),
        (dict(mlp_ratio=[4, 4, [4, 4, 4, -1]]), r"mlp_ratio\[2\] is \[4, 4, 4, -1\]"),
        (dict(img_size=0), "img_size is 0"),
        (dict(global_pool="mean"), "global_pool is 'mean'; it must be one of 'token', 'avg', 'max', 'avgmax', ''"),
        (dict(global_pool="avg", distilled=True), "global_pool is 'avg' with distilled=True"),
        (dict(weight_init="xavier"), "weight_init is 'xavier'"),
    ],
)
def test_bad_shapes_get_one_sentence(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        timm.create_model("scaled_pit", device="meta", **kwargs)
    assert "\n" not in str(caught.value)
