"""Scenes of handwritten digits: valid COCO, the right digits, the same at every time, and read by detectron2."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "detection"))

import digits_scenes  # noqa: E402
from digits_scenes import compose_scene, decode_mask, draw_picture, make_scenes, register_scenes, split_digits  # noqa: E402

SETTINGS = {"train": 12, "val": 8, "size": (64, 96), "digits_per_scene": (2, 6), "seed": 3}
SMALL = {"train": 3, "val": 2, "size": 32}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "new" / "scenes"
    assert make_scenes(folder, **SETTINGS)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("split", ["train", "val"])
def test_pycocotools_reads_masks_with_these_areas_and_boxes(scenes: Path, split: str) -> None:
    coco_module = pytest.importorskip("pycocotools.coco")
    from pycocotools import mask as masks

    coco = coco_module.COCO(scenes / f"annotations_{split}.json")
    assert len(coco.imgs) == SETTINGS[split]
    labels = dict(zip(split_digits(split)[2].tolist(), split_digits(split)[1].tolist()))
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        assert (mask == decode_mask(annotation["segmentation"])).all()
        assert annotation["area"] == mask.sum() > 0
        assert annotation["bbox"] == masks.toBbox(masks.encode(np.asfortranarray(mask))).tolist()
        assert coco.cats[annotation["category_id"]]["name"] == str(labels[annotation["source"]])
        assert annotation["iscrowd"] == 0
    assert sorted((each["id"], each["name"]) for each in coco.cats.values()) == [(i + 1, str(i)) for i in range(10)]


def test_images_are_as_the_annotations_say(scenes: Path) -> None:
    coco = json.loads((scenes / "annotations_train.json").read_text())
    sizes = set()
    for scene in coco["images"]:
        image = Image.open(scenes / "train" / scene["file_name"])
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (scene["width"], scene["height"]))
        pixels, digits = compose_scene("train", scene["id"], SETTINGS["size"], SETTINGS["digits_per_scene"], 3)
        assert (np.asarray(image) == pixels).all()
        mine = [each for each in coco["annotations"] if each["image_id"] == scene["id"]]
        assert 1 <= len(mine) <= 6
        assert [each["category_id"] - 1 for each in mine] == [digit.label for digit in digits]
        for annotation in mine:
            left, top, width, height = annotation["bbox"]
            assert 0 <= left < left + width <= scene["width"]
            assert 0 <= top < top + height <= scene["height"]
        sizes.add(image.size)
    assert len(sizes) > 1
    assert all(64 <= side <= 96 for size in sizes for side in size)


@pytest.mark.parametrize("mask", [[[1, 0], [1, 0]], [[0, 0], [0, 1]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]])
def test_run_lengths_are_decoded_again(mask: list[list[int]]) -> None:
    mask = np.array(mask, bool)
    assert (decode_mask(digits_scenes.run_lengths(mask)) == mask).all()


def test_masks_are_disjoint_and_nothing_is_nearly_hidden() -> None:
    covered = 0
    for index in range(60):
        _, digits = compose_scene("train", index, 64, (4, 8))
        assert np.sum([digit.mask for digit in digits], axis=0).max() == 1
        for digit in digits:
            assert digit.mask.sum() >= digits_scenes.VISIBLE * digit.pixels
        assert digits[-1].mask.sum() == digits[-1].pixels
        covered += sum(digit.mask.sum() < digit.pixels for digit in digits)
    assert covered > 60  # or else nothing is tested


def test_masks_lie_on_the_ink() -> None:
    for index in range(60):
        pixels, (digit,) = compose_scene("val", index, 96, (1, 1))
        ink, background = pixels[digit.mask], pixels[~digit.mask]
        assert np.linalg.norm(ink.mean(0) - background.mean(0)) > 70
        assert ink.std(0).max() < 40


def test_a_tiny_image_has_digits_too() -> None:
    for index in range(60):
        _, digits = compose_scene("train", index, 32, (6, 6))
        assert all(digit.mask.any() for digit in digits)


def test_digits_are_those_of_the_classification_scripts() -> None:
    code = (
        "import io, json; import numpy as np; from PIL import Image; from data import ReaderDigits\n"
        "readers = [ReaderDigits(True), ReaderDigits(False)]\n"
        "print(json.dumps([[(np.asarray(Image.open(io.BytesIO(png))).tolist(), label) for png, label in reader.samples]"
        " for reader in readers]))"
    )
    path = os.pathsep.join([str(ROOT / "classification"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}  # a process of its own: the folders' modules may have equal names
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    for split, samples in zip(("train", "val"), json.loads(done.stdout)):
        images, labels, _ = split_digits(split)
        assert labels.tolist() == [label for _, label in samples]
        assert ((images * 255).astype("uint8") == np.array([pixels for pixels, _ in samples])).all()


@pytest.mark.parametrize("split, other", [("train", "val"), ("val", "train")])
def test_scenes_show_nothing_of_the_other_split(split: str, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.datasets

    expected = [compose_scene(split, index, 64)[0] for index in range(20)]
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    images[split_digits(other)[2]] = 0
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda return_X_y: (images, labels))
    split_digits.cache_clear()
    try:
        assert all((compose_scene(split, index, 64)[0] == scene).all() for index, scene in enumerate(expected))
        assert not split_digits(other)[0].any()
    finally:
        split_digits.cache_clear()


def test_same_settings_give_the_same_bytes(scenes: Path, tmp_path: Path) -> None:
    make_scenes(tmp_path, **SETTINGS)
    assert contents(tmp_path) == contents(scenes)


def test_a_scene_does_not_depend_on_how_many_there_are(scenes: Path, tmp_path: Path) -> None:
    make_scenes(tmp_path, **SETTINGS | {"train": 5, "val": 2})
    for split, count in (("train", 5), ("val", 2)):
        assert len(list((tmp_path / split).iterdir())) == count
        assert contents(tmp_path / split).items() <= contents(scenes / split).items()
        few, many = (json.loads((each / f"annotations_{split}.json").read_text()) for each in (tmp_path, scenes))
        assert few["annotations"] == many["annotations"][: len(few["annotations"])]


def test_seed_split_and_index_matter() -> None:
    places = [("train", 0, 0), ("train", 0, 1), ("train", 1, 0), ("val", 0, 0)]
    images = [compose_scene(split, index, 64, seed=seed)[0].tobytes() for split, index, seed in places]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize("split, last", [("train", 0), ("train", 7), ("val", 0), ("val", 7)])
def test_a_killed_run_is_completed(
    split: str, last: int, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*scene: object) -> None:
        if scene[:2] == (split, last):
            (tmp_path / split / f"{last:06d}.png").write_bytes(b"half an ima")
            raise KeyboardInterrupt
        return compose_scene(*scene)

    monkeypatch.setattr(digits_scenes, "compose_scene", killed)
    with pytest.raises(KeyboardInterrupt):
        make_scenes(tmp_path, **SETTINGS)
    assert (tmp_path / "annotations_train.json").exists() == (split == "val")
    assert not (tmp_path / "annotations_val.json").exists()
    monkeypatch.undo()
    assert make_scenes(tmp_path, **SETTINGS)
    assert contents(tmp_path) == contents(scenes)


def test_a_run_killed_at_once_is_completed(tmp_path: Path) -> None:
    (tmp_path / ".settings.json.tmp").write_text("{")
    assert make_scenes(tmp_path, **SMALL)


def test_complete_scenes_are_left_alone_and_lost_images_made_again(tmp_path: Path) -> None:
    make_scenes(tmp_path, **SMALL)
    before = contents(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert not make_scenes(tmp_path, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times
    (tmp_path / "val" / "000001.png").unlink()
    assert make_scenes(tmp_path, **SMALL)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "other, message",
    [
        ({"train": 4}, "train 3 instead of 4"),
        ({"size": 48, "seed": 1}, r"size \[32, 32\] instead of \[48, 48\], seed 0 instead of 1"),
        ({"digits_per_scene": (1, 2)}, r"digits_per_scene \[1, 6\] instead of \[1, 2\]"),
    ],
)
def test_refuses_a_folder_of_other_settings(other: dict, message: str, tmp_path: Path) -> None:
    make_scenes(tmp_path, **SMALL)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"holds scenes of other settings.*{message}"):
        make_scenes(tmp_path, **SMALL | other)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name, text", [("notes.txt", "mine"), ("settings.json", "[1]"), ("settings.json", "torn {")])
def test_refuses_a_folder_of_something_else(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="holds something else than scenes; give a new or an empty folder"):
        make_scenes(tmp_path, **SMALL)
    assert contents(tmp_path) == {name: text.encode()}


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"train": 0}, "train is 0; allowed is a whole number from 1 up"),
        ({"val": 2.0}, "val is 2.0; allowed is"),
        ({"val": True}, "val is True; allowed is"),
        ({"size": 31}, "size is 31; allowed is one side in pixels, or the smallest and the largest, from 32 to 2048"),
        ({"size": (96, 64)}, r"size is \(96, 64\); allowed is"),
        ({"size": (64, 64, 64)}, r"size is \(64, 64, 64\); allowed is"),
        ({"size": "64"}, "size is '64'; allowed is"),
        (
            {"digits_per_scene": (0, 3)},
            r"digits_per_scene is \(0, 3\); allowed is the fewest and the most, from 1 to 30",
        ),
        ({"digits_per_scene": 3}, "digits_per_scene is 3; allowed is"),
        ({"seed": -1}, "seed is -1; allowed is a whole number from 0 to"),
        ({"seed": 2**32}, "seed is 4294967296; allowed is"),
    ],
)
def test_refuses_settings(setting: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make_scenes(tmp_path / "scenes", **SMALL | setting)
    assert not (tmp_path / "scenes").exists()


def test_refuses_an_unknown_split_and_index() -> None:
    with pytest.raises(ValueError, match="split is 'test'; allowed is train or val"):
        compose_scene("test", 0)
    with pytest.raises(ValueError, match="index is -1; allowed is a whole number from 0 up"):
        compose_scene("val", -1)


@pytest.fixture
def catalogs() -> Iterator[tuple]:
    """detectron2's two catalogs, without the scenes before and after."""
    data = pytest.importorskip("detectron2.data")
    catalogs = (data.DatasetCatalog, data.MetadataCatalog)
    for moment in ("before", "after"):
        for catalog in catalogs:
            for name in ("digits_scenes_train", "digits_scenes_val"):
                catalog.pop(name, None)
        if moment == "before":
            yield catalogs


