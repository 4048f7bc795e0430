"""ViT-ResNAS: sizes, heads, spatial reduction, and weight files that do not fit."""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from plugin_models import CHEAP
from timm.models import save_for_hf
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

DEFINITION = CHEAP["vit_resnas"]["network_def"]
SIZES = [(64, 64), (112, 112), (100, 70), (224, 224), (65, 191)]
GRID = [(14, "stages.0"), (28, "stages.1"), (56, "stages.2")]


def tiny(**kwargs: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("vit_resnas", **{**dict(network_def=DEFINITION, num_classes=10, img_size=112), **kwargs})
    for parameter in model.parameters():  # so that nothing hides behind small initial values
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_features_cover_the_image(size: tuple[int, int]) -> None:
    features = timm.create_model("vit_resnas", network_def=DEFINITION, features_only=True)(torch.zeros(1, 3, *size))
    assert [tuple(f.shape[2:]) for f in features] == [tuple(math.ceil(s / r) for s in size) for r, _ in GRID]
    assert tiny().forward_features(torch.zeros(1, 3, *size)).shape[1] == 1 + math.prod(math.ceil(s / 56) for s in size)


def test_reduction_by_its_definition() -> None:
    """Main path: normed tokens through a strided convolution plus positions; skip: pooled tokens, zeros at the end."""
    reduction = tiny().double().stages[1].downsample
    prefix, x = torch.randn(2, 1, 16, dtype=torch.float64), torch.randn(2, 8, 8, 16, dtype=torch.float64)
    tokens = torch.cat([prefix, x.flatten(1, 2)], 1)
    normed = F.layer_norm(tokens, (16,), reduction.norm.weight, reduction.norm.bias, eps=1e-6)
    grid = normed[:, 1:].transpose(1, 2).reshape(2, 16, 8, 8)
    main = F.conv2d(grid, reduction.conv.weight, reduction.conv.bias, stride=2, padding=1).flatten(2).transpose(1, 2)
    main = main + reduction.pos_embed.flatten(1, 2)
    pooled = F.avg_pool2d(tokens[:, 1:].transpose(1, 2).reshape(2, 16, 8, 8), 2).flatten(2).transpose(1, 2)
    expected = main + torch.cat([pooled, torch.zeros(2, 16, 8, dtype=torch.float64)], -1)
    token = normed[:, :1] @ reduction.token_proj.weight.T + reduction.token_proj.bias
    token[..., :16] += prefix
    got_prefix, got = reduction(prefix, x, 112, 112)
    torch.testing.assert_close(got.flatten(1, 2), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(got_prefix, token, rtol=0, atol=1e-12)


def test_removed_blocks_count_for_drop_path_only() -> None:
    model = tiny(drop_path_rate=0.4)
    assert [len(stage.blocks) for stage in model.stages] == [1, 2, 1]
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.4])  # the removed one would have 0.3


@pytest.mark.parametrize(
    "stem, first_conv", [("(5, 16, 8)", "patch_embed.conv1.conv"), ("(0, 16)", "patch_embed.proj")]
)
def test_other_stems(stem: str, first_conv: str, tmp_path: Path) -> None:
    definition = DEFINITION.replace("(4, 16)", stem, 1)
    source = tiny(network_def=definition)
    assert source.network_def == definition
    assert source(torch.zeros(1, 3, 112, 112)).shape == (1, 10)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    overlay = dict(file=str(tmp_path / "weights.pth"), num_classes=10)
    grey = tiny_from(overlay, network_def=definition, in_chans=1)
    stem_weight = source.get_parameter(f"{first_conv}.weight").sum(1, keepdim=True)
    torch.testing.assert_close(grey.get_parameter(f"{first_conv}.weight"), stem_weight)


def tiny_from(overlay: dict[str, Any], **kwargs: Any) -> torch.nn.Module:
    arguments = {**dict(network_def=DEFINITION, num_classes=10, img_size=112), **kwargs}
    return timm.create_model("vit_resnas", pretrained=True, pretrained_cfg_overlay=overlay, **arguments).eval()


def test_distilled_net_averages_its_heads_and_returns_both_when_told() -> None:
    model = tiny(distilled=True)
    x = torch.randn(2, 3, 112, 112)
    features = model.forward_features(x)
    assert features.shape[1] == 2 + 4
    both = model.head(features[:, 0]), model.head_dist(features[:, 1])
    torch.testing.assert_close(model(x), (both[0] + both[1]) / 2)
    model.train().distilled_training = True
    assert [logits.shape for logits in model(x)] == [(2, 10), (2, 10)]
    model.eval().reset_classifier(4)
    assert model(x).shape == (2, 4)


