"""Held-out images: the same ones always, none of them trained on, and lists that cannot run code."""

import json
import pickle
from collections import Counter
from pathlib import Path
from shlex import split

import numpy as np
import pytest
import torch
import train
import validate
from data import ReaderDigits, open_dataset
from data_options import DataOptions
from holdout import read_list, split_off
from PIL import Image
from refusals import refusal
from runs import TINY
from timm.data import ImageDataset
from torch.utils.data import TensorDataset

COUNTS = {"dark": 12, "bright": 8}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A training split alone: 12 dark and 8 bright images of 16 x 16 pixels."""
    random = np.random.default_rng(0)
    for label, count in COUNTS.items():
        folder = tmp_path / "images" / "train" / label
        folder.mkdir(parents=True)
        for index in range(count):
            level = 40 if label == "dark" else 200
            pixels = random.normal(level, 20, (16, 16, 3)).clip(0, 255).astype("uint8")
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "images"


def names(images: Path | str, *holdout: str, training: bool = False, **options: object) -> list[str]:
    """The files of one part, as class/name, in the dataset's order."""
    dataset = open_dataset(DataOptions(data=str(images), holdout=[*holdout], **options), training)
    return [str(Path(path).relative_to(images / "train")) for path, _ in dataset.reader.samples]


def write(path: Path, content: object) -> str:
    path.write_bytes(json.dumps(content).encode() if path.suffix == ".json" else pickle.dumps(content))
    return str(path)


# Which images ---------------------------------------------------------------------------------------------------------


def test_a_share_is_of_every_class(images: Path) -> None:
    held_out, rest = names(images, "share", "0.25"), names(images, "share", "0.25", training=True)
    assert Counter(each.split("/")[0] for each in held_out) == {name: round(0.25 * n) for name, n in COUNTS.items()}
    assert not set(held_out) & set(rest)
    assert len(held_out) + len(rest) == sum(COUNTS.values())
    assert set(names(images, "share", "0.01")) < set(held_out)  # one of every class at least


def test_parts_are_the_split(images: Path) -> None:
    held_out, rest = names(images, "per-class", "3"), names(images, "per-class", "3", training=True)
    assert Counter(each.split("/")[0] for each in held_out) == {"dark": 3, "bright": 3}
    assert not set(held_out) & set(rest)
    everything = [str(path.relative_to(images / "train")) for path in (images / "train").glob("*/*")]
    assert sorted(held_out + rest) == sorted(everything)


def test_images_are_always_the_same(images: Path) -> None:
    """Neither random numbers nor the order of the files have a part in it; these were found on another day."""
    expected = {"bright": ["0", "5", "6"], "dark": ["1", "4", "9"]}
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        held_out = names(images, "per-class", "3")
        assert {label: sorted(each.split("/")[1][:-4] for each in held_out if label in each) for label in COUNTS} == (
            expected
        )


def test_more_images_hold_out_the_same_and_more(images: Path) -> None:
    before = set(names(images, "per-class", "3"))
    assert before < set(names(images, "per-class", "4"))
    (images / "train" / "dark" / "5.png").rename(images / "train" / "bright" / "99.png")
    (images / "train" / "dark" / "3.png").unlink()
    after = set(names(images, "per-class", "3"))
    assert {each for each in before if "dark" in each} == {each for each in after if "dark" in each}


def test_digits() -> None:
    parts = [open_dataset(DataOptions(holdout=["per-class", 20]), training) for training in (False, True)]
    held_out, rest = ([label for _, label in part.reader.samples] for part in parts)
    assert Counter(held_out) == dict.fromkeys(range(10), 20)
    assert len(rest) == 1437 - 200
    assert sorted(parts[0].reader.samples + parts[1].reader.samples) == sorted(ReaderDigits(training=True).samples)


@pytest.mark.parametrize("kind", ["list.json", "list.pickle", "sub_val_files"])
def test_lists(kind: str, images: Path, tmp_path: Path) -> None:
    path = write(tmp_path / kind, {"dark": ["3.png", "1.png"], "bright": ["0.png"]})
    assert sorted(names(images, path)) == ["bright/0.png", "dark/1.png", "dark/3.png"]
    assert len(names(images, path, training=True)) == 17


