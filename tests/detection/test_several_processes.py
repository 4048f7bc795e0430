"""Training, resuming and evaluating in two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detection_runs import LAZY, YACS, small, train_net

pytest.importorskip("detectron2", reason="detectron2 is not installed, and on no index; the README says how")

SCRIPT = Path(__file__).with_name("several_processes.py")


def run(config: Path, *argv: str) -> None:
    command = [sys.executable, str(SCRIPT), "--config-file", str(config), *argv]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("config", [YACS, LAZY], ids=["yacs", "lazy"])
def test_two_processes(config: Path, scenes: Path, tmp_path: Path) -> None:
    run(config, *small(config, scenes, tmp_path))
    run(config, "--resume", *small(config, scenes, tmp_path, iterations=3))
    state = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert state["iteration"] == 2
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    together = {name: value for name, value in rows[-1].items() if name.startswith(("bbox/", "segm/"))}
    alone = train_net(config, "--eval-only", "--resume", *small(config, scenes, tmp_path))
    alone = {f"{task}/{name}": value for task, results in alone.items() for name, value in results.items()}
    assert together
    assert {name: alone[name] for name in together} == pytest.approx(together, nan_ok=True)
