"""Two processes of which one is lost, or whose user made a mistake: the run ends soon, and says why."""

import os
import signal
import subprocess
import time
from pathlib import Path
from shlex import split

import parsing
import pytest
import torch
from processes import LOST, ending_together
from runs import TINY, finish, launch
from test_resume import assert_same

RUN = [*TINY, *split("--device cpu --epochs 6 --batch-size 16 --drop-path 0.2 --model-ema --resume auto")]


def rank_of(pid: str) -> str | None:
    """The rank that torchrun gave a process; None if it gave none, or the process is gone."""
    try:
        entries = Path("/proc", pid, "environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((entry[5:].decode() for entry in entries if entry.startswith(b"RANK=")), None)


def ranks_of(launcher: subprocess.Popen) -> dict[str, int]:
    """Process ids of a launcher's children, by rank."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return {rank: int(pid) for pid in children if (rank := rank_of(pid)) is not None}


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the ranks in /proc")
def test_a_lost_process_ends_the_run_which_then_resumes_exactly(tmp_path: Path) -> None:
    last = tmp_path / "cut" / "last.pth.tar"
    cut = [*RUN, "--output", str(tmp_path), "--experiment", "cut"]
    launcher = launch("train.py", *cut)
    try:
        end = time.monotonic() + 120
        while not last.exists() and launcher.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(0.3)  # somewhere in the second epoch, or soon after it
        ranks = ranks_of(launcher)
        os.kill(ranks["1"], signal.SIGKILL)
        killed = time.monotonic()
        _, errors = finish(launcher, 60)
    finally:
        launcher.kill()
    assert time.monotonic() - killed < 60
    assert launcher.returncode != 0
    assert errors.count(f"train.py: error: {LOST}") == 1, errors
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    finished = torch.load(last, weights_only=True)["epoch"] + 1
    assert 0 < finished < 6
    for name in ("cut", "whole"):
        launcher = launch("train.py", *RUN, "--output", str(tmp_path), "--experiment", name)
        output, errors = finish(launcher, 120)
        assert launcher.returncode == 0, errors
        assert output.count("   loss ") == (6 - finished if name == "cut" else 6)
    cut, whole = (torch.load(tmp_path / name / "last.pth.tar", weights_only=True) for name in ("cut", "whole"))
    assert len(whole["history"]) == 6
    assert_same(whole, cut)


@pytest.mark.parametrize("mistake", ["--lr -1", "--model no_such_model"])
def test_mistakes_are_said_once(mistake: str, tmp_path: Path) -> None:
    launcher = launch("train.py", *TINY, "--output", str(tmp_path), "--device", "cpu", *split(mistake))
    _, errors = finish(launcher, 120)
    assert launcher.returncode != 0
    assert errors.count("train.py: error: ") == errors.count(mistake.split()[0]) == 1, errors


def test_a_process_with_a_mistake_of_its_own_says_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(parsing, "PATIENCE", 0.01)
    with pytest.raises(SystemExit) as stopped:
        parsing.exit_with("no\nsuch device")
    signal.signal(signal.SIGTERM, handler)
    assert stopped.value.code == 2
    assert capfd.readouterr().err.endswith("error: no such device\n")


@pytest.mark.parametrize(
    "message, processes, lost",
    [
        ("[/torch/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234", 2, True),
        ("NCCL error: remote process exited or there was a network error", 2, True),
        ("mat1 and mat2 shapes cannot be multiplied", 2, False),
        ("Connection reset by peer", 1, False),  # of a loader's download, say
    ],
)
def test_only_failed_collectives_count_as_a_loss(
    message: str, processes: int, lost: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: processes > 1)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit if lost else RuntimeError) as stopped, ending_together():
        raise RuntimeError(message)
    assert signal.getsignal(signal.SIGTERM) == before
    errors = capfd.readouterr().err
    if lost:
        assert stopped.value.code == 1
        assert LOST in errors
        assert message in errors
    else:
        assert not errors


def test_the_signal_of_torchrun_counts_as_a_loss(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped, ending_together():
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.code == 1
    assert signal.getsignal(signal.SIGTERM) == before
    assert capfd.readouterr().err.endswith(f"error: {LOST}\n")
