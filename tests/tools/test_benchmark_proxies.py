"""tools/benchmark_proxies.py prints both ratios and writes them with machine and versions."""

import json
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = Path(__file__).parents[2] / "tools" / "benchmark_proxies.py"


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--threads", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_ratios_and_their_file(tmp_path: Path) -> None:
    path = tmp_path / "results" / "proxies.json"
    small = ["--img-size", "32", "--width", "8", "--points", "3", "--images", "4", "--rounds", "1"]
    done = run(*small, "--loop-channels", "2", "--loop-images", "2", "--json", str(path))
    assert done.returncode == 0, done.stderr
    assert "| length_distortion |" in done.stdout
    written = json.loads(path.read_text())
    assert written["machine"]["torch"] == torch.__version__
    assert written["setting"]["points"] == 3
    distortion, kernel = written["scores"]["length_distortion"], written["scores"]["tangent_kernel"]
    assert distortion["relative_difference_at_64_px"] < 1e-6
    assert kernel["relative_difference"] < 1e-4
    assert distortion["speed_ratio"] > 1
    assert "2 of 64 channels" in distortion["loop_timed"]


def test_refusals() -> None:
    assert "--points is 0; it must be at least 1" in run("--points", "0").stderr
    assert "--loop-images is 5; there are 4 images" in run("--loop-images", "5", "--images", "4").stderr
