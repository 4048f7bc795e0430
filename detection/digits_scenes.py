"""Composes scenes of real handwritten digits into a COCO dataset with boxes and masks, with nothing to download.

    python detection/digits_scenes.py --output data/digits_scenes --train 600 --val 100 --size 128 --seed 0

The digits are scikit-learn's (8 x 8 pixels, 17 grey levels), scaled, slanted, rotated and drawn over one another in
random light colours on a random dark texture. Training scenes show the 80 % of the digits that
classification/train.py trains on, held-out scenes the others. Each scene is a function of the seed, its split and its
index alone: not of how many there are.

A mask is what is to be seen of a digit's strokes, a box is that of the mask, and nothing that is drawn lacks either:
a place that would leave a digit without 70 % of its strokes is not taken, and where there is no other the new digit
is left out. A scene so has fewer digits than asked for in rare cases, and never none.
"""

import argparse
import json
import math
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from asvit_plugin.atomic import write_atomically

SPLITS = ("train", "val")
SIDES = (32, 2048)  # pixels that an image may have per side
MOST_DIGITS = 30
RECIPE = 1  # to be raised with every change of what a scene looks like: folders made before it are then refused

VISIBLE = 0.7  # share of a digit's strokes that others may not cover
TRIES = 20
DIGIT_SIDES = (0.22, 0.48)  # shares of the image's shorter side; even the largest digit fits in when turned
ROTATION = 20  # degrees to either side: a 6 stays a 6
SLANT = 0.2
NARROWING = (0.85, 1.2)
INK = (0.3, 0.6)  # grey levels of the enlarged digit at which drawing begins and is opaque
BACKGROUNDS = (15, 115)  # levels of the three channels
INKS = (95, 255)  # lighter than that in most channels: a tiny detector need not learn both polarities
CONTRAST = 110  # distance in RGB of an ink from the background's mean and from the other inks
COLOURS = 64  # inks to choose from

Size = int | tuple[int, int]


@dataclass
class Digit:
    """A digit of a scene.

    Args:
        source: Its index in scikit-learn's set.
        label: Which digit it is, 0 to 9.
        pixels: Number of pixels of its strokes, covered or not.
        mask: `(H, W)` booleans: the pixels of its strokes that no later digit covers.
    """

    source: int
    label: int
    pixels: int
    mask: np.ndarray


@dataclass
class Settings:
    """All that a dataset depends on; written beside it.

    Args:
        train: Number of training scenes.
        val: Number of held-out scenes.
        size: Side of the square images in pixels, or the smallest and the largest side: height and width are then
            drawn for each image.
        digits_per_scene: Fewest and most digits of a scene.
        seed: Seed of everything that is random.

    Raises:
        ValueError: One of them is not allowed.
    """

    train: int
    val: int
    size: Size
    digits_per_scene: tuple[int, int]
    seed: int

    def __post_init__(self) -> None:
        for name in ("train", "val"):
            _demand(name, getattr(self, name), _is_whole(getattr(self, name), 1), "a whole number from 1 up")
        self.size, self.digits_per_scene = _check_scene(self.size, self.digits_per_scene, self.seed)


def make_scenes(
    folder: str | Path,
    train: int = 600,
    val: int = 100,
    size: Size = 128,
    digits_per_scene: tuple[int, int] = (1, 6),
    seed: int = 0,
) -> bool:
    """Writes `train/*.png`, `val/*.png`, `annotations_train.json` and `annotations_val.json`.

    The annotations of a split are written after its images, so a set that is not whole has none; made again with the
    same settings it is completed, and what is complete is left as it is.

    Args:
        folder: Where to write; must be new, empty, or hold scenes of the same settings.
        train, val, size, digits_per_scene, seed: See Settings.

    Returns:
        Whether there was anything to do.

    Raises:
        ValueError: A setting is not allowed, the folder holds something else, or scikit-learn is missing.
    """
    settings = Settings(train, val, size, digits_per_scene, seed)
    folder = Path(folder)
    _claim_folder(folder, settings)
    todo = [split for split in SPLITS if not _is_complete(folder, split, getattr(settings, split))]
    for split in todo:
        _make_split(folder, split, settings)
    return bool(todo)


