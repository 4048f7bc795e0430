"""tools/convert.py: round trips of the authors' and our own files, and what it says that it dropped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from conversions import (
    DEFINITION,
    GENOTYPE,
    Weights,
    as_vit,
    convert,
    resnas,
    run,
    saved,
    to_authors,
    training_checkpoint,
)
from drawn import draw, image, reference
from safetensors import safe_open
from torch import nn


def from_folder(folder: Path) -> nn.Module:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(x)


def test_training_checkpoint_of_the_authors_tiny(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ref = reference("vit_resnas_tiny")
    weights = {name: draw(name, shape) for name, shape in ref["state_dict"].items()}
    path = saved(training_checkpoint(weights, ref["network_def"]), tmp_path / "epoch@289_checkpoint.pth.tar")
    folder = run(path, "vit_resnas")
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "read: epoch@289_checkpoint.pth.tar, its entry model_ema: 234 tensors",
        "kept: 233 tensors, 40,793,552 parameters, 1000 classes; 212 renamed",
        "dropped of the weights (2 tensors): patch_head.weight (1000, 704), patch_head.bias (1000,)",
        "dropped of the rest of the file: model (234 tensors), optimizer (2 tensors), lr_scheduler (1 entry), "
        "epoch=289, args (Namespace)",
        f"licence: cc-by-nc-4.0. {convert.licence_of(weights, None)[1]}",
        f"written: {folder}; loaded again, it gives the same outputs bit for bit",
    ]
    assert {file.name for file in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert list(folder.parent.iterdir()) == [folder]

    model = from_folder(folder)
    assert model.network_def == ref["network_def"]
    x = image(ref["input_seed"], ref["input_shape"])
    expected = torch.tensor(ref["logits"])
    torch.testing.assert_close(logits(model, x)[:, : expected.shape[1]], expected, rtol=0, atol=1e-4)
    by_file = timm.create_model("vit_resnas", pretrained=True, pretrained_cfg_overlay=dict(file=str(path))).eval()
    assert torch.equal(logits(model, x), logits(by_file, x))


def test_authors_layout_of_as_vit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ref = reference("as_vit_thin")
    weights = {name: draw(name, shape) for name, shape in ref["state_dict"].items()}
    path = saved({"model": weights, "optimizer": {}, "epoch": 3}, tmp_path / "thin.pth")
    folder = run(path, "as_vit", "--model-kwargs", f"genotype={ref['genotype']}", "pos_embed=false")
    said = capsys.readouterr().out
    assert "thin.pth, its entry model: 79 tensors" in said
    assert "kept: 79 tensors, 167,620 parameters, 10 classes; 73 renamed" in said
    assert "dropped of the weights (0 tensors): nothing" in said
    assert "optimizer (0 entries), epoch=3" in said
    model = from_folder(folder)
    assert model.num_classes == 10
    got = logits(model, image(ref["input_seed"], ref["input_shape"]))
    expected = torch.tensor(ref["logits"])
    torch.testing.assert_close(got[:, : expected.shape[1]], expected, rtol=0, atol=1e-4)


LAYOUTS: dict[str, tuple[Callable[[Weights], Any], list[str]]] = {
    "authors_training": (lambda w: training_checkpoint(to_authors(w)), []),
    "authors_bare": (to_authors, [f"network_def={DEFINITION}"]),
    "ours": (lambda w: w, [f"network_def={DEFINITION}"]),
    "timm": (
        lambda w: {"state_dict": {f"module.{n}": t for n, t in w.items()}, "epoch": 1},
        [f"network_def={DEFINITION}"],
    ),
    "averaged": (
        lambda w: {"state_dict": {n: t + 1 for n, t in w.items()}, "state_dict_ema": w},
        [f"network_def={DEFINITION}"],
    ),
    "our_trainer": (
        lambda w: {"state_dict": w, "arch": "vit_resnas", "model_args": dict(network_def=DEFINITION, num_classes=10)},
        [],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, tmp_path: Path) -> None:
    source = resnas()
    make, kwargs = LAYOUTS[layout]
    path = saved(make(source.state_dict()), tmp_path / "weights.pth")
    model = from_folder(run(path, "vit_resnas", *(["--model-kwargs", *kwargs] if kwargs else [])))
    x = torch.randn(2, 3, 100, 130)
    assert torch.equal(logits(model, x), logits(source, x))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before_torch_1.6"])
def test_half_precision_and_old_files(legacy: bool, tmp_path: Path) -> None:
    source = as_vit().half()
    torch.save(source.state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    model = from_folder(run(tmp_path / "w.pth", "as_vit", "--model-kwargs", f"genotype={GENOTYPE}"))
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(logits(model, x), logits(source.float(), x))


def test_patch_head_comes_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = resnas(patch_head=True)
    path = saved(training_checkpoint(to_authors(source.state_dict())), tmp_path / "w.pth")
    model = from_folder(run(path, "vit_resnas", "--model-kwargs", "patch_head=true"))
    assert torch.equal(model.patch_head.weight, source.patch_head.weight)
    assert "dropped of the weights (0 tensors): nothing" in capsys.readouterr().out


def test_channels_and_size_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = as_vit(in_chans=1, img_size=(64, 96))
    path = saved(source.state_dict(), tmp_path / "w.pth")
    folder = run(path, "as_vit", "--model-kwargs", f"genotype={GENOTYPE}", "in_chans=1", "img_size=(64, 96)")
    assert "resampled" not in capsys.readouterr().out
    x = torch.randn(2, 1, 64, 96)
    assert torch.equal(logits(from_folder(folder), x), logits(source, x))


def test_resampled_positions_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(training_checkpoint(to_authors(resnas(img_size=112).state_dict())), tmp_path / "w.pth")
    run(path, "vit_resnas")
    said = capsys.readouterr().out
    assert "not the file's: pos_embed, blocks.1.pos_embed, blocks.4.pos_embed\n" in said
    assert "dropped of the weights (0 tensors): nothing" in said


@pytest.mark.parametrize("headless", [False, True])
def test_backbone_without_classifier(headless: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = as_vit()
    weights = {name: t for name, t in source.state_dict().items() if not (headless and name.startswith("head.fc"))}
    path = saved(weights, tmp_path / "w.pth")
    model = from_folder(run(path, "as_vit", "--model-kwargs", f"genotype={GENOTYPE}", "--num-classes", "0"))
    dropped = "nothing" if headless else "head.fc.weight (10, 64), head.fc.bias (10,)"
    assert dropped in capsys.readouterr().out
    source.reset_classifier(0)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(logits(model, x), logits(source, x))


@pytest.mark.parametrize("options", [[], ["--model-kwargs", "in_chans=1"]], ids=["plain", "gray"])
def test_safetensors_only(options: list[str], tmp_path: Path) -> None:
    source = timm.create_model("scaled_vit", num_classes=10, in_chans=1 if options else 3).eval()
    safetensors.torch.save_file(source.state_dict(), tmp_path / "w.safetensors")
    folder = run(tmp_path / "w.safetensors", "scaled_vit", "--safetensors-only", "--licence", "MIT", *options)
    assert [file.name for file in folder.iterdir()] == ["model.safetensors"]
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata()["license"] == "mit"
    written = safetensors.torch.load_file(folder / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in source.state_dict().items())


@pytest.mark.parametrize(
    "authors, options, licence",
    [(True, [], "cc-by-nc-4.0"), (False, [], "unknown"), (False, ["--licence", "Apache-2.0"], "apache-2.0")],
)
def test_licence_is_in_card_and_config(authors: bool, options: list[str], licence: str, tmp_path: Path) -> None:
    weights = resnas().state_dict()
    content = training_checkpoint(to_authors(weights)) if authors else weights
    if not authors:
        options = [*options, "--model-kwargs", f"network_def={DEFINITION}"]
    folder = run(saved(content, tmp_path / "w.pth"), "vit_resnas", *options)
    card = (folder / "README.md").read_text()
    front = card.split("---")[1]
    assert f"\nlicense: {licence}\n" in front
    assert "\nlibrary_name: timm\n" in front
    assert f"**Licence: {licence}.**" in card
    assert "import asvit_plugin" in card
    assert "https://arxiv.org/abs/2109.00642" in card
    assert "https://github.com/yilunliao/vit-search" in card
    assert json.loads((folder / "config.json").read_text())["pretrained_cfg"]["license"] == licence
