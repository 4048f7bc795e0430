"""tools/export.py, run in this process: every format and both tasks, read back at sizes that it has not compared."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from plugin_models import CHEAP, images
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import export
import export_formats

SMALL = {
    **CHEAP,
    "fbnetv2_f1": CHEAP["fbnetv2"],
    "as_vit": dict(genotype="5,2,2,1|2,2,3,1|3,1,2,1|4,1,2,1|8,8", img_size=64),
}
STRIDES = {"as_vit": [4, 8, 16, 32], "scaled_vit": [16, 16, 16], "vit_resnas": [14, 28, 56]}
UNSEEN = [(1, 3, 64, 112), (4, 3, 131, 70)]  # none of them is traced or compared by the tool


def kwargs_of(family: str) -> list[str]:
    return ["--model-kwargs", *(f"{name}={value}" for name, value in SMALL[family].items())]


def run(*arguments: object) -> None:
    export.main([str(argument) for argument in arguments])


def need_onnx() -> None:
    for name in export.ONNX_LIBRARIES:
        pytest.importorskip(name)


# torch.export needs 5 to 20 seconds for symbolic sizes, so each family has one task in which it meets all formats.
CASES = [
    ("as_vit", "pyramid", ["onnx", "program", "torchscript"]),
    ("as_vit", "classifier", ["torchscript"]),
    ("scaled_vit", "pyramid", ["onnx", "program"]),  # timm's pyramid of plain ViTs cannot be scripted
    ("scaled_vit", "classifier", ["onnx", "program", "torchscript"]),
    ("vit_resnas", "pyramid", ["torchscript"]),
    ("vit_resnas", "classifier", ["onnx", "program", "torchscript"]),
    ("fbnetv2_f1", "classifier", ["onnx", "program", "torchscript"]),
]


@pytest.mark.parametrize("family, task, formats", CASES)
def test_files_compute_what_the_model_does(family: str, task: str, formats: list[str], tmp_path: Path) -> None:
    if "onnx" in formats:
        need_onnx()
    source = timm.create_model(family, **SMALL[family], num_classes=10).eval()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    weights = ["--checkpoint", tmp_path / "weights.pth", "--num-classes", 10]
    run(family, *kwargs_of(family), *weights, "--task", task, "--format", *formats, "--output", tmp_path / "out")

    about = json.loads((tmp_path / "out" / f"{family}_{task}.json").read_text())
    assert about["input"] == {"name": "images", "type": "float32", "shape": ["batch", 3, "height", "width"]}
    assert not about["random_weights"]
    assert [each.get("stride") for each in about["outputs"]] == (STRIDES[family] if task == "pyramid" else [None])
    model = expected(source, family, task)
    for name in formats:
        read = export_formats.read_back(name, tmp_path / "out" / about["files"][name]["file"])
        differences = export_formats.compare(model, read, UNSEEN)
        assert all(value <= 1e-5 for value in differences.values())
    left = {f"{family}_{task}{suffix}" for suffix in (".json", *(export.SUFFIXES[name] for name in formats))}
    assert {path.name for path in (tmp_path / "out").iterdir()} == left


def expected(source: nn.Module, family: str, task: str) -> nn.Module:
    """The classifier, or the pyramid with its weights."""
    if task == "classifier":
        return source
    model = timm.create_model(family, **SMALL[family], features_only=True).eval()
    assert not model.model.load_state_dict(source.state_dict(), strict=False).missing_keys
    return model


def test_names_of_an_onnx_file(tmp_path: Path) -> None:
    need_onnx()
    import onnx

    path = tmp_path / "levels.onnx"
    run("test_resnet", "--img-size", 64, "--task", "pyramid", "--out-indices", 1, 3, "--output", path)
    model = onnx.load(path)
    axes = model.graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in axes] == ["batch", 3, "height", "width"]
    assert [output.name for output in model.graph.output] == ["p1", "p3"]
    about = json.loads((tmp_path / "levels.json").read_text())
    assert [(each["name"], each["stride"]) for each in about["outputs"]] == [("p1", 4), ("p3", 16)]
    assert about["opset"] == model.opset_import[0].version


def test_models_of_one_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("test_vit", "--format", "program", "--output", tmp_path)
    assert stopped.value.code == 2
    assert "--dynamic size: test_vit takes images of 160 x 160 and none of 171 x 241" in capsys.readouterr().err
    run("test_vit", "--format", "program", "torchscript", "--dynamic", "batch", "--output", tmp_path)
    out = capsys.readouterr().out
    assert all(shape in out for shape in ("2x3x160x160 0.0e+00", "1x3x160x160 0.0e+00", "3x3x160x160 0.0e+00"))


def test_nothing_dynamic(tmp_path: Path) -> None:
    run("test_resnet", "--format", "program", "--dynamic", "none", "--batch-size", 1, "--output", tmp_path / "one.pt2")
    about = json.loads((tmp_path / "one.json").read_text())
    assert about["input"]["shape"] == [1, 3, 160, 160]
    read = export_formats.read_back("program", tmp_path / "one.pt2")
    with pytest.raises(RuntimeError, match="takes no images of 2x3x160x160"):
        export_formats.compare(timm.create_model("test_resnet").eval(), read, [(2, 3, 160, 160)])


def test_folder_that_timm_loads(tmp_path: Path) -> None:
    source = timm.create_model("as_vit", **CHEAP["as_vit"], num_classes=7).eval()
    timm.models.save_for_hf(source, str(tmp_path / "hub"), model_args=CHEAP["as_vit"])
    run(f"local-dir:{tmp_path / 'hub'}", "--img-size", 64, "--format", "torchscript", "--output", tmp_path)
    x = images()
    torch.testing.assert_close(torch.jit.load(tmp_path / "hub_classifier.pt")(x), source(x))


def damaged(name: str, path: Path) -> Any:
    read = export_formats.read_back(name, path)
    return lambda x: [each * 1.5 for each in read(x)]


def broken(name: str, path: Path) -> Any:
    read = export_formats.read_back(name, path)
    return lambda x: [each * float("nan") for each in read(x)]


def cut(name: str, path: Path) -> Any:
    return lambda x: [each[:, 1:] for each in export_formats.read_back(name, path)(x)]


@pytest.mark.parametrize(
    "reader, message",
    [(damaged, "it differs by "), (broken, "it differs by nan"), (cut, "for images of 2x3x64x64 it gives [2, 999]")],
)
def test_a_file_that_differs_is_not_kept(
    reader: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "read_back", reader)
    (tmp_path / "m.pt").write_text("an older file")
    with pytest.raises(SystemExit) as stopped:
        run("test_resnet", "--img-size", 64, "--format", "torchscript", "--output", tmp_path / "m.pt")
    assert str(stopped.value.code).partition("the torchscript file is not kept: ")[2].startswith(message)
    assert (tmp_path / "m.pt").read_text() == "an older file"
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_tolerance_of_nothing(tmp_path: Path) -> None:
    need_onnx()
    with pytest.raises(SystemExit, match="the onnx file is not kept: it differs by .*, more than 0"):
        run("test_resnet", "--img-size", 64, "--tolerance", 0, "--format", "program", "onnx", "--output", tmp_path)
    assert list(tmp_path.iterdir()) == []  # also not the program, which does not differ


def test_a_model_that_cannot_be_scripted(tmp_path: Path) -> None:
    small = kwargs_of("scaled_vit")
    with pytest.raises(SystemExit, match="scaled_vit cannot be written as torchscript: ") as stopped:
        run("scaled_vit", *small, "--task", "pyramid", "--format", "torchscript", "--output", tmp_path)
    assert "\n" not in str(stopped.value.code)
    assert list(tmp_path.iterdir()) == []


def test_missing_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(export, "ONNX_LIBRARIES", ("onnx", "no_such_library"))
    with pytest.raises(SystemExit):
        run("test_resnet", "--output", tmp_path)
    assert "pip install 'asvit-plugin[export]'" in capsys.readouterr().err


PROGRAM = ("--format", "program")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["no_such_model", *PROGRAM], "Unknown model (no_such_model)"),
        (
            ["test_resnet", *PROGRAM, "--batch-size", "1"],
            "--batch-size is 1; with --dynamic size it must be at least 2",
        ),
        (["test_resnet", *PROGRAM, "--img-size", "0"], "--img-size is [0]"),
        (["test_resnet", *PROGRAM, "--tolerance", "nan"], "--tolerance is nan; it must be at least 0"),
        (["test_resnet", *PROGRAM, "--out-indices", "1"], "--out-indices: a classifier has none"),
        (["test_resnet", *PROGRAM, "--checkpoint", "gone.pth"], "--checkpoint: there is no file gone.pth"),
        (["test_resnet", *PROGRAM, "--model-kwargs", "depth"], "'depth' is not of the form key=value"),
        (["test_resnet", *PROGRAM, "--model-kwargs", "depth_of=3"], "unexpected keyword argument 'depth_of'"),
        (["test_resnet", *PROGRAM, "--output", "model.onnx"], "model.onnx does not fit --format program"),
        (["as_vit", *PROGRAM, "--img-size", "1"], "window split"),
        (["test_vit", *PROGRAM, "--img-size", "65"], "test_vit takes no images of 65 x 65"),
    ],
)
def test_mistakes_get_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = [] if "--output" in arguments else ["--output", tmp_path / "out"]
    with pytest.raises(SystemExit) as stopped:
        run(*arguments, *output)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["classifier", "pyramid"])
@pytest.mark.parametrize("name", ["as_vit", "test_resnet"])
def test_a_file_of_other_weights(name: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "w.pth")
    with pytest.raises(SystemExit) as stopped:
        run(name, "--task", task, "--checkpoint", tmp_path / "w.pth", *PROGRAM, "--output", tmp_path / "out")
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.partition("error: ")[2].splitlines()) == 1
