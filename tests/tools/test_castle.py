"""tools/castle.py, run in this process: castled checkpoints of models and files, and finished ones."""

import json
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from plugin_models import CHEAP, images
from torch import nn

from asvit_plugin.layers import castled_attention

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import castle

SMALL = [f"{name}={value}" for name, value in CHEAP["scaled_vit"].items()]
BUILD = ["scaled_vit", "--model-kwargs", *SMALL]


def run(*arguments: object) -> None:
    castle.main([str(argument) for argument in arguments])


def loaded(folder: Path) -> nn.Module:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def photos(folder: Path) -> Path:
    folder.mkdir()
    for i in range(3):
        Image.effect_noise((70, 70), 60 + 20 * i).convert("RGB").save(folder / f"{i}.png")
    return folder


def test_a_file_of_weights_castled_and_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = timm.create_model("scaled_vit", **CHEAP["scaled_vit"]).eval()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    data = photos(tmp_path / "photos")
    run(*BUILD, "--checkpoint", tmp_path / "weights.pth", "--data-dir", data, "--output", tmp_path / "castled")
    said = capsys.readouterr().out  # and nothing about random weights
    assert said.startswith("castled: blocks.0, blocks.1, blocks.2, blocks.3\nblend 0, threshold 0.02\n")
    x = images()
    with torch.no_grad():
        model = loaded(tmp_path / "castled")
        torch.testing.assert_close(model(x), source(x), rtol=0, atol=1e-6)
    assert all((attention.gain != 1).all() for attention in castled_attention(model).values())

    finish = ["--finish", "--output", tmp_path / "finished"]
    with pytest.raises(SystemExit):
        run(f"local-dir:{tmp_path / 'castled'}", *finish)
    assert "blend is 0 in blocks.0; the softmax branch can go when it is 1" in capsys.readouterr().err
    assert not (tmp_path / "finished").exists()
    state = ["--model-kwargs", "blend=1.0", "threshold=0.999"]
    run(f"local-dir:{tmp_path / 'castled'}", *state, "--data-dir", data, *finish)
    assert "blocks.3: 0.00% of the softmax weights kept, 0.00% of the output" in capsys.readouterr().out
    assert {attention.finished for attention in castled_attention(loaded(tmp_path / "finished")).values()} == {True}


def test_a_file_that_does_not_fit_a_stock_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where its classes are others, with which timm alone would load what there is."""
    small = dict(depth=1, embed_dim=32, num_heads=2, num_classes=7)
    weights = timm.create_model("deit_tiny_patch16_224", **small).state_dict()
    build = ["deit_tiny_patch16_224", "--model-kwargs", "depth=1", "embed_dim=32", "num_heads=2"]
    torch.save(weights, tmp_path / "whole.pth")
    run(*build, "--checkpoint", tmp_path / "whole.pth", "--output", tmp_path / "castled")
    assert loaded(tmp_path / "castled").num_classes == 7
    del weights["blocks.0.mlp.fc1.weight"]
    torch.save(weights, tmp_path / "half.pth")
    with pytest.raises(SystemExit):
        run(*build, "--checkpoint", tmp_path / "half.pth", "--output", tmp_path / "half")
    assert 'Missing key(s) in state_dict: "blocks.0.mlp.fc1.weight"' in capsys.readouterr().err
    assert not (tmp_path / "half").exists()


def test_chosen_blocks_and_options_are_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--blocks", "0", "blocks.2", "--mode", "linear", "--dwconv-kernel-size", "3", "--half-term", "mean"]
    run(*BUILD, *options, "--output", tmp_path / "castled")
    assert capsys.readouterr().out.startswith(
        "the weights are random: --pretrained loads the public ones, --checkpoint"
    )
    config = json.loads((tmp_path / "castled" / "config.json").read_text())
    assert config["architecture"] == "castled"
    expected = dict(
        base="scaled_vit", blocks=["blocks.0", "blocks.2"], blend=1.0, half_term="mean", dwconv_kernel_size=3
    )
    assert expected.items() <= config["model_args"].items()


def test_auto_counts_tokens_at_the_given_size(tmp_path: Path) -> None:
    run(*BUILD, "--blocks", "auto", "--img-size", "128", "--output", tmp_path / "castled")
    assert len(castled_attention(loaded(tmp_path / "castled"))) == 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["vit_of_mine"], "Unknown model (vit_of_mine)"),
        (["resnet18"], "resnet18 has no attention that can be castled"),
        ([*BUILD, "--blocks", "auto"], "castles nothing: blocks.0 has 17 tokens"),
        ([*BUILD, "--checkpoint", "nowhere.pth"], "there is no file nowhere.pth"),
        (["deit_tiny_patch16_224", "--checkpoint", __file__], "test_castle.py cannot be read: it is no checkpoint"),
        ([*BUILD, "--mode", "cosine"], "mode is 'cosine'"),
        ([*BUILD, "--dwconv-kernel-size", "4"], "dwconv_kernel_size is 4; it must be an odd number"),
        ([*BUILD, "--data-dir", "nowhere"], "nowhere"),
        ([*BUILD, "--finish"], "scaled_vit has no castled block"),
    ],
)
def test_mistakes_get_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*arguments, "--output", tmp_path / "castled")
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "castled").exists()


def test_a_full_folder_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        run(*BUILD, "--output", tmp_path)
    assert "it must be new or an empty folder" in capsys.readouterr().err