def test_class_map_fixes_the_classes(images: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("bright\n")
    held_out = names(images, "per-class", "3", class_map=str(tmp_path / "classes.txt"))
    assert Counter(each.split("/")[0] for each in held_out) == {"bright": 3}


# Runs -----------------------------------------------------------------------------------------------------------------


def test_trains_without_a_validation_split(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = ["--in-chans", "3", "--batch-size", "4", "--data-dir", str(images), "--output", str(tmp_path)]
    run = [*TINY, *data, *split("--epochs 3 --holdout per-class 3")]
    history = train.main(run)
    checkpoint = str(tmp_path / "as_vit" / "last.pth.tar")
    result = validate.main(["--checkpoint", checkpoint])
    assert (result["images"], result["top1"]) == (6, history[-1]["top1"])
    message = refusal(capfd, *run, "--holdout", "per-class", "4", "--resume", "auto")
    assert "--holdout was ['per-class', 3] and is ['per-class', 4]" in message
    assert "--holdout was" in refusal(capfd, *TINY, *data, "--epochs", "3", "--val-split", "train", "--resume", "auto")


def test_checkpoint_that_is_older_than_the_option(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(finished / "last.pth.tar", weights_only=True)
    del state["options"]["holdout"]
    torch.save(state, tmp_path / "old.pth.tar")
    run = [
        "--config",
        str(finished / "args.yaml"),
        "--output",
        str(tmp_path),
        "--resume",
        str(tmp_path / "old.pth.tar"),
    ]
    assert "--holdout was [] and is ['per-class', 3]" in refusal(capfd, *run, "--holdout", "per-class", "3")
    assert len(train.main(run)) == 6


def test_recipe_may_give_a_number(tmp_path: Path) -> None:
    for text in ("holdout: [per-class, 20]", "holdout: [per-class, '20']"):
        (tmp_path / "recipe.yaml").write_text(text)
        options = train.parse_options(train.TrainOptions, ["--config", str(tmp_path / "recipe.yaml")])
        assert options.holdout == ["per-class", 20]
        argv = ["--config", str(tmp_path / "recipe.yaml"), "--holdout", "none"]
        assert train.parse_options(train.TrainOptions, argv).holdout == []


# Refusals -------------------------------------------------------------------------------------------------------------


class Malicious:
    """A pickle of it would make a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return Path.mkdir, (self.folder,)


def test_list_cannot_run_code(tmp_path: Path) -> None:
    path = write(tmp_path / "list.pickle", {"dark": Malicious(tmp_path / "made")})
    with pytest.raises(ValueError, match="it is no JSON file and no pickle of plain values alone"):
        read_list(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "content",
    [[], {}, {"dark": []}, {"dark": "1.png"}, {"dark": [1]}, {1: ["1.png"]}, 3, {"dark": {"1.png": 1}}],
    ids=str,
)
def test_lists_of_something_else(content: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it must hold a dictionary from the folder name of each class to file names"):
        read_list(write(tmp_path / "list.pickle", content))


@pytest.mark.parametrize("name", ["list.json", "list.pickle"])
@pytest.mark.parametrize("damage", [b"", b"\x80\x04]", b"{'dark':", b"\xff\xfe"])
def test_damaged_lists(name: str, damage: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(damage)
    with pytest.raises(ValueError, match=f"{name}'; it is no JSON file"):
        read_list(str(tmp_path / name))


@pytest.mark.parametrize(
    "listed, words",
    [
        (
            {"dark": ["1.png", "no.png"], "dim": ["1.png"]},
            "2 of its images are not in the training split, among them dark/no",
        ),
        ({"dark": [f"{index}.png" for index in range(12)]}, "the class 'dark' has 12 images, and one or more must"),
    ],
)
def test_lists_that_do_not_fit(listed: dict, words: str, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        names(images, write(tmp_path / "list.json", listed))


@pytest.mark.parametrize("count", ["8", "9", "1000"])
def test_classes_with_too_few_images(count: str, images: Path) -> None:
    with pytest.raises(ValueError, match=f"--holdout is per-class {count}; the class 'bright' has 8 images, and one"):
        names(images, "per-class", count)


@pytest.mark.parametrize(
    "words",
    [
        *(["per-class", *number] for number in ([], ["0"], ["-1"], ["many"])),
        *(["share", *part] for part in ([], ["1"], ["some"])),
        ["a", "b"],
        ["a", "b", "c"],
    ],
)
def test_words_that_say_nothing(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    message = refusal(capfd, "--holdout", *words)
    assert (
        "allowed is per-class NUMBER with a whole number from 1 up, share PART with a part between 0 and 1" in message
    )


def test_missing_list(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    message = refusal(capfd, *TINY, "--output", str(tmp_path), "--holdout", "nosuch.json")
    assert message.endswith("--holdout is 'nosuch.json'; there is no such file")


def test_images_that_are_no_files() -> None:
    class Stream:
        samples = None

    for dataset, name in (
        (TensorDataset(torch.zeros(2)), "TensorDataset"),
        (ImageDataset("", reader=Stream()), "Stream"),
    ):
        with pytest.raises(ValueError, match=f"--holdout takes images out of folders or the digits; {name} does not"):
            split_off(dataset, ["per-class", "1"], training=True)
