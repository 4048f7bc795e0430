"""Digits that move: that one frame does not tell the direction, and a real small training, stopped and continued."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import digits_scenes
import moving_digits
import moving_digits_report
import pytest
import torch
import train_moving_digits
from moving_digits import FRAMES, SIZE, STEPS, draw_clips, held_out_clips, split_digits, training_clips

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "moving_digits.json"


@pytest.mark.parametrize("split", ["train", "val"])
def test_digits_are_those_of_the_other_scripts(split: str) -> None:
    images, labels = split_digits(split)
    expected_images, expected_labels, _ = digits_scenes.split_digits(split)
    assert torch.equal(images, torch.tensor(expected_images))
    assert torch.equal(labels, torch.tensor(expected_labels))


def test_a_frame_says_nothing_about_the_direction() -> None:
    starts = torch.cartesian_prod(torch.arange(SIZE), torch.arange(SIZE))
    image = split_digits("train")[0][:1].expand(len(starts), -1, -1)
    for frame in (0, 5):
        seen = []
        for step in STEPS:
            clips = draw_clips(image, starts, (3 * step).expand_as(starts), FRAMES)
            seen.append(sorted(map(tuple, clips[:, 0, frame].flatten(1).tolist())))
        assert seen[1:] == seen[:1] * 3


def test_clips_move_as_their_class_says() -> None:
    clips, labels = training_clips(seed=3, epoch=1)
    assert clips.shape == (len(split_digits("train")[1]), 1, FRAMES, SIZE, SIZE)
    for clip, label in zip(clips[:50, 0], labels):
        moved = [(v * STEPS[label % 4]).tolist() for v in (1, 2, 3)]
        assert any(torch.equal(torch.roll(clip[:-1], step, (1, 2)), clip[1:]) for step in moved)


def test_clips_depend_on_seed_and_epoch_alone() -> None:
    clips, labels = training_clips(0, 1)
    torch.manual_seed(5)
    again, same = training_clips(0, 1)
    assert torch.equal(clips, again)
    assert torch.equal(labels, same)
    for other in (training_clips(0, 2), training_clips(1, 1)):
        assert not torch.equal(other[0], clips)
        assert other[1].div(4, rounding_mode="floor").bincount().equal((labels // 4).bincount())


def test_held_out_clips_have_all_directions_of_every_digit() -> None:
    _, labels = held_out_clips()
    digits = split_digits("val")[1]
    assert torch.equal(labels.view(-1, 4), 4 * digits[:, None] + torch.arange(4))


def test_no_other_split() -> None:
    with pytest.raises(ValueError, match="split is 'test'; it must be one of 'train', 'val'"):
        split_digits("test")


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sixty-four digits of each split."""
    parts = {split: tuple(part[:64] for part in split_digits(split)) for split in moving_digits.SPLITS}
    monkeypatch.setattr(moving_digits, "split_digits", parts.__getitem__)
    held_out_clips.cache_clear()
    yield
    held_out_clips.cache_clear()


def test_trains_reports_and_continues(few_digits: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def train(folder: str, *options: str) -> dict[str, Any]:
        sizes = ["--seeds", "1", "--epochs", "2", "--image-epochs", "2", "--batch-size", "16"]
        train_moving_digits.main(["--output", str(tmp_path / folder), *sizes, *options])
        return json.loads((tmp_path / folder / "results.json").read_text())

    rows = train("whole")["runs"]
    assert [row["arm"] for row in rows] == list(train_moving_digits.ARMS)
    assert all(len(row["top1"]) == len(row["loss"]) == 2 for row in rows)
    assert all(row["loss"][1] < row["loss"][0] < 4.5 for row in rows)
    assert rows[1]["image_seconds"] == rows[2]["image_seconds"] > rows[0]["image_seconds"] == 0
    assert "| inflated, average |" in capsys.readouterr().out
    assert (tmp_path / "whole" / "results.png").stat().st_size > 10_000

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_moving_digits, "run_epoch", stop_after(train_moving_digits.run_epoch, 3))
        with pytest.raises(KeyboardInterrupt):
            train("stopped", "--arms", "inflated, average")
    resumed = train("stopped", "--arms", "inflated, average")["runs"][0]
    assert resumed["loss"] == rows[1]["loss"]
    weights = [
        torch.load(tmp_path / folder / "inflated_average-0.pth", weights_only=True)["model"]
        for folder in ("whole", "stopped")
    ]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def stop_after(function: Callable[..., Any], calls: int) -> Callable[..., Any]:
    """The function, interrupted after so many calls."""
    left = iter(range(calls))

    def interrupted(*args: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return function(*args)

    return interrupted


def test_other_settings_are_refused(few_digits: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--output", str(tmp_path), "--seeds", "1", "--arms", "one frame", "--epochs"]
    train_moving_digits.main([*options, "1"])
    with pytest.raises(SystemExit, match="2"):
        train_moving_digits.main([*options, "2"])
    assert "is of a training with epochs 1 instead of 2; remove it" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--seeds", "--epochs", "--image-epochs", "--batch-size", "--threads"])
def test_counts_are_at_least_one(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train_moving_digits.main([option, "0"])
    assert f"argument {option} is 0; it must be at least 1" in capsys.readouterr().err


def test_docs_show_the_results() -> None:
    rows = json.loads(RESULTS.read_text())["runs"]
    assert moving_digits_report.table(rows) in (ROOT / "docs" / "video.md").read_text()
    arms = moving_digits_report.arms_of(rows)
    assert [arm for arm, _ in arms] == list(train_moving_digits.ARMS)
