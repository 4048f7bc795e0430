"""Users' own data: COCO annotations and image folders by path, checked before training and registered by themselves."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances


@dataclass(frozen=True)
class CocoSplit:
    """Annotations and images, as the config names them.

    Attributes:
        entry: Name of the config's entry for the annotations, for messages.
        json: Path of the annotations.
        images: Folder of the images.
    """

    entry: str
    json: str
    images: str

    @property
    def name(self) -> str:
        """Under which detectron2 knows it: the same for the same paths, and another for others."""
        paths = "\n".join(str(Path(path).resolve()) for path in (self.json, self.images))
        return f"{Path(self.json).stem}_{hashlib.sha1(paths.encode()).hexdigest()[:8]}"

    def register(self) -> str:
        """Make it known to detectron2; repeating it changes nothing. Gives the name."""
        if self.name not in DatasetCatalog.list():
            register_coco_instances(self.name, {}, self.json, self.images)
        return self.name


@dataclass(frozen=True)
class CocoSummary:
    """What a config must fit.

    Attributes:
        categories: Names by id.
        unmasked: An annotation without a mask; None if all have one. Crowds are left out, as in training.
        run_lengths: Whether some masks are run lengths, not polygons.
    """

    categories: dict[int, str]
    unmasked: int | None
    run_lengths: bool


def find_split(entry: str, json_file: str, images: str) -> CocoSplit | None:
    """The split of two entries; None where both are empty.

    Raises:
        ValueError: Only one is given.
    """
    if bool(json_file) != bool(images):
        other = entry.replace("JSON", "IMAGES").replace("json", "images")
        raise ValueError(f"{entry} is {json_file!r} and {other} is {images!r}; give both, or neither")
    return CocoSplit(entry, json_file, images) if json_file else None


def read_summary(split: CocoSplit) -> CocoSummary:
    """Reads annotations and looks for their images.

    Raises:
        ValueError: They are not COCO's, or refer to what is not there; the message names the file.
    """
    coco = _read(split)
    categories = {each["id"]: each["name"] for each in _entries(split, coco, "categories", ("id", "name"))}
    images = {each["id"]: each for each in _entries(split, coco, "images", ("id", "file_name", "height", "width"))}
    annotations = _entries(split, coco, "annotations", ("id", "image_id", "category_id", "bbox"))
    for each in annotations:
        about = f"{split.entry} is {split.json!r}; its annotation {each['id']!r}"
        if each["image_id"] not in images:
            raise ValueError(f"{about} is of image {each['image_id']!r}, which is not among its images")
        if each["category_id"] not in categories:
            raise ValueError(f"{about} is of category {each['category_id']!r}, which is not among its categories")
        if not _is_box(each["bbox"]):
            raise ValueError(f"{about} has the box {each['bbox']!r}; it must be [left, top, width, height] in pixels")
    for each in images.values():
        if not Path(split.images, each["file_name"]).is_file():
            folder_entry = split.entry.replace("JSON", "IMAGES").replace("json", "images")
            raise ValueError(f"{folder_entry} is {split.images!r}; there is no image {each['file_name']!r} in it")
    masked = [each for each in annotations if not each.get("iscrowd")]
    unmasked = next((each["id"] for each in masked if not each.get("segmentation")), None)
    return CocoSummary(categories, unmasked, any(isinstance(each.get("segmentation"), dict) for each in masked))


def check_agreement(train: tuple[CocoSplit, CocoSummary] | None, test: tuple[CocoSplit, CocoSummary] | None) -> None:
    """ValueError if the two splits do not have the same categories."""
    if train is None or test is None or train[1].categories == test[1].categories:
        return
    ours, theirs = train[1].categories, test[1].categories
    odd = next(each for each in sorted({*ours, *theirs}, key=str) if ours.get(each) != theirs.get(each))
    values = f"{ours.get(odd)!r} in {train[0].json!r} and {theirs.get(odd)!r} in {test[0].json!r}"
    raise ValueError(f"the categories differ: {odd!r} is {values}")


def check_named(entry: str, names: Sequence[str], instead: str) -> None:
    """ValueError for a dataset that detectron2 does not know, or whose annotations are not there.

    Args:
        entry: Name of the config's entry, for messages.
        names: The datasets.
        instead: Name of the entry for annotations by path.
    """
    for name in names:
        if name not in DatasetCatalog.list():
            raise ValueError(f"{entry} holds {name!r}, which is not registered; annotations by path go into {instead}")
        file = MetadataCatalog.get(name).get("json_file", None)
        if file and not Path(file).is_file():
            raise ValueError(
                f"{entry} holds {name!r}, whose annotations {file!r} are not there: DETECTRON2_DATASETS names the "
                f"folder of such data; annotations by path go into {instead}"
            )


def _read(split: CocoSplit) -> dict[str, Any]:
    try:
        coco = json.loads(Path(split.json).read_text())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"it is no JSON ({error})"
        raise ValueError(f"{split.entry} is {split.json!r}; it cannot be read: {reason}") from error
    if not isinstance(coco, dict):
        raise ValueError(f"{split.entry} is {split.json!r}; it must hold COCO's images, annotations and categories")
    return coco


def _entries(split: CocoSplit, coco: dict[str, Any], part: str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """A list of COCO's that is not empty, each of whose entries has these fields."""
    entries = coco.get(part)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{split.entry} is {split.json!r}; it has no {part}")
    for each in entries:
        missing = [field for field in fields if not isinstance(each, dict) or field not in each]
        if missing:
            raise ValueError(f"{split.entry} is {split.json!r}; one of its {part} lacks {missing[0]}")
    return entries


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(isinstance(each, int | float) for each in box)
