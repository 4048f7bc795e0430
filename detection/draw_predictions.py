"""Draws the boxes and masks that a trained detector finds in the first images of its evaluation data.

    python detection/draw_predictions.py --config-file detection/configs/tiny/mask_rcnn_as_vit.yaml \
        --picture output/tiny_mask_rcnn_as_vit/predictions.png

Config, overrides and flags are those of train_net.py. The weights are those of the last checkpoint in the output
folder or, where there is none, those that the config names.
"""

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
from mistakes import MISSING, exit_with, first_line

from asvit_plugin.atomic import write_atomically

COLUMNS = 4


def main(argv: list[str] | None = None) -> Path:
    """Draws from the command line; gives the picture's path."""
    if importlib.util.find_spec("detectron2") is None:
        exit_with(MISSING)
    if importlib.util.find_spec("matplotlib") is None:
        exit_with("the picture needs matplotlib: pip install matplotlib")
    from datasets_config import check_datasets, register_splits
    from detection_config import load_config

    args = _parse(argv)
    try:
        cfg = load_config(args)
        check_datasets(cfg, training=False)
        register_splits(cfg)
        found = predict(cfg, args.images, args.score)
    except ValueError as error:
        exit_with(first_line(error))
    draw(found, Path(args.picture))
    print(f"{args.picture}: what is found in {len(found)} images, with scores of {args.score} and more")
    return Path(args.picture)


def predict(cfg: Any, images: int, score: float) -> list[tuple[np.ndarray, Any, list[str]]]:
    """Pixels, what is found in them, and names of classes, of the first images for evaluation.

    Raises:
        ValueError: There are no weights, or an image cannot be read.
    """
    import torch
    from detectron2.data import MetadataCatalog
    from detectron2.data.detection_utils import read_image
    from runs import runs_of

    runs = runs_of(cfg)
    model = runs.make_detector(cfg, resume=True)
    loader = runs.make_test_loader(cfg)
    classes = MetadataCatalog.get(runs.test_name(cfg)).thing_classes
    found: list[tuple[np.ndarray, Any, list[str]]] = []
    with torch.inference_mode():
        for batch in loader:
            for entry, output in zip(batch, model(batch)):
                instances = output["instances"].to("cpu")
                found.append((read_image(entry["file_name"], "RGB"), instances[instances.scores >= score], classes))
            if len(found) >= images:
                return found[:images]
    return found


def draw(found: list[tuple[np.ndarray, Any, list[str]]], path: Path) -> None:
    """Writes a PNG or JPEG file, four images in a row."""
    from matplotlib.figure import Figure  # this class needs no display

    columns = min(len(found), COLUMNS)
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(3 * columns, 3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, (pixels, instances, classes) in zip(grid, found):
        _draw_image(axes, pixels, instances, classes)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: figure.savefig(file, format=path.suffix[1:], dpi=100))


def _draw_image(axes: Any, pixels: np.ndarray, instances: Any, classes: list[str]) -> None:
    """The image with box, class, score and the outline of the mask of each instance."""
    axes.imshow(pixels)
    masks = instances.pred_masks.numpy() if instances.has("pred_masks") else [None] * len(instances)
    labels = [classes[index] for index in instances.pred_classes.tolist()]
    boxes = instances.pred_boxes.tensor.tolist()
    for number, (box, label, score, mask) in enumerate(zip(boxes, labels, instances.scores.tolist(), masks)):
        left, top, right, bottom = (edge - 0.5 for edge in box)  # pixels are drawn around whole numbers
        colour = f"C{number}"
        axes.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color=colour, linewidth=1)
        if mask is not None and mask.any() and not mask.all():
            axes.contour(mask, [0.5], colors=colour, linewidths=1)
        style = dict(color="white", fontsize=7, bbox=dict(facecolor=colour, edgecolor="none", pad=1))
        axes.text(left, top, f"{label} {score:.2f}", **style)


def _parse(argv: list[str] | None) -> Any:
    from detectron2.engine import default_argument_parser

    parser = default_argument_parser(epilog=__doc__)
    parser.add_argument("--picture", default="predictions.png", help="file to write, .png or .jpg")
    parser.add_argument("--images", type=int, default=12, help="number of images")
    parser.add_argument("--score", type=float, default=0.5, help="least score of what is drawn")
    args = parser.parse_args(argv)
    if Path(args.picture).suffix not in (".png", ".jpg"):
        parser.error(f"--picture is {args.picture!r}; it must end in .png or .jpg")
    if args.images < 1:
        parser.error(f"--images is {args.images}; it must be at least 1")
    return args


if __name__ == "__main__":
    main()
