"""A run that is killed, at any moment, and resumed ends with the weights of one that nobody disturbed."""

import csv
import random
import signal
import time
from pathlib import Path
from shlex import split
from typing import get_type_hints

import pytest
import torch
import train
from checkpoints import RunState, read_checkpoint
from runs import TINY, start

# Everything that draws random numbers or keeps a state: augmentation, erasing, mixing, depth, averages, phases.
RUN = [
    *TINY,
    *split("--epochs 6 --progressive-tokenization --phases [[0.3,8],[0.6,4],[1,2]]"),
    *split("--model-ema --model-ema-decay 0.95 --model-ema-warmup --mixup 0.4 --cutmix 0.4 --reprob 0.2"),
    *split("--drop-path 0.2 --drop 0.1 --grad-accum-steps 2 --clip-grad 1 --resume auto"),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict:
    output = tmp_path_factory.mktemp("undisturbed")
    train.main([*RUN, "--output", str(output)])
    return torch.load(output / "as_vit" / "last.pth.tar", weights_only=True)


def assert_same(state: dict, other: dict) -> None:
    for key in ("state_dict", "state_dict_ema"):
        assert all(torch.equal(tensor, other[key][name]) for name, tensor in state[key].items()), key
    for index, moments in state["optimizer"]["state"].items():
        assert all(torch.equal(value, other["optimizer"]["state"][index][name]) for name, value in moments.items())
    for row, other_row in zip(state["history"], other["history"], strict=True):
        assert all(row[key] == other_row[key] for key in ("epoch", "lr", "train_loss", "eval_loss", "top1", "stride"))


def epochs_in(path) -> list[int]:
    with open(path, newline="") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def wait_for(condition, process, seconds: float = 60) -> None:
    """Polls fast enough to catch the few milliseconds of a file's writing."""
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.0005)


