"""tools/convert.py: files and options that it refuses in one sentence, leaving nothing behind."""

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conversions import DEFINITION, TOOLS, convert, resnas, run, saved, to_authors, training_checkpoint
from torch import nn


class Foreign:
    """A class of someone else's code."""


def changed(**tensors: Any) -> dict[str, Any]:
    return training_checkpoint({**to_authors(resnas().state_dict()), **tensors})


def without(prefix: str) -> dict[str, Any]:
    return training_checkpoint({n: t for n, t in to_authors(resnas().state_dict()).items() if not n.startswith(prefix)})


OTHER_HEADS = DEFINITION.replace("(16, 2, 8)", "(16, 4, 4)")  # the same shapes

CONTENTS: dict[str, tuple[Callable[[], Any], str]] = {
    "path": (lambda: {**changed(), "out": Path("x")}, r"it holds a pathlib\S*\.PosixPath, and for safety only tensors"),
    "path_in_args": (lambda: {"model": {}, "args": argparse.Namespace(out=Path("x"))}, r"holds a pathlib"),
    "numpy_scalar": (lambda: {**changed(), "best": np.float64(81.7)}, r"holds a numpy\S*scalar,"),
    "numpy_array": (lambda: changed(tokens=np.zeros((1, 1, 16))), r"holds a numpy\S+,"),
    "foreign_class": (lambda: {"model": Foreign()}, r"holds a \S*Foreign,"),
    "whole_module": (lambda: nn.Linear(2, 2), r"holds a torch\.nn\.modules\.linear\.Linear,"),
    "list": (lambda: [torch.zeros(2)], "holds a list, where a dictionary of weights is expected"),
    "no_weights": (lambda: {"epoch": 3, "optimizer": {}}, "no weights that can be told .* 'epoch' is a int"),
    "number": (lambda: {"model": 3}, "holds no weights: model is 3"),
    "empty": (lambda: {"state_dict": {}}, "holds no weights: state_dict is {}"),
    "no_tensor": (lambda: changed(scale=2.0), "'scale' is a float"),
    "no_definition": (
        lambda: resnas().state_dict(),
        "does not say which net it holds: pass --model-kwargs",
    ),
    "bad_definition": (lambda: training_checkpoint(to_authors(resnas().state_dict()), "(1, 2)"), "network_def is"),
    "other_definition": (
        lambda: training_checkpoint(timm.create_model("test_vit").state_dict(), DEFINITION),
        "does not fit vit_resnas: it lacks",
    ),
    "lacks_block": (lambda: without("blocks.6."), r"it lacks stages\.2\.blocks\.0"),
    "lacks_head": (lambda: without("cls_head."), r"Missing key\(s\).*head\.weight"),
    "left_over": (lambda: changed(ghost=torch.zeros(1)), "the model has no ghost"),
    "odd_block": (lambda: changed(**{"blocks.x.norm1.bias": torch.zeros(1)}), r"the model has no blocks\.x\.norm1"),
    "shape": (lambda: changed(**{"norm.bias": torch.zeros(3)}), r"norm\.bias \(3,\) for \(32,\)"),
    "tokens": (lambda: changed(tokens=torch.zeros(1, 3, 16)), "tokens and pos_embed must be of shape"),
    "flat_tokens": (lambda: changed(tokens=torch.zeros(16)), "tokens and pos_embed must be of shape"),
    "not_finite": (lambda: changed(tokens=torch.full((1, 1, 16), torch.nan)), "no finite numbers"),
}


