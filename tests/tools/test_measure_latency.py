"""tools/measure_latency.py: figures, files and refusals."""

import json
import subprocess
import sys
from pathlib import Path

import measure_latency
import pytest

from asvit_plugin.costs import LatencyCache

SCRIPT = Path(__file__).parents[2] / "tools" / "measure_latency.py"
QUICK = ["--device", "cpu", "--threads", "1", "--img-size", "32", "--seconds", "0.01", "--rounds", "2"]


def refusal(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """The last line of what a mistake gets."""
    with pytest.raises(SystemExit) as exit:
        measure_latency.main(arguments)
    assert exit.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_models_in_runtimes(tmp_path: Path) -> None:
    files = ["--cache", str(tmp_path / "latency.json"), "--json", str(tmp_path / "out" / "figures.json")]
    options = [*QUICK, "--runtime", "eager", "torchscript", "--batch-size", "2", *files]
    command = [sys.executable, str(SCRIPT), "scaled_vit", "test_resnet", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    rows = [(row["model"], row["key"]["runtime"]) for row in figures["models"]]
    assert rows == [(name, way) for name in ("scaled_vit", "test_resnet") for way in ("eager", "torchscript")]
    assert all(row["throughput"] == pytest.approx(2 / row["median"]) for row in figures["models"])
    kept = {each.key.text: each.median for each in LatencyCache(tmp_path / "latency.json").latencies()}
    assert sorted(kept.values()) == sorted(row["median"] for row in figures["models"])
    assert "| test_resnet | torchscript | 0.0" in done.stdout
    assert all(f"{name} in {way}" in done.stderr for name, way in rows)  # what it is at, while it is
    assert "timing: " in done.stderr


def test_predictor(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = ["--cache", str(tmp_path / "latency.json"), "--json", str(tmp_path / "figures.json")]
    measure_latency.main(["--predictor", "4", "--fit", "3", "--clock", "cpu", *QUICK, *files])
    text = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert len(figures["nets"]) == 4
    assert all(net["seconds"] > 0 and net["parts"] > 0 for net in figures["nets"])
    assert figures["predictors"]["parts"]["largest_error"] >= figures["predictors"]["parts"]["median_error"] > 0
    assert text.count("| fitted |") == 3
    assert text.count("relative error on the nets it was not fitted on: median") == 2
    costs = [net["macs"] for net in figures["nets"]]
    assert [net["fitted"] for net in figures["nets"] if net["macs"] in (min(costs), max(costs))] == [True, True]
    assert len(LatencyCache(tmp_path / "latency.json").latencies()) == 4 + figures["distinct_parts"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "either models or --predictor must be given"),
        (["no_such_model"], "'no_such_model' is no timm model"),
        (["test_vit", "--rounds", "0"], "--rounds is 0; it must be at least 1"),
        (["test_vit", "--seconds", "0"], "--seconds is 0.0; it must be positive"),
        (["test_vit", "--runtime", "tensorrt"], "invalid choice: 'tensorrt'"),
        (["test_vit", "--device", "toaster"], "toaster"),
        (["--predictor", "3", "--fit", "3"], "--fit is 3; it must be at least 2 and less than the 3 nets"),
        (["test_vit", "--runtime", "onnxruntime", "--dtype", "bfloat16"], "'onnxruntime'"),
    ],
)
def test_mistakes_get_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert message in refusal(capsys, *arguments)


def test_a_broken_cache_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "latency.json").write_text("{}")
    error = refusal(capsys, "test_vit", "--cache", str(tmp_path / "latency.json"))
    assert "latency.json cannot be read (KeyError: 'format'); delete it" in error
