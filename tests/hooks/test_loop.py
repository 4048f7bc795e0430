"""Schedules in a plain loop with timm's parts, killed for good in the middle."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hook_runs import ITERATIONS, Run, Watch, batch, check_kill_and_resume, check_resumed, make_model, make_schedules
from timm.utils import ModelEmaV3

from asvit_plugin.atomic import write_atomically
from asvit_plugin.hooks import scheduled, step_schedules
from asvit_plugin.schedules import ProgressiveTokenization


def train(folder: Path, die_at: int | None = None, sigkill: bool = False) -> Run:
    """One iteration an epoch, a checkpoint after every third; resumes from the last."""
    folder.mkdir(exist_ok=True)
    path = folder / "last.pth"
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    start = 0
    if path.exists():
        checkpoint = torch.load(path)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        start = checkpoint["epoch"] + 1
    watch = Watch(model, die_at, *([lambda: os.kill(os.getpid(), signal.SIGKILL)] if sigkill else []))
    for epoch in scheduled(make_schedules(model), ITERATIONS, start):
        if epoch == start:
            watch.note_start()
        inputs, targets = batch(epoch)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        if epoch % 3 == 2:
            state = dict(model=model.state_dict(), optimizer=optimizer.state_dict(), epoch=epoch)
            write_atomically(path, lambda file, state=state: torch.save(state, file))
    return watch.run()


def test_killed_by_an_exception_and_resumed(tmp_path: Path) -> None:
    check_kill_and_resume(train, tmp_path, die_at=7, resumed_at=6)


def test_killed_by_sigkill_and_resumed(tmp_path: Path) -> None:
    script = "import sys, pathlib, test_loop; test_loop.train(pathlib.Path(sys.argv[1]), die_at=5, sigkill=True)"
    here = Path(__file__).parent
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "killed")], env=paths)
    assert killed.returncode == -signal.SIGKILL
    check_resumed(train(tmp_path / "killed"), train(tmp_path / "whole"), resumed_at=3)


class Noting:
    def __init__(self) -> None:
        self.progress: list[float] = []

    def step(self, progress: float) -> None:
        self.progress.append(progress)


def test_one_schedule_or_several() -> None:
    one, other = Noting(), Noting()
    step_schedules(one, 1, 4)
    step_schedules((one, other), 3, 4)
    assert (one.progress, other.progress) == ([0.25, 0.75], [0.75])


def test_the_end_comes_after_the_last_and_only_then() -> None:
    schedule = Noting()
    assert list(scheduled(schedule, 4, 2)) == [2, 3]
    assert schedule.progress == [0.5, 0.75, 1.0]
    for epoch in scheduled(schedule, 4):
        if epoch == 1:
            break
    assert schedule.progress[3:] == [0.0, 0.25]


@pytest.mark.parametrize("done, total", [(4, 4), (5, 4), (0, 0)])
def test_a_finished_run_is_at_its_end(done: int, total: int) -> None:
    schedule = Noting()
    assert list(scheduled(schedule, total, done)) == []
    step_schedules(schedule, done, total)
    assert schedule.progress == [1.0, 1.0]


@pytest.mark.parametrize("done, total", [(-1, 4), (0, -1), (0, float("inf")), (0, float("nan"))])
def test_impossible_numbers_get_one_sentence(done: int, total: float) -> None:
    with pytest.raises(ValueError, match=f"{done} of {total} steps are done; both must be at least 0, and the total"):
        step_schedules(Noting(), done, total)


def test_copies_follow() -> None:
    """They are the schedule's; see docs/schedules.md."""
    model = make_model()
    ema = ModelEmaV3(model)
    step_schedules([ProgressiveTokenization(model, copies=[ema.module])], 0, 10)
    assert model.patch_embed.proj.stride == ema.module.patch_embed.proj.stride == (16, 16)