def register_scenes(folder: str | Path) -> tuple[str, str]:
    """Registers the scenes with detectron2 as `digits_scenes_train` and `digits_scenes_val`.

    The masks are run lengths, so a detectron2 configuration that learns them needs `INPUT.MASK_FORMAT = "bitmask"`
    (`instance_mask_format="bitmask"` of a DatasetMapper).

    Args:
        folder: What make_scenes has written. Repeating the same folder changes nothing.

    Returns:
        The two names.

    Raises:
        ModuleNotFoundError: detectron2 is not installed.
        ValueError: The folder holds no complete scenes, or another one is registered.
    """
    try:
        from detectron2.data import MetadataCatalog
        from detectron2.data.datasets import register_coco_instances
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "register_scenes needs detectron2; it is on no package index: build it from its repository"
        ) from error
    folder = Path(folder).resolve()
    names = [f"digits_scenes_{split}" for split in SPLITS]
    for split, name in zip(SPLITS, names):
        if not _annotations(folder, split).is_file():
            raise ValueError(f"{str(folder)!r} holds no complete scenes; make_scenes completes them")
        known = MetadataCatalog.get(name).get("image_root", str(folder / split))
        if known != str(folder / split):
            raise ValueError(f"{name} is {known!r} already; a process can register the scenes of one folder only")
    for split, name in zip(SPLITS, names):
        register_coco_instances(name, {}, str(_annotations(folder, split)), str(folder / split))
    return names[0], names[1]


