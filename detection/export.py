"""Writes a trained detector as TorchScript, for images of one size; runs without detectron2 and this project.

    python detection/export.py --config-file detection/configs/tiny/mask_rcnn_castled.yaml --output output/castled.ts

Config, overrides and flags are those of train_net.py; the weights are those of the last checkpoint in the output
folder or, where there is none, those that the config names. Of a castled trunk the softmax branch is dropped first. The
program is kept only if it finds what the detector finds in images of the evaluation data. To use it:

    import torch, torchvision  # torchvision has the operators
    detect = torch.jit.load("output/castled.ts")
    found = detect(image)  # (3, H, W), 0 to 255, channels as in the config's INPUT.FORMAT
    found["boxes"], found["classes"], found["scores"]  # (N, 4) left, top, right, bottom in pixels; (N,); (N,)
    found["masks"]  # (N, 1, M, M), probabilities inside the box: detectron2.layers.paste_masks_in_image
"""

import argparse
import importlib.util
import itertools
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch
from mistakes import MISSING, exit_with, first_line
from torch import nn
from torch.nn import functional as F

import asvit_plugin
from asvit_plugin.atomic import write_atomically
from asvit_plugin.layers import castled_attention


class FixedSizeDetector(nn.Module):
    """A traced detector that takes images of the size that it was traced with, and refuses others.

    Args:
        traced: Image (C, H, W) to boxes, classes, scores and, if it has them, masks.
        image: An image of that size.
        has_masks: Whether there are masks.
    """

    has_masks: Final[bool]

    def __init__(self, traced: nn.Module, image: torch.Tensor, has_masks: bool) -> None:
        super().__init__()
        self.traced = traced
        self.shape: list[int] = list(image.shape)
        self.has_masks = has_masks

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Image (C, H, W) to what is found in it, see above."""
        if list(image.shape) != self.shape:
            raise ValueError("image is {}; it must be {}".format(list(image.shape), self.shape))  # noqa: UP032 (script)
        outputs = self.traced(image)
        found = {"boxes": outputs[0], "classes": outputs[1], "scores": outputs[2]}
        if self.has_masks:
            found["masks"] = outputs[3]
        return found


def main(argv: list[str] | None = None) -> Path:
    """Exports from the command line; gives the file's path."""
    if importlib.util.find_spec("detectron2") is None:
        exit_with(MISSING)
    from datasets_config import check_datasets, register_splits
    from detection_config import load_config
    from runs import runs_of

    args = _parse(argv)
    try:
        cfg = load_config(args)
        check_datasets(cfg, training=False)
        register_splits(cfg)
        model = finished(runs_of(cfg).make_detector(cfg, resume=True))
        images = read_images(runs_of(cfg).make_test_loader(cfg), args.images, args.image_size)
        program, objects, difference = export(model, images, args.tolerance)
    except ValueError as error:
        exit_with(first_line(error))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.output, lambda file: torch.jit.save(program, file))
    print(
        f"{args.output}: takes images of {tuple(images[0].shape)}; finds the same {objects} objects in {len(images)} "
        f"images as the detector, to {difference:.1e}"
    )
    return args.output


def finished(model: nn.Module) -> nn.Module:
    """The detector, without the softmax branch of a castled trunk.

    Raises:
        ValueError: The branch is still in use.
    """
    return asvit_plugin.finish(model) if castled_attention(model) else model


def read_images(loader: Iterable[list[dict[str, Any]]], count: int, size: list[int] | None) -> list[torch.Tensor]:
    """The first images for evaluation, (C, H, W) each, all brought to one size: that asked for, or of the first."""
    entries = itertools.islice(itertools.chain.from_iterable(loader), count)
    images = [entry["image"].float() for entry in entries]
    size = size or list(images[0].shape[1:])
    return [F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0] for image in images]


def export(model: nn.Module, images: list[torch.Tensor], tolerance: float) -> tuple[nn.Module, int, float]:
    """The program, the number of objects that it was compared by, and the largest difference in any number of theirs.

    Raises:
        ValueError: There was nothing to compare by, or something differs by more than ``tolerance``.
    """
    adapter = _tensors_only(model, images[0])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing holds sizes fixed, as it is meant to here
        traced = torch.jit.trace(adapter, (images[0],), check_trace=False)
        program = torch.jit.script(FixedSizeDetector(traced, images[0], len(adapter(images[0])) == 4))
        wanted = [adapter(image) for image in images]
        found = [tuple(program(image).values()) for image in images]
    objects = sum(len(each[0]) for each in wanted)
    if not objects:
        raise ValueError(f"--images is {len(images)}; nothing is found in any of them, so the export cannot be checked")
    difference = max(_difference(each, other) for each, other in zip(wanted, found, strict=True))
    if not difference <= tolerance:
        raise ValueError(
            f"the program differs from the detector by {difference:.3g} pixels; --tolerance allows {tolerance:g}"
        )
    return program, objects, difference


def _tensors_only(model: nn.Module, image: torch.Tensor) -> nn.Module:
    """Image (C, H, W) to boxes, classes, scores and masks, as tensors in this order."""
    from detectron2.export import TracingAdapter
    from detectron2.modeling import GeneralizedRCNN

    def infer(detector: nn.Module, batch: list[dict[str, torch.Tensor]]) -> tuple[torch.Tensor, ...]:
        if isinstance(detector, GeneralizedRCNN):
            found = detector.inference(batch, do_postprocess=False)[0]
        else:
            found = detector(batch)[0]["instances"]
        masks = (found.pred_masks,) if found.has("pred_masks") else ()
        return (found.pred_boxes.tensor, found.pred_classes, found.scores, *masks)

    return TracingAdapter(model, [{"image": image}], infer)


def _difference(wanted: tuple[torch.Tensor, ...], found: tuple[torch.Tensor, ...]) -> float:
    """Largest difference between objects that are nearest to each other: equal scores may change places."""
    rows, others = (
        torch.cat([boxes, 1e6 * classes[:, None], *(each.flatten(1) for each in (scores[:, None], *masks))], dim=1)
        for boxes, classes, scores, *masks in (wanted, found)
    )
    if len(rows) != len(others):
        return float("inf")
    distances = torch.cdist(rows, others, p=float("inf"))
    return max(distances.amin(dim=0).amax().item(), distances.amin(dim=1).amax().item()) if len(rows) else 0.0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    from detectron2.engine import default_argument_parser

    parser = default_argument_parser(epilog=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="file to write, .ts")
    parser.add_argument("--image-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="that of the first image")
    parser.add_argument("--images", type=int, default=4, help="number of images that it is compared on")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="largest difference that is kept")
    args = parser.parse_args(argv)
    if args.images < 1:
        parser.error(f"--images is {args.images}; it must be at least 1")
    if args.image_size and min(args.image_size) < 1:
        parser.error(f"--image-size is {args.image_size}; it must be a height and a width of at least 1")
    return args


if __name__ == "__main__":
    main()