def test_killed_runs_end_like_undisturbed_ones(undisturbed, tmp_path):
    folder, chance = tmp_path / "as_vit", random.Random(0)
    last, writing = folder / "last.pth.tar", folder / ".last.pth.tar.tmp"
    finished = 0
    for moment in ("epoch", "writing", "epoch", "replaced", "writing"):
        process = start("train.py", *RUN, "--output", str(tmp_path))
        before = last.stat().st_mtime_ns if last.exists() else 0
        if moment == "writing":
            wait_for(writing.exists, process)
        else:
            wait_for(lambda before=before: last.exists() and last.stat().st_mtime_ns != before, process)
            time.sleep(0 if moment == "replaced" else chance.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if last.exists():  # what a kill leaves is whole, and rows are neither lost nor repeated
            state = torch.load(last, weights_only=True)
            assert len(state["history"]) >= finished
            finished = len(state["history"])
            assert epochs_in(folder / "summary.csv") in (list(range(finished)), list(range(finished - 1)))
    train.main([*RUN, "--output", str(tmp_path)])
    assert_same(undisturbed, torch.load(last, weights_only=True))
    assert epochs_in(folder / "summary.csv") == list(range(6))
    assert not list(folder.glob(".*.tmp"))


def test_every_epoch_resumes_exactly(undisturbed, tmp_path, monkeypatch):
    """Stops after each epoch's checkpoint in turn, in this process."""

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    monkeypatch.setattr(train.Reporter, "add", stop)
    for _ in range(6):
        with pytest.raises(Stop):
            train.main([*RUN, "--output", str(tmp_path)])
    monkeypatch.undo()
    train.main([*RUN, "--output", str(tmp_path)])
    assert_same(undisturbed, torch.load(tmp_path / "as_vit" / "last.pth.tar", weights_only=True))


def refusal(capfd, *argv: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        train.main([*argv])
    assert stopped.value.code == 2
    return capfd.readouterr().err.splitlines()[-1]


def test_refuses_another_run(finished, capfd):
    run = [*TINY, "--output", str(finished.parent), "--experiment", "run"]
    assert "--resume auto" in refusal(capfd, *run)
    message = refusal(capfd, *run, "--resume", "auto", "--epochs", "9", "--lr", "1")
    assert "--epochs was 6 and is 9" in message
    assert "--lr was 0.004 and is 1.0" in message


@pytest.mark.parametrize("damage", ["cut", "text", "foreign"])
def test_refuses_damaged_and_foreign_files(damage, finished, tmp_path, capfd):
    path = tmp_path / "bad.pth.tar"
    whole = (finished / "last.pth.tar").read_bytes()
    if damage == "foreign":
        torch.save({"state_dict": {}}, path)
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"no checkpoint")
    message = refusal(capfd, *TINY, "--output", str(tmp_path), "--resume", str(path))
    assert "bad.pth.tar" in message
    assert ("not written by train.py" if damage == "foreign" else "damaged") in message


@pytest.mark.parametrize(
    "change, words",
    [
        ({"epoch": None}, "'epoch' is no int"),
        ({"epoch": 3}, "contradict"),
        ({"epochs": 0}, "contradict"),
        ({"arch": 1}, "'arch' is no str"),
        ({"world_size": "1"}, "'world_size' is no int"),
        ({"options": []}, "'options' is no dict"),
        ({"options": {}}, "'options' is not complete"),
        ({"history": {}}, "'history' is no list"),
        ({"history": [1]}, "'history' is not complete"),
        ({"model_args": None}, "'model_args' is no dict"),
        ({"state_dict": {"a": 1}}, "'state_dict' holds"),
        ({"state_dict_ema": 1}, "'state_dict_ema' holds"),
        ({"state_dict_ema": {}}, "do not match the model"),
        ({"optimizer": None}, "'optimizer' is no dict"),
        ({"optimizer": {}}, "'optimizer' in the checkpoint"),
    ],
    ids=str,
)
def test_refuses_checkpoints_with_a_wrong_part(
    change: dict, words: str, finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.pth.tar"
    torch.save(torch.load(finished / "last.pth.tar", weights_only=True) | change, path)
    message = refusal(capfd, "--config", str(finished / "args.yaml"), "--resume", str(path))
    assert "bad.pth.tar" in message
    assert words in message


def test_refuses_checkpoints_without_a_part(finished: Path, tmp_path: Path) -> None:
    state = torch.load(finished / "last.pth.tar", weights_only=True)
    assert set(get_type_hints(RunState)) | {"state_dict_ema", "saved_macs"} == set(state)
    for name in get_type_hints(RunState):
        torch.save({key: value for key, value in state.items() if key != name}, tmp_path / "bad.pth.tar")
        with pytest.raises(ValueError, match=f"bad.pth.tar.* was not written by train.py: '{name}' is missing"):
            read_checkpoint(tmp_path / "bad.pth.tar")


@pytest.mark.parametrize("source", ["last", "best"])
def test_continues_in_another_folder(source: str, finished: Path, tmp_path: Path) -> None:
    resume = ["--resume", str(finished / f"{source}.pth.tar"), "--output", str(tmp_path), "--experiment", "other"]
    history = train.main(["--config", str(finished / "args.yaml"), *resume])
    last = torch.load(tmp_path / "other" / "last.pth.tar", weights_only=True)
    assert_same(torch.load(finished / "last.pth.tar", weights_only=True), last)
    assert (tmp_path / "other" / "export" / "model.safetensors").exists()
    assert last["history"] == history
    assert last["options"]["experiment"] == "other"
    best = torch.load(finished / "best.pth.tar", weights_only=True)
    if source == "best" or best["epoch"] == last["epoch"]:
        assert torch.load(tmp_path / "other" / "best.pth.tar", weights_only=True)["metric"] == best["metric"]


def test_finished_run_is_left_alone(finished, capsys):
    before = (finished / "last.pth.tar").stat().st_mtime_ns
    history = train.main(["--config", str(finished / "args.yaml"), "--resume", "auto"])
    assert len(history) == 6
    assert (finished / "last.pth.tar").stat().st_mtime_ns == before
    assert "wall time" in capsys.readouterr().out


def test_refuses_a_folder_that_holds_another_run(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "last.pth.tar").write_bytes((finished / "last.pth.tar").read_bytes())
    elsewhere = ["--output", str(tmp_path), "--experiment", "other", "--resume", str(finished / "last.pth.tar")]
    message = refusal(capfd, "--config", str(finished / "args.yaml"), *elsewhere)
    assert "holds another run already" in message
