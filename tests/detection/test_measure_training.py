"""Iterations of a config's detector are timed, with its optimizer and at a moment of its schedules."""

import json
from pathlib import Path

import pytest
from detection_runs import CONFIGS, LAZY, YACS, refusal_of

pytest.importorskip("detectron2", reason="detectron2 is not installed, and on no index; the README says how")

import measure_training
import torch

FEW = ("--image-size", "64", "--iterations", "2", "--threads", "1")


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("config", [YACS, LAZY], ids=["yacs", "lazy"])
def test_result(config: Path) -> None:
    result = measure_training.main(["--config-file", str(config), *FEW])
    assert len(result["seconds"]) == 2
    assert min(result["seconds"]) <= result["seconds_per_iteration"] <= max(result["seconds"])
    assert (result["parameters"], result["precision"], result["threads"]) == (2048492, "float32", 1)
    assert result["peak_memory_mib"] >= 0


def test_results_of_one_label_are_replaced(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    castled = CONFIGS / "tiny" / "mask_rcnn_castled.yaml"
    for label, progress in (("end", "1"), ("middle", "0.5"), ("end", "1")):
        flags = ("--label", label, "--progress", progress, "--results", str(file))
        measure_training.main(["--config-file", str(castled), *FEW, *flags])
    kept = json.loads(file.read_text())
    assert [each["label"] for each in kept] == ["middle", "end"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--progress", "2"), "--progress is 2.0; it must be from 0 to 1"),
        (("--iterations", "0"), "--iterations is 0; it must be at least 1"),
    ],
)
def test_refuses(flags: tuple[str, str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    run = lambda: measure_training.main(["--config-file", str(YACS), *flags])  # noqa: E731
    assert refusal_of(run, capfd).endswith(message)