@cache
def split_digits(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The digits that the scenes of a split are made of: those of classification/data.py's ReaderDigits, in its order.

    Args:
        split: `train` or `val`.

    Returns:
        `(N, 8, 8)` grey levels from 0 to 1, `(N,)` labels, and `(N,)` indices in scikit-learn's set.

    Raises:
        ValueError: There is no such split, or scikit-learn is missing.
    """
    _demand("split", split, split in SPLITS, " or ".join(SPLITS))
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise ValueError("the digits need scikit-learn: pip install scikit-learn") from None
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    indices = np.array(sorted(parts[SPLITS.index(split)]))
    return (images[indices].reshape(-1, 8, 8) / 16).astype(np.float32), labels[indices], indices


def compose_scene(
    split: str, index: int, size: Size = 128, digits_per_scene: tuple[int, int] = (1, 6), seed: int = 0
) -> tuple[np.ndarray, list[Digit]]:
    """Composes one scene.

    Args:
        split: `train` or `val`, whose digits it shows.
        index: Which of the split's scenes, from 0.
        size, digits_per_scene, seed: See Settings.

    Returns:
        `(H, W, 3)` bytes, and the digits from the lowest to the topmost: at least one, with disjoint masks.

    Raises:
        ValueError: A setting is not allowed, or scikit-learn is missing.
    """
    (smallest, largest), (fewest, most) = _check_scene(size, digits_per_scene, seed)
    _demand("index", index, _is_whole(index, 0), "a whole number from 0 up")
    split_digits(split)
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    height, width = rng.integers(smallest, largest + 1, 2)
    canvas = _texture(rng, height, width)
    inks = [canvas.mean((0, 1))]
    digits: list[Digit] = []
    for _ in range(rng.integers(fewest, most + 1)):
        _add_digit(rng, split, canvas, inks, digits)
    canvas += rng.normal(0, rng.uniform(2, 10), canvas.shape)  # grain, of the ink as well
    return canvas.clip(0, 255).round().astype(np.uint8), digits


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """A mask as COCO's uncompressed run lengths, which pycocotools and detectron2 read: `(H, W)` booleans."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [not mask[-1, -1]]])  # the first run is of zeros
    return {"size": list(mask.shape), "counts": np.diff(np.flatnonzero(np.diff(flat)) + 1, prepend=1).tolist()}


def decode_mask(segmentation: dict[str, list[int]]) -> np.ndarray:
    """The `(H, W)` booleans of run_lengths."""
    counts = segmentation["counts"]
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(segmentation["size"], order="F")


def draw_picture(folder: str | Path, path: str | Path, most: int = 100) -> None:
    """Draws the first held-out scenes of a dataset, as its files have them, with boxes and outlines of masks.

    Args:
        folder: What make_scenes has written.
        path: PNG file to write.
        most: Number of scenes, ten in a row.

    Raises:
        ValueError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure  # this class needs no display
    except ImportError:
        raise ValueError("the picture needs matplotlib: pip install matplotlib") from None
    coco = json.loads(_annotations(Path(folder), "val").read_text())
    scenes = coco["images"][:most]
    columns = min(len(scenes), 10)
    rows = math.ceil(len(scenes) / columns)
    figure = Figure(figsize=(2 * columns, 2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, scene in zip(grid, scenes):
        annotations = [each for each in coco["annotations"] if each["image_id"] == scene["id"]]
        _draw_scene(axes, np.asarray(Image.open(Path(folder, "val", scene["file_name"]))), annotations)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))


def main(argv: list[str] | None = None) -> None:
    """Makes a dataset from the command line; mistakes end the program with one sentence and exit status 2."""
    parser = _parser()
    args = parser.parse_args(argv)
    size = args.size[0] if len(args.size) == 1 else tuple(args.size)
    try:
        news = make_scenes(args.output, args.train, args.val, size, tuple(args.digits_per_scene), args.seed)
        if args.picture:
            draw_picture(args.output, args.picture)
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    print(f"{args.output}: {args.train} training and {args.val} held-out scenes" + ("" if news else ", as they were"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="data/digits_scenes", help="folder to write")
    parser.add_argument("--train", type=int, default=600, help="number of training scenes")
    parser.add_argument("--val", type=int, default=100, help="number of held-out scenes")
    size_help = "side of the square images in pixels, or the smallest and the largest side"
    parser.add_argument("--size", type=int, nargs="+", default=[128], help=size_help)
    digits = {"type": int, "nargs": 2, "default": [1, 6], "metavar": ("FEWEST", "MOST")}
    parser.add_argument("--digits-per-scene", **digits, help="digits of a scene")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same scenes")
    parser.add_argument("--picture", help="PNG file to draw the first 100 held-out scenes to")
    return parser


def _check_scene(size: Size, digits_per_scene: tuple[int, int], seed: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The smallest and largest side, and the fewest and most digits; ValueError if they or the seed are not allowed."""
    sides = (size, size) if _is_whole(size, 0) else size
    allowed = f"one side in pixels, or the smallest and the largest, from {SIDES[0]} to {SIDES[1]}"
    _demand("size", size, _is_range(sides, *SIDES), allowed)
    fitting = _is_range(digits_per_scene, 1, MOST_DIGITS)
    _demand("digits_per_scene", digits_per_scene, fitting, f"the fewest and the most, from 1 to {MOST_DIGITS}")
    _demand("seed", seed, _is_whole(seed, 0) and seed < 2**32, "a whole number from 0 to 2**32 - 1")
    return tuple(sides), tuple(digits_per_scene)


def _demand(name: str, value: Any, fitting: bool, allowed: str) -> None:
    if not fitting:
        raise ValueError(f"{name} is {value!r}; allowed is {allowed}")


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_range(values: Any, least: int, most: int) -> bool:
    """Whether these are two whole numbers that do not fall, both within the bounds."""
    if not isinstance(values, list | tuple) or len(values) != 2 or not all(_is_whole(each, least) for each in values):
        return False
    return values[0] <= values[1] <= most


def _annotations(folder: Path, split: str) -> Path:
    return folder / f"annotations_{split}.json"


def _image_names(count: int) -> list[str]:
    return [f"{index:06d}.png" for index in range(count)]


def _claim_folder(folder: Path, settings: Settings) -> None:
    """Writes the settings into a new folder, before all else; ValueError for a folder that has others, or none."""
    ours = {"recipe": RECIPE, **asdict(settings)}
    ours = json.loads(json.dumps(ours))  # tuples become lists, as in the file
    path = folder / "settings.json"
    theirs = _read_settings(path) if path.is_file() else None
    if theirs is not None:
        odd = [name for name in ours if theirs.get(name) != ours[name]]
        told = ", ".join(f"{name} {theirs.get(name)} instead of {ours[name]}" for name in odd)
        if odd:
            raise ValueError(f"{str(folder)!r} holds scenes of other settings ({told}); remove it or give another one")
        return
    folder.mkdir(parents=True, exist_ok=True)
    if any(not entry.name.startswith(".") for entry in folder.iterdir()):  # a killed run leaves .settings.json.tmp
        raise ValueError(f"{str(folder)!r} holds something else than scenes; give a new or an empty folder")
    write_atomically(path, lambda file: file.write(json.dumps(ours, indent=1).encode()))


def _read_settings(path: Path) -> dict[str, Any] | None:
    """What _claim_folder has written; None for a file of something else."""
    try:
        settings = json.loads(path.read_text())
    except ValueError:
        return None
    return settings if isinstance(settings, dict) and "recipe" in settings else None


def _is_complete(folder: Path, split: str, count: int) -> bool:
    """Whether a split has its annotations, and its images still."""
    if not _annotations(folder, split).is_file():
        return False
    return all((folder / split / name).is_file() for name in _image_names(count))


def _make_split(folder: Path, split: str, settings: Settings) -> None:
    """Writes the images of a split, and then its annotations."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    split_digits(split)  # now: without scikit-learn nothing is begun
    (folder / split).mkdir(exist_ok=True)
    _annotations(folder, split).unlink(missing_ok=True)
    for index, name in enumerate(_image_names(getattr(settings, split))):
        pixels, digits = compose_scene(split, index, settings.size, settings.digits_per_scene, settings.seed)
        Image.fromarray(pixels).save(folder / split / name)
        height, width = pixels.shape[:2]
        images.append({"id": index, "file_name": name, "height": height, "width": width})
        for digit in digits:
            # Numbered from 1: pycocotools takes the id 0 for no annotation.
            annotations.append({"id": len(annotations) + 1, "image_id": index, **_annotation(digit)})
    categories = [{"id": digit + 1, "name": str(digit), "supercategory": "digit"} for digit in range(10)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    write_atomically(_annotations(folder, split), lambda file: file.write(json.dumps(coco).encode()))


def _annotation(digit: Digit) -> dict[str, Any]:
    """COCO's fields of a digit, and its index in scikit-learn's set as `source`."""
    rows, columns = np.flatnonzero(digit.mask.any(1)), np.flatnonzero(digit.mask.any(0))
    corner, end = (columns[0], rows[0]), (columns[-1] + 1, rows[-1] + 1)
    return {
        "category_id": digit.label + 1,
        "bbox": [int(corner[0]), int(corner[1]), int(end[0] - corner[0]), int(end[1] - corner[1])],
        "area": int(digit.mask.sum()),
        "iscrowd": 0,
        "segmentation": run_lengths(digit.mask),
        "source": digit.source,
    }


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A background of smooth colour noise in three scales around a random colour: `(H, W, 3)` levels."""
    canvas = np.broadcast_to(rng.uniform(*BACKGROUNDS, 3), (height, width, 3)).copy()
    for cells, strength in ((3, 25), (8, 15), (24, 10)):
        noise = rng.normal(0, rng.uniform(0.3, 1) * strength, (3, cells, cells)).astype(np.float32)
        layers = [Image.fromarray(layer).resize((width, height), Image.Resampling.BICUBIC) for layer in noise]
        canvas += np.stack([np.asarray(layer) for layer in layers], -1)
    return canvas


def _add_digit(
    rng: np.random.Generator, split: str, canvas: np.ndarray, inks: list[np.ndarray], digits: list[Digit]
) -> None:
    """Draws a random digit of the split over the canvas, unless it finds no place; changes canvas, inks and digits."""
    images, labels, indices = split_digits(split)
    chosen = rng.integers(len(labels))
    opacity = _warp(rng, images[chosen], rng.uniform(*DIGIT_SIDES) * min(canvas.shape[:2]))
    place = _find_place(rng, canvas.shape, opacity >= 0.5, digits)
    if place is None:
        return
    inks.append(_choose_ink(rng, inks))
    canvas[place] += opacity[..., None] * (inks[-1] - canvas[place])
    mask = np.zeros(canvas.shape[:2], bool)
    mask[place] = opacity >= 0.5
    for below in digits:
        below.mask &= ~mask
    digits.append(Digit(int(indices[chosen]), int(labels[chosen]), int(mask.sum()), mask))


def _warp(rng: np.random.Generator, image: np.ndarray, side: float) -> np.ndarray:
    """Enlarges, rotates and slants a digit.

    Args:
        rng: Draws the angle, the slant and the width.
        image: `(8, 8)` grey levels from 0 to 1.
        side: Side in pixels that it is enlarged to before it is rotated.

    Returns:
        `(h, w)` opacities from 0 to 1, cut to the strokes.
    """
    angle = math.radians(rng.uniform(-ROTATION, ROTATION))
    slant = np.array([[1, rng.uniform(-SLANT, SLANT)], [0, 1]])
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    inverse = np.diag([1 / rng.uniform(*NARROWING), 1]) @ slant @ turn * 8 / side
    padded = np.pad(image, 2)
    extent = math.ceil(1.9 * side)
    offset = np.array([6, 6]) - inverse @ np.array([extent / 2, extent / 2])
    affine = (*inverse[0], offset[0], *inverse[1], offset[1])
    bicubic = Image.Resampling.BICUBIC
    large = np.asarray(Image.fromarray(padded).transform((extent, extent), Image.Transform.AFFINE, affine, bicubic))
    opacity = ((large - INK[0]) / (INK[1] - INK[0])).clip(0, 1)
    rows, columns = np.flatnonzero((opacity > 0).any(1)), np.flatnonzero((opacity > 0).any(0))
    return opacity[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _find_place(
    rng: np.random.Generator, shape: tuple[int, ...], stencil: np.ndarray, digits: list[Digit]
) -> tuple[slice, slice] | None:
    """A random place wholly in the image at which a stencil leaves enough of every digit; None if there seems none."""
    height, width = stencil.shape
    for _ in range(TRIES):
        top, left = rng.integers(shape[0] - height + 1), rng.integers(shape[1] - width + 1)
        place = (slice(top, top + height), slice(left, left + width))
        hidden = [(digit.mask[place] & stencil).sum() for digit in digits]
        if all(digit.mask.sum() - lost >= VISIBLE * digit.pixels for digit, lost in zip(digits, hidden)):
            return place
    return None


def _choose_ink(rng: np.random.Generator, others: list[np.ndarray]) -> np.ndarray:
    """The first of some random colours that is far enough from all others, or else the one that is the farthest."""
    colours = rng.uniform(*INKS, (COLOURS, 3))
    distances = np.linalg.norm(colours[:, None] - np.stack(others), axis=-1).min(1)
    return colours[np.argmax(np.minimum(distances, CONTRAST))]


def _draw_scene(axes: Any, pixels: np.ndarray, annotations: list[dict[str, Any]]) -> None:
    """Draws a scene with the box, the digit and the outline of the mask of each annotation."""
    axes.imshow(pixels)
    for number, annotation in enumerate(annotations):
        colour = f"C{number}"
        left, top, width, height = annotation["bbox"]
        box = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) * (width, height) + (left - 0.5, top - 0.5)
        axes.plot(*box.T, color=colour, linewidth=1)
        axes.contour(decode_mask(annotation["segmentation"]), [0.5], colors=colour, linewidths=0.6)
        axes.text(left, top, str(annotation["category_id"] - 1), color="white", fontsize=7, backgroundcolor=colour)


if __name__ == "__main__":
    main()
