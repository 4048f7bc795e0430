"""timm's readers of webdataset shards and Hugging Face datasets, on small local files of the real formats."""

import io
import json
import tarfile
from pathlib import Path
from shlex import split

import pytest
import train
from data import ReaderDigits
from runs import TINY

SPLITS = {"train": 128, "validation": 64}


def digits(split_name: str) -> list[tuple[bytes, int]]:
    return ReaderDigits(training=split_name == "train").samples[: SPLITS[split_name]]


def write_shards(folder: Path) -> None:
    """Two shards per split and the `_info.json` that timm reads their lengths from."""
    info = {}
    for name, count in SPLITS.items():
        files = [f"digits-{name}-{shard:04d}.tar" for shard in range(2)]
        for shard, file in enumerate(files):
            with tarfile.open(folder / file, "w") as archive:
                for index, (png, label) in list(enumerate(digits(name)))[shard::2]:
                    for extension, content in (("png", png), ("cls", str(label).encode())):
                        member = tarfile.TarInfo(f"{index:05d}.{extension}")
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
        info[name] = {"name": name, "num_samples": count, "filenames": files, "shard_lengths": [count // 2] * 2}
    (folder / "_info.json").write_text(json.dumps({"splits": info}))


def write_parquet(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    (folder / "data").mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    for name in SPLITS:
        pairs = digits(name)
        columns = {"image": [{"bytes": png, "path": None} for png, _ in pairs], "label": [label for _, label in pairs]}
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")  # the layout that names its split for sure


def history_of(folder: Path, dataset: str, experiment: str) -> list[dict]:
    run = f"--dataset {dataset} --data-dir {folder} --num-classes 10 --epochs 2 --experiment {experiment}"
    return train.main([*TINY, *split(run), "--batch-size", "32", "--output", str(folder)])


@pytest.mark.parametrize("reader", ["wds", "hfds"])
def test_trains_and_repeats_itself(reader: str, tmp_path: Path) -> None:
    pytest.importorskip({"wds": "webdataset", "hfds": "datasets"}[reader])
    {"wds": write_shards, "hfds": write_parquet}[reader](tmp_path)
    dataset = "wds/digits" if reader == "wds" else f"hfds/{tmp_path}"
    first, second = (history_of(tmp_path, dataset, experiment) for experiment in ("first", "second"))
    assert [row["train_loss"] for row in first] == [row["train_loss"] for row in second]
    assert 0 < first[-1]["eval_loss"] < 2.5
    assert {row["top1"] * SPLITS["validation"] / 100 % 1 for row in first} == {0.0}  # every image counted once
