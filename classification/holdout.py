"""Held-out images taken out of the training split: what a search is measured on, so that the real ones are not.

`--holdout per-class 25` takes as many images of every class, `--holdout share 0.1` the same part of every class, and
`--holdout FILE` those that a file lists.
"""

import hashlib
import json
import pickle
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timm.data.readers.reader import Reader
from torch.utils.data import Dataset

PER_CLASS = "per-class"
SHARE = "share"
NONE = "none"
Words = list[str | int | float]
Groups = dict[str, dict[str, int]]  # class -> file name -> index in the split


def read_holdout(words: Words) -> Words:
    """Checks the option: nothing or `none`, `per-class NUMBER`, `share PART`, or one path.

    Returns:
        The words, a number as one; none of them for `none`.

    Raises:
        ValueError: They are something else.
    """
    texts = [str(word) for word in words]
    if texts == [NONE]:
        return []
    if len(texts) == 2 and texts[0] == PER_CLASS and texts[1].isdecimal() and int(texts[1]) > 0:
        return [PER_CLASS, int(texts[1])]
    if len(texts) == 2 and texts[0] == SHARE and _is_part(texts[1]):
        return [SHARE, float(texts[1])]
    if len(texts) > 1 or texts[:1] in ([PER_CLASS], [SHARE]):
        raise ValueError(
            f"--holdout is {' '.join(texts)}; allowed is {PER_CLASS} NUMBER with a whole number from 1 up, "
            f"{SHARE} PART with a part between 0 and 1, a FILE, or {NONE}"
        )
    return texts


def split_off(dataset: Dataset, words: Words, training: bool) -> Dataset:
    """Leaves the images to train on in a training split, or those that are held out, in place.

    Args:
        dataset: A timm dataset over files.
        words: What `--holdout` was given: `per-class NUMBER`, `share PART`, or one path.
        training: Which of the two parts.

    Returns:
        The dataset, in its old order.

    Raises:
        ValueError: The images of the dataset cannot be listed, a class has too few, or the file does not fit.
    """
    reader = _files_of(dataset)
    groups = _group(reader)
    held_out = set(_count_off(groups, *words) if len(words) == 2 else _look_up(groups, words[0]))
    for name, files in groups.items():
        if held_out.issuperset(files.values()):
            raise ValueError(
                f"--holdout is {' '.join(map(str, words))}; the class {name!r} has {len(files)} images, and one or "
                "more must be left to train on"
            )
    reader.samples = [each for index, each in enumerate(reader.samples) if (index not in held_out) == training]
    return dataset


def read_list(path: str) -> dict[str, list[str]]:
    """Reads which images are held out: a dictionary from the name of each class's folder to file names.

    Args:
        path: A JSON file (`.json`), or a pickle as the authors of ViT-ResNAS published one. Nothing but plain values
            is read from a pickle, so that no file can run code.

    Raises:
        ValueError: The file is not there, damaged or something else.
    """
    if not Path(path).is_file():
        raise ValueError(f"--holdout is {path!r}; there is no such file")
    try:
        with open(path, "rb") as file:
            listed = json.load(file) if Path(path).suffix == ".json" else _PlainUnpickler(file).load()
    except Exception as error:  # a damaged file fails in as many ways as there are places for the damage
        raise ValueError(f"--holdout is {path!r}; it is no JSON file and no pickle of plain values alone") from error
    if not _is_list_of_files(listed):
        raise ValueError(
            f"--holdout is {path!r}; it must hold a dictionary from the folder name of each class to file names"
        )
    return listed


class _PlainUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists, texts and numbers."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is no plain value")


def _is_list_of_files(listed: Any) -> bool:
    return (
        isinstance(listed, dict)
        and any(listed.values())
        and all(isinstance(name, str) and isinstance(files, list) for name, files in listed.items())
        and all(isinstance(file, str) for files in listed.values() for file in files)
    )


def _files_of(dataset: Dataset) -> Reader:
    """The dataset's reader, which holds a list of (file, class)."""
    reader = getattr(dataset, "reader", None)
    if not isinstance(getattr(reader, "samples", None), list) or not hasattr(reader, "class_to_idx"):
        raise ValueError(
            f"--holdout takes images out of folders or the digits; {type(reader or dataset).__name__} does not list "
            "its files"
        )
    return reader


def _group(reader: Reader) -> Groups:
    names = {index: name for name, index in reader.class_to_idx.items()}
    groups: Groups = defaultdict(dict)
    for index, (file, (_, label)) in enumerate(zip(reader.filenames(basename=True), reader.samples)):
        groups[names[label]][file] = index
    return groups


def _is_part(text: str) -> bool:
    try:
        return 0 < float(text) < 1
    except ValueError:
        return False


def _count_off(groups: Groups, how: str, count: int | float) -> Iterator[int]:
    """So many images of every class, or such a part of them, the first in the order of a hash of their class and name.

    No process, seed, operating system or version of a library has a part in that order, nor have other images.
    """
    for name, files in groups.items():
        order = sorted(files, key=lambda file, name=name: hashlib.sha256(f"{name}/{file}".encode()).digest())
        yield from (files[file] for file in order[: count if how == PER_CLASS else max(1, round(count * len(order)))])


def _look_up(groups: Groups, path: str) -> Iterator[int]:
    listed = read_list(path)
    missing = [f"{name}/{file}" for name, files in listed.items() for file in files if file not in groups.get(name, {})]
    if missing:
        raise ValueError(
            f"--holdout is {path!r}; {len(missing)} of its images are not in the training split, among them "
            f"{', '.join(missing[:3])}"
        )
    return (groups[name][file] for name, files in listed.items() for file in files)
