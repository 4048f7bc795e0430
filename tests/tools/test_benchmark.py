"""tools/benchmark.py: cells of models timed in turn, kept as they come; what it refuses and what it notes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import benchmark
import pytest
import torch
from torch import nn

from asvit_plugin.costs import LatencyProbe

SCRIPT = Path(__file__).parents[2] / "tools" / "benchmark.py"
QUICK = ["--batch-size", "2", "--rounds", "2", "--seconds", "0.01", "--threads", "1", "--device", "cpu"]
TWO = ["scaled_vit", "test_resnet"]


def run(path: Path, *arguments: str, memory: bool = False) -> dict[str, Any]:
    """Content of the file that a command leaves."""
    benchmark.main([*arguments, *QUICK, *([] if memory else ["--no-memory"]), "--json", str(path)])
    return json.loads(path.read_text())


def refusal(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """The last line of what a mistake gets."""
    with pytest.raises(SystemExit) as exit:
        benchmark.main(arguments)
    assert exit.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_two_models_from_the_shell(tmp_path: Path) -> None:
    path = tmp_path / "results" / "figures.json"
    command = [sys.executable, str(SCRIPT), "as_vit", "test_resnet", "--img-size", "64", *QUICK, "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    content = json.loads(path.read_text())
    (cell,) = content["cells"]
    assert [cell[name] for name in ("img_size", "batch", "step", "runtime")] == [64, 2, "forward", "eager"]
    rows = {row["model"]: row for row in cell["models"]}
    assert list(rows) == ["as_vit", "test_resnet"]
    assert [rows["test_resnet"][name] for name in ("speed_ratio", "speed_ratio_p10", "speed_ratio_p90")] == [1.0] * 3
    assert rows["as_vit"]["params"] == 2_327_816  # at 64 px the position table has 16 x 16 entries
    for row in rows.values():
        assert 0 < row["p10"] <= row["median"] <= row["p90"]
        assert row["images_per_s"] == pytest.approx(2 / row["median"])
        assert row["macs"] > 0
        assert row["peak_memory"] > 4 * row["params"]
    assert f"| as_vit | {2_327_816:,} |" in done.stdout
    where = content["machine"]
    assert where["device"] in done.stdout
    assert where["device"] not in ("", "cpu")
    assert where["threads"] == 1 <= where["cores"]


def test_cells_of_all_steps_and_runtimes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "build", lambda name, img_size: nn.Sequential(nn.Flatten(), nn.Linear(48, 1024)))
    options = ["--img-size", "4", "--step", "forward", "training", "--runtime", "eager", "compile"]
    found = run(tmp_path / "figures.json", "test_resnet", *options)["cells"]
    places = [(cell["step"], cell["runtime"]) for cell in found]
    assert places == [(step, runtime) for step in ("forward", "training") for runtime in ("eager", "compile")]
    seconds = {place: cell["models"][0]["median"] for place, cell in zip(places, found)}
    assert seconds["training", "eager"] > seconds["forward", "eager"]


def test_a_stopped_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, sizes = tmp_path / "figures.json", ["--img-size", "32", "48"]
    probe, tried = benchmark.LatencyProbe, []

    def stopping(model: nn.Module, shape: tuple[int, ...], *arguments: Any) -> LatencyProbe:
        tried.append(shape[-1])
        if shape[-1] == 48:
            raise KeyboardInterrupt
        return probe(model, shape, *arguments)

    monkeypatch.setattr(benchmark, "LatencyProbe", stopping)
    with pytest.raises(SystemExit, match="the same command goes on from here"):
        run(path, *TWO, *sizes)
    monkeypatch.setattr(benchmark, "LatencyProbe", probe)
    assert tried == [32, 32, 48]
    before = json.loads(path.read_text())["cells"]
    assert [cell["img_size"] for cell in before] == [32]
    after = run(path, *TWO, *sizes)["cells"]
    assert after[:1] == before
    assert [cell["img_size"] for cell in after] == [32, 48]
    monkeypatch.setattr(sys, "argv", ["tools/benchmark.py", "--img-size", "32", "64"])
    more = run(path, *TWO, "--img-size", "32", "64")
    assert more["cells"][:2] == after  # other sizes join those that are there
    assert more["machine"]["command"].splitlines()[1:] == ["python tools/benchmark.py --img-size 32 64"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([*TWO, "--rounds", "3"], "has settings with rounds 2, not 3; give another file"),
        ([*TWO, "--dtype", "bfloat16"], "has settings with dtype 'float32', not 'bfloat16'"),
        (["test_resnet"], "has models, 32 px, batch 2, forward, eager with models ['scaled_vit', 'test_resnet']"),
    ],
)
def test_a_file_of_other_measurements_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    path = tmp_path / "figures.json"
    run(path, *TWO, "--img-size", "32")
    text = path.read_text()
    options = [*QUICK, "--no-memory", "--img-size", "32", "--json", str(path)]
    assert message in refusal(capsys, *options, *arguments)
    assert path.read_text() == text


def test_a_file_of_another_machine_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "figures.json"
    content = run(path, "test_resnet", "--img-size", "32")
    content["machine"]["device"] = "another CPU"
    path.write_text(json.dumps(content))
    error = refusal(capsys, "test_resnet", *QUICK, "--no-memory", "--img-size", "32", "--json", str(path))
    assert "figures.json has machine with device 'another CPU', not " in error


def test_what_a_model_cannot_do_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    class Fixed(nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if images.shape[-1] != 32:
                raise IndexError("this net takes 32 px only")
            return super().forward(images.flatten(1))

    build = benchmark.build
    models = {"scaled_vit": lambda _: Fixed(3 * 32 * 32, 10), "test_resnet": lambda size: build("test_resnet", size)}
    monkeypatch.setattr(benchmark, "build", lambda name, img_size: models[name](img_size))
    small, large = run(tmp_path / "figures.json", *TWO, "--img-size", "32", "64")["cells"]
    assert small["models"][0]["speed_ratio"] > 0
    reason = large["models"][0].pop("reason")
    assert large["models"][0] == {"model": "scaled_vit", "params": 10 * (3 * 32 * 32 + 1)}
    assert reason.startswith("Fixed takes no input of shape [1, 3, 64, 64]")
    assert reason.endswith(": this net takes 32 px only")
    assert large["models"][1]["median"] > 0
    assert f"| scaled_vit | {reason} |" in capsys.readouterr().out


def test_a_peer_without_figures_leaves_no_ratios(tmp_path: Path) -> None:
    (cell,) = run(tmp_path / "figures.json", "test_resnet", "as_vit", "--img-size", "1")["cells"]
    assert "genotype field S1 (window split) is 2; at img_size (1, 1)" in cell["models"][1]["reason"]
    assert cell["models"][0]["median"] > 0
    assert cell["models"][0]["speed_ratio"] is None


def test_a_model_beyond_the_limit_is_not_tried_at_larger_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, tried = tmp_path / "figures.json", []

    def slow(model: nn.Module, shape: tuple[int, ...], *arguments: Any) -> LatencyProbe:
        tried.append(shape[-1])
        return LatencyProbe(model, shape, *arguments)

    monkeypatch.setattr(benchmark, "LatencyProbe", slow)
    limit = ["--limit", "1e-9"]
    run(path, "test_resnet", "--img-size", "32", *limit)
    content = run(path, "test_resnet", "--img-size", "32", "64", "--step", "forward", "training", *limit)
    forward, training = content["cells"][:2], content["cells"][2:]
    assert tried == [32, 32]  # forward, training
    for small, large in (forward, training):
        reason = small["models"][0]["reason"]
        assert reason.startswith("one batch took ")
        assert reason.endswith("s, and the limit is 1e-09 s")
        assert large["models"][0]["reason"] == f"at 32 px {reason}"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["no_such_model"], "'no_such_model' is no timm model"),
        (["test_vit", "--groups", "1G"], "argument --groups: models are named as well; give one of the two"),
        (["--groups", "2T"], "argument --groups: invalid choice: '2T' (choose from "),
        (["test_vit", "--rounds", "0"], "--rounds is 0; it must be at least 1"),
        (["test_vit", "--seconds", "0"], "--seconds is 0.0; it must be positive"),
        (["test_vit", "--limit", "-1"], "--limit is -1.0; it must be positive"),
        (["test_vit", "--img-size", "64", "0"], "--img-size is 0; it must be at least 1"),
        (["test_vit", "--device", "toaster"], "toaster"),
        (["test_vit", "--runtime", "onnxruntime"], "invalid choice: 'onnxruntime'"),
        (["test_vit", "--json", "/dev/null/figures.json"], "/dev/null"),
        (["test_vit", "--img-size", "many"], "argument --img-size: invalid int value: 'many'"),
        (["test_vit", "--clock", "cpu", "--threads", "2", "--device", "cpu"], "clock is 'cpu' with 2 threads"),
    ],
)
def test_mistakes_get_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert message in refusal(capsys, *arguments)


@pytest.mark.parametrize("text", ["{}", "[1]", '{"machine": {}, "settings": {}, "cells": 3}', '{"machine"'])
def test_a_broken_file_is_refused(tmp_path: Path, text: str, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "figures.json"
    path.write_text(text)
    assert "figures.json is no file of tools/benchmark.py (" in refusal(capsys, "test_vit", "--json", str(path))
    assert path.read_text() == text