def test_patch_head_speaks_in_training_only() -> None:
    model = tiny(patch_head=True)
    x = torch.randn(2, 3, 112, 112)
    assert model(x).shape == (2, 10)
    logits, patch_logits = model.train()(x)
    assert (logits.shape, patch_logits.shape) == ((2, 10), (2, 4, 10))
    (logits.sum() + patch_logits.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(ValueError, match="patch_head is True with distilled=True"):
        tiny(patch_head=True, distilled=True)


def test_prefix_tokens_with_intermediates() -> None:
    model = tiny(distilled=True)
    taps = model.forward_intermediates(torch.zeros(1, 3, 64, 64), return_prefix_tokens=True, intermediates_only=True)
    assert [prefix.shape for _, prefix in taps] == [(1, 2, 16), (1, 2, 24), (1, 2, 32)]


@pytest.mark.parametrize("global_pool", ["token", "avg", "max"])
def test_pooling(global_pool: str) -> None:
    model = tiny(global_pool=global_pool)
    x = torch.randn(1, 3, 112, 112)
    patches = model.forward_features(x)[:, 1:]
    pooled = {"token": model.forward_features(x)[:, 0], "avg": patches.mean(1), "max": patches.amax(1)}[global_pool]
    torch.testing.assert_close(model(x), model.head(pooled))


def test_one_compiled_program_serves_all_sizes() -> None:
    model, counter = tiny(), CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        for size in SIZES:
            x = torch.randn(2, 3, *size)
            torch.testing.assert_close(compiled(x), model(x))
    assert counter.frame_count <= 2


def test_export_and_script_serve_other_sizes() -> None:
    model = tiny()
    shapes = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
    program = torch.export.export(model, (torch.randn(2, 3, 100, 150),), dynamic_shapes=shapes).module()
    scripted = torch.jit.script(model)
    for size in SIZES:
        x = torch.randn(3, 3, *size)
        torch.testing.assert_close(program(x), model(x))
        torch.testing.assert_close(scripted(x), model(x))


def test_gradient_checkpointing_changes_nothing() -> None:
    model = tiny()
    x = torch.randn(1, 3, 112, 112)
    plain = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    model.set_grad_checkpointing()
    torch.testing.assert_close(torch.autograd.grad(model(x).sum(), list(model.parameters())), plain)


@pytest.mark.parametrize("kwargs", [{}, {"distilled": True}, {"patch_head": True}], ids=["plain", "distilled", "patch"])
def test_hub_round_trip(kwargs: dict[str, Any], tmp_path: Path) -> None:
    model = tiny(**kwargs)
    model.reset_classifier(7)
    model.set_input_size((128, 64))
    save_for_hf(model.eval(), tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 3, 128, 64)
    assert torch.equal(again(x), model(x))
    assert again.network_def == model.network_def


BAD_FILES = {
    "other_family": (lambda w: timm.create_model("test_vit").state_dict(), "lacks"),
    "block_missing": (
        lambda w: {k: v for k, v in w.items() if "stages.1.blocks.1" not in k},
        "it lacks stages.1.blocks.1",
    ),
    "left_over": (lambda w: {**w, "extra": torch.zeros(1)}, "the model has no extra"),
    "shape": (lambda w: {**w, "norm.weight": torch.zeros(3)}, r"norm.weight \(3,\) for \(32,\)"),
    "numpy": (lambda w: {**w, "norm.weight": np.zeros(3)}, r"not read for safety \(.*numpy.ndarray"),
    "path": (lambda w: {"state_dict": w, "from": Path("x")}, r"not read for safety \(pathlib"),
}


@pytest.mark.parametrize("classes", [10, 4], ids=["same_classes", "other_classes"])
@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_do_not_fit_are_refused(case: str, classes: int, tmp_path: Path) -> None:
    spoil, message = BAD_FILES[case]
    path = tmp_path / "weights.pth"
    torch.save(spoil(tiny().state_dict()), path)
    with pytest.raises(ValueError, match=message) as caught:
        tiny_from(dict(file=str(path), num_classes=10), num_classes=classes)
    assert "\n" not in str(caught.value)


def test_definition_is_read_from_the_file_or_refused_clearly(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    overlay = dict(file=str(path), num_classes=10)
    torch.save({"model": tiny().state_dict(), "args": argparse.Namespace(network_def=DEFINITION)}, path)
    model = timm.create_model(
        "vit_resnas", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=10, img_size=112
    )
    assert model.network_def == DEFINITION
    for content, message in ((b"", "no PyTorch checkpoint"), (None, "no such file")):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=f"network_def cannot be read from .*{message}"):
            timm.create_model("vit_resnas", pretrained=True, pretrained_cfg_overlay=overlay)
