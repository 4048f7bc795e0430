"""Weight files: every layout that is read, and what is adapted on the way."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from timm.models import save_for_hf
from tiny import tiny
from torch import nn

from asvit_plugin.layers import resample_pos_embed

Weights = dict[str, torch.Tensor]


def pretrained(path: Path, **kwargs: Any) -> nn.Module:
    """The tiny net, changed by ``kwargs``, with the weights of a file that has 10 classes."""
    return tiny(pretrained=True, pretrained_cfg_overlay=dict(file=str(path), num_classes=10), **kwargs)


def to_authors(weights: Weights) -> Weights:
    """Our names turned into the authors'."""
    names = [
        (r"^pos_embed$", "absolute_pos_embed"),
        (r"^stages\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample"),
        (r"^stages\.", "layers."),
        (r"\.norm2\.", ".mlps.0.0."),
        (r"\.mlp\.", ".mlps.0.1."),
        (r"^head\.pre_logits\.fc", "head.0"),
        (r"^head\.fc", "head.2"),
    ]
    for pattern, name in names:
        weights = {re.sub(pattern, name, key): tensor for key, tensor in weights.items()}
    weights["absolute_pos_embed"] = weights["absolute_pos_embed"].flatten(1, 2)
    return weights


LAYOUTS: dict[str, Callable[[Weights], Any]] = {
    "ours": lambda w: w,
    "authors": to_authors,
    "authors_model": lambda w: {"model": to_authors(w), "epoch": 3, "optimizer": {"state": {}}},
    "model": lambda w: {"model": w},
    "state_dict": lambda w: {"state_dict": w, "epoch": 3, "arch": "as_vit"},
    "distributed": lambda w: {"state_dict": {f"module.{name}": tensor for name, tensor in w.items()}},
    "compiled": lambda w: {"state_dict": {f"_orig_mod.{name}": tensor for name, tensor in w.items()}},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(layout: Callable[[Weights], Any], tmp_path: Path) -> None:
    source = tiny()
    torch.save(layout(source.state_dict()), tmp_path / "weights.pth")
    loaded = pretrained(tmp_path / "weights.pth")
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded(x), source(x))


def test_averaged_weights_come_first(tmp_path: Path) -> None:
    raw, averaged = tiny(), tiny()
    both = {"state_dict": raw.state_dict(), "state_dict_ema": averaged.state_dict()}
    torch.save(both, tmp_path / "last.pth.tar")
    x = torch.randn(2, 3, 64, 64)
    loaded = pretrained(tmp_path / "last.pth.tar")(x)
    assert torch.equal(loaded, averaged(x))
    assert not torch.equal(loaded, raw(x))


def test_safetensors(tmp_path: Path) -> None:
    source = tiny()
    safetensors.torch.save_file(source.state_dict(), tmp_path / "model.safetensors")
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(pretrained(tmp_path / "model.safetensors")(x), source(x))


@pytest.mark.parametrize("window_policy", ["split", "size"])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pytorch"])
def test_hub_round_trip_after_every_change(safe: bool, window_policy: str, tmp_path: Path) -> None:
    source = tiny(num_classes=10, pretrain_img_size=32)
    source.reset_classifier(7)
    source.set_input_size((128, 64), window_policy=window_policy)
    save_for_hf(source, str(tmp_path), safe_serialization=safe)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "as_vit"
    assert config["num_classes"] == 7
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert (loaded.img_size, loaded.window_policy) == ((128, 64), window_policy)
    x = torch.randn(2, 3, 128, 64)
    assert torch.equal(loaded(x), source(x))
    other_size = torch.randn(1, 3, 100, 70)
    assert torch.equal(loaded(other_size), source(other_size))


def test_hub_round_trip_to_another_size(tmp_path: Path) -> None:
    source = tiny(img_size=(64, 96))
    save_for_hf(source, str(tmp_path), safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=128, num_classes=3).eval()
    assert torch.equal(loaded.pos_embed, resample_pos_embed(source.pos_embed, 32, 32))
    x = torch.randn(1, 3, 128, 128)
    assert loaded(x).shape == (1, 3)
    torch.testing.assert_close(loaded.forward_features(x), source.forward_features(x), rtol=0, atol=1e-4)


def test_adaptation_in_one_call(tmp_path: Path) -> None:
    """One channel, other classes and another size at once: summed stem, new classifier, resampled positions."""
    source = tiny()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = pretrained(tmp_path / "weights.pth", in_chans=1, num_classes=5, img_size=128)
    gray = torch.randn(2, 1, 128, 128)
    features = source.forward_features(gray.expand(-1, 3, -1, -1))
    torch.testing.assert_close(model.forward_features(gray), features, rtol=0, atol=1e-4)
    assert torch.equal(model.head.pre_logits.fc.weight, source.head.pre_logits.fc.weight)
    assert torch.equal(model.pos_embed, resample_pos_embed(source.pos_embed, 32, 32))
    assert model(gray).shape == (2, 5)


@pytest.mark.parametrize("layout", ["ours", "authors"])
def test_positions_of_a_rectangle(layout: str, tmp_path: Path) -> None:
    """The authors store one row of positions; its shape follows from the image size of the pretrained_cfg."""
    source = tiny(img_size=(64, 96))
    torch.save(LAYOUTS[layout](source.state_dict()), tmp_path / "weights.pth")
    overlay = dict(file=str(tmp_path / "weights.pth"), num_classes=10, input_size=(3, 64, 96))
    loaded = tiny(pretrained=True, pretrained_cfg_overlay=overlay, img_size=(64, 96))
    assert torch.equal(loaded.pos_embed, source.pos_embed)
    resized = tiny(pretrained=True, pretrained_cfg_overlay=overlay, img_size=128)
    assert torch.equal(resized.pos_embed, resample_pos_embed(source.pos_embed, 32, 32))


def test_features_only(tmp_path: Path) -> None:
    source = tiny()
    torch.save(to_authors(source.state_dict()), tmp_path / "weights.pth")
    x = torch.randn(2, 3, 64, 64)
    expected = source.forward_intermediates(x, intermediates_only=True)
    features = pretrained(tmp_path / "weights.pth", features_only=True)
    assert all(torch.equal(a, b) for a, b in zip(features(x), expected))
    some = pretrained(tmp_path / "weights.pth", features_only=True, out_indices=(1, 2))(x)
    assert len(some) == 2
    assert all(torch.equal(a, b) for a, b in zip(some, expected[1:3]))


@pytest.mark.parametrize("kwargs", [dict(num_classes=0), dict(num_classes=0, global_pool="")], ids=["pooled", "bare"])
def test_backbone_without_classifier(kwargs: dict, tmp_path: Path) -> None:
    source = tiny()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    loaded = pretrained(tmp_path / "weights.pth", **kwargs)
    x = torch.randn(2, 3, 64, 64)
    source.reset_classifier(**kwargs)
    assert torch.equal(loaded(x), source(x))


def test_state_dict_given_in_the_overlay() -> None:
    source = tiny()
    weights = to_authors(source.state_dict())
    names = set(weights)
    loaded = tiny(pretrained=True, pretrained_cfg_overlay=dict(state_dict=weights, num_classes=10), num_classes=4)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded.forward_features(x), source.forward_features(x))
    assert set(weights) == names  # the caller's dict is left alone
