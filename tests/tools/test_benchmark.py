"""tools/benchmark.py from the shell."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "benchmark.py"


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


def test_times_models_in_turn_and_writes_json(tmp_path: Path) -> None:
    path = tmp_path / "results" / "figures.json"
    small = ["--img-size", "64", "--batch-size", "2", "--rounds", "2", "--threads", "1", "--device", "cpu"]
    done = run("as_vit", "test_resnet", *small, "--json", str(path))
    assert done.returncode == 0, done.stderr
    figures = json.loads(path.read_text())
    rows = {row["model"]: row for row in figures["models"]}
    assert list(rows) == ["as_vit", "test_resnet"]
    assert rows["test_resnet"]["speed_ratio"] == 1.0
    assert rows["as_vit"]["params"] == 2_327_816  # at 64 px the position table has 16 x 16 entries
    assert all(row["images_per_s"] > 0 and row["macs"] > 0 for row in rows.values())
    assert "1 threads" in figures["machine"]["device"]
    assert f"| as_vit | {2_327_816:,} |" in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["no_such_model"], "'no_such_model' is no timm model"),
        (["test_vit", "--rounds", "0"], "--rounds is 0; it must be at least 1"),
        (["as_vit", "--img-size", "1"], "genotype field S1 (window split) is 2; at img_size (1, 1)"),
        (["test_vit", "--device", "toaster"], "toaster"),
        (["test_vit", "--json", "/dev/null/figures.json"], "/dev/null"),
        (["test_vit", "--img-size", "many"], "argument --img-size: invalid int value: 'many'"),
    ],
)
def test_mistakes_get_one_sentence(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