def refusal(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    """The one sentence that a conversion ends with; it must leave nothing behind."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        convert.main(list(arguments))
    assert ended.value.code == 2
    assert [path for path in sorted(folder.rglob("*")) if path not in before] == []
    sentence = capsys.readouterr().err.partition("error: ")[2].strip()
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("case", CONTENTS)
def test_bad_content_gets_one_sentence(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = CONTENTS[case]
    path = saved(make(), tmp_path / "checkpoint.pth")
    output = str(tmp_path / "new" / "net")
    assert re.search(message, refusal(capsys, tmp_path, str(path), "--model", "vit_resnas", "--output", output))


OPTIONS: dict[str, tuple[list[str], str]] = {
    "unknown_model": (["--model", "resnet50"], "argument --model: 'resnet50' is none of as_vit"),
    "other_net": (["--model", "vit_resnas_tiny"], "does not fit vit_resnas_tiny: it lacks"),
    "other_family": (["--model", "as_vit_small"], "does not fit as_vit_small: it lacks patch_embed"),
    "class_count": (["--num-classes", "7"], r"--num-classes is 7; \S+ has 10 classes, and only 0"),
    "licence": (["--licence", "mit"], "--licence is mit; weights in the layout of ViT-ResNAS's authors stay cc-by-nc"),
    "no_licence": (["--licence", "do: what"], "'do: what' is no SPDX identifier"),
    "no_pair": (["--model-kwargs", "img_size"], "'img_size' is not of the form key=value"),
    "classes_as_kwarg": (["--model-kwargs", "num_classes=7"], "'num_classes' cannot be set there"),
    "features": (["--model-kwargs", "features_only=True"], "'features_only' cannot be set there"),
    "unknown_kwarg": (["--model-kwargs", "colour=3"], "unexpected keyword argument 'colour'"),
    "size": (["--model-kwargs", "img_size=big"], "img_size is 'big'"),
    "channels": (["--model-kwargs", "in_chans=1"], r"input_size\[0\]=1"),
    "same_shapes": (["--model-kwargs", f"network_def={OTHER_HEADS}"], "holds another net, by network_def in its args"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_bad_option_gets_one_sentence(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, message = OPTIONS[case]
    path = saved(training_checkpoint(to_authors(resnas().state_dict())), tmp_path / "checkpoint.pth")
    model = [] if "--model" in options else ["--model", "vit_resnas"]
    arguments = [str(path), *model, "--output", str(tmp_path / "new" / "net"), *options]
    assert re.search(message, refusal(capsys, tmp_path, *arguments))


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "there is no file"),
    "folder": (lambda path: path.mkdir(), "there is no file"),
    "empty": (lambda path: path.write_bytes(b""), "it is no checkpoint"),
    "text": (lambda path: path.write_text("404: Not Found"), "it is no checkpoint"),
    "cut_off": (lambda path: path.write_bytes(saved(changed(), path).read_bytes()[:-999]), "it is no checkpoint"),
    "old_pickle": (
        lambda path: torch.save({"out": Path("x")}, path, _use_new_zipfile_serialization=False),
        "it holds a pathlib",
    ),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("case", FILES)
def test_unreadable_file_gets_one_sentence(
    case: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = FILES[case]
    path = tmp_path / f"checkpoint{suffix}"
    make(path)
    message = "it is no checkpoint" if case == "old_pickle" and suffix == ".safetensors" else message
    arguments = [str(path), "--model", "vit_resnas", "--output", str(tmp_path / "new")]
    assert message in refusal(capsys, tmp_path, *arguments)


@pytest.mark.parametrize("kind", ["file", "full_folder"])
def test_existing_output_is_left_alone(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(training_checkpoint(to_authors(resnas().state_dict())), tmp_path / "checkpoint.pth")
    if kind == "full_folder":
        (tmp_path / "net").mkdir()
    precious = tmp_path / "net" / "precious" if kind == "full_folder" else tmp_path / "net"
    precious.write_text("kept")
    arguments = [str(path), "--model", "vit_resnas", "--output", str(tmp_path / "net")]
    assert "exists; it must be new or an empty folder" in refusal(capsys, tmp_path, *arguments)
    assert precious.read_text() == "kept"


def test_empty_output_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "converted" / "net").mkdir(parents=True)
    path = saved(training_checkpoint(to_authors(resnas().state_dict())), tmp_path / "checkpoint.pth")
    assert (run(path, "vit_resnas") / "config.json").exists()


def full_disk(*args: Any, **kwargs: Any) -> None:
    raise OSError(28, "No space left on device")


def other_weights(model: nn.Module, folder: str, **kwargs: Any) -> None:
    timm.models.save_for_hf(resnas(), folder, safe_serialization=True)


@pytest.mark.parametrize("save, message", [(full_disk, "No space left"), (other_weights, "gives? other outputs")])
def test_failed_writing_leaves_nothing(
    save: Callable, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub_folder.save_for_hf", save)
    path = saved(training_checkpoint(to_authors(resnas().state_dict())), tmp_path / "checkpoint.pth")
    arguments = [str(path), "--model", "vit_resnas", "--output", str(tmp_path / "new" / "net")]
    assert re.search(message, refusal(capsys, tmp_path, *arguments))


def test_library_names_the_object_too(tmp_path: Path) -> None:
    """``vit_resnas`` reads the file before timm does, for the definition."""
    path = saved({"args": argparse.Namespace(out=Path("x"))}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=r"not read for safety \(pathlib"):
        timm.create_model("vit_resnas", pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))


def test_from_the_shell(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOLS / "convert.py"), "none.pth", "--model", "as_vit", "--output", "net"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.endswith("error: there is no file none.pth\n")
    assert not any(tmp_path.iterdir())