def test_detectron2_reads_instances_with_masks(scenes: Path, catalogs: tuple) -> None:
    from detectron2.data import DatasetMapper

    names = register_scenes(scenes)
    assert names == ("digits_scenes_train", "digits_scenes_val")
    assert register_scenes(f"{scenes}/../scenes") == names
    records = catalogs[0].get(names[1])
    assert catalogs[1].get(names[1]).thing_classes == [str(digit) for digit in range(10)]
    assert len(records) == SETTINGS["val"]
    options = {"augmentations": [], "image_format": "RGB", "use_instance_mask": True}
    mapper = DatasetMapper(is_train=True, instance_mask_format="bitmask", **options)
    for index, record in enumerate(records):
        pixels, digits = compose_scene("val", index, SETTINGS["size"], SETTINGS["digits_per_scene"], SETTINGS["seed"])
        found = mapper(record)
        assert (found["image"].permute(1, 2, 0).numpy() == pixels).all()
        assert found["instances"].gt_classes.tolist() == [digit.label for digit in digits]
        assert (found["instances"].gt_masks.tensor.numpy() == np.stack([digit.mask for digit in digits])).all()
        assert (found["instances"].gt_masks.get_bounding_boxes().tensor == found["instances"].gt_boxes.tensor).all()


def test_registers_complete_scenes_of_one_folder_only(scenes: Path, catalogs: tuple, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no complete scenes"):
        register_scenes(tmp_path)
    assert "digits_scenes_train" not in catalogs[0]
    register_scenes(scenes)
    make_scenes(tmp_path, **SMALL)
    with pytest.raises(ValueError, match=r"digits_scenes_train is '.*/scenes/train' already"):
        register_scenes(tmp_path)


def test_names_detectron2_where_it_is_missing(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "detectron2.data", None)
    with pytest.raises(ModuleNotFoundError, match="needs detectron2; it is on no package index: build it from its"):
        register_scenes(scenes)


def test_the_command_makes_scenes_and_a_picture(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        *("--output", str(tmp_path / "made"), "--train", "12", "--val", "8", "--size", "64", "96"),
        *("--digits-per-scene", "2", "6", "--seed", "3", "--picture", str(tmp_path / "pictures" / "scenes.png")),
    ]
    digits_scenes.main(command)
    assert contents(tmp_path / "made") == contents(scenes)
    assert Image.open(tmp_path / "pictures" / "scenes.png").size == (1600, 200)
    digits_scenes.main(command)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("made: 12 training and 8 held-out scenes")
    assert lines[1] == f"{lines[0]}, as they were"


def test_the_picture_has_rows_of_ten(tmp_path: Path) -> None:
    make_scenes(tmp_path / "scenes", train=1, val=12, size=32)
    draw_picture(tmp_path / "scenes", tmp_path / "all.png")
    draw_picture(tmp_path / "scenes", tmp_path / "one.png", most=1)
    assert Image.open(tmp_path / "all.png").size == (2000, 400)
    assert Image.open(tmp_path / "one.png").size == (200, 200)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--train 0", "train is 0; allowed is a whole number from 1 up"),
        ("--train many", "argument --train: invalid int value: 'many'"),
        ("--size 16", "size is 16; allowed is one side in pixels, or the smallest and the largest, from 32 to 2048"),
        ("--size 64 48", "size is (64, 48); allowed is"),
        ("--digits-per-scene 3 1", "digits_per_scene is (3, 1); allowed is the fewest and the most, from 1 to 30"),
        ("--seed -1", "seed is -1; allowed is a whole number from 0 to 2**32 - 1"),
        ("--output /dev/null/scenes", "/dev/null"),
    ],
)
def test_the_command_refuses_in_one_sentence(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        digits_scenes.main(["--output", str(tmp_path / "scenes"), *arguments.split()])
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in last
    assert message in last
    assert not (tmp_path / "scenes").exists()
