"""Times training iterations of a config's detector, and their peak memory, on noise with objects; needs no data.

    python detection/measure_training.py --config-file detection/configs/mask_rcnn_as_vit_small.yaml --image-size 1024 \
        --label "As-ViT Small, windows of one size" --results docs/results/detection_cpu_1024.json

Config and overrides are those of train_net.py; weights are random. Schedules are at ``--progress``; at 1, castled
trunks have lost their softmax branch. Peak memory is that of the process above what it had before the detector was
built; on a GPU, that of its allocations. A result with the same label is replaced in the file.
"""

import argparse
import importlib.util
import itertools
import json
import platform
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from mistakes import MISSING, exit_with, first_line
from torch import nn

import asvit_plugin
from asvit_plugin.atomic import write_atomically
from asvit_plugin.layers import castled_attention

OBJECTS = 8  # in every image


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measures from the command line; gives the result."""
    if importlib.util.find_spec("detectron2") is None:
        exit_with(MISSING)
    from detection_config import load_config

    args = _parse(argv)
    torch.set_num_threads(args.threads)
    try:
        cfg = load_config(args)
        _drop_weights(cfg)
        result = measure(cfg, args)
    except ValueError as error:
        exit_with(first_line(error))
    print(json.dumps(result, indent=1))
    if args.results:
        _keep(args.results, result)
    return result


def measure(cfg: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds per iteration (all, and their median), MiB at the peak, and what was measured."""
    from detectron2.engine import AMPTrainer, SimpleTrainer
    from detectron2.utils.events import EventStorage
    from runs import runs_of

    runs = runs_of(cfg)
    device, precision = runs.device_and_precision(cfg)
    before = _peak_mib(device)
    model = runs.make_model(cfg).train()
    _advance(cfg, model, args.progress)
    optimizer = runs.make_optimizer(cfg, model)
    batches = itertools.repeat(_noise(args.batch_size, args.image_size, runs.count_classes(cfg)))
    if precision is None:
        trainer = SimpleTrainer(model, batches, optimizer)
    else:
        trainer = AMPTrainer(model, batches, optimizer, precision=precision)
    seconds = []
    with EventStorage():
        for _ in range(1 + args.iterations):  # the first one warms up
            start = time.perf_counter()
            trainer.run_step()
            if device != "cpu":
                torch.cuda.synchronize()
            seconds.append(round(time.perf_counter() - start, 4))
    return {
        "label": args.label or Path(args.config_file).stem,
        "config": args.config_file,
        "overrides": list(args.opts),
        "progress": args.progress,
        "batch_size": args.batch_size,
        "image_size": args.image_size,
        "seconds_per_iteration": statistics.median(seconds[1:]),
        "seconds": seconds[1:],
        "peak_memory_mib": round(_peak_mib(device) - before),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "precision": "float32" if precision is None else str(precision).removeprefix("torch."),
        "device": platform.processor() or platform.machine() if device == "cpu" else torch.cuda.get_device_name(),
        "threads": args.threads,
        "torch": torch.__version__,
    }


def _advance(cfg: Any, model: nn.Module, progress: float) -> None:
    from schedules_config import make_schedules

    for schedule in make_schedules(cfg, model):
        schedule.step(progress)
    if progress == 1 and castled_attention(model):
        asvit_plugin.finish(model)


def _noise(count: int, size: int, classes: int) -> list[dict[str, Any]]:
    """A batch of images (3, size, size) with objects, as detectron2's mapper makes them."""
    from detectron2.structures import Boxes, Instances, PolygonMasks

    torch.manual_seed(0)
    batch = []
    for _ in range(count):
        objects = Instances((size, size))
        corners = torch.rand(OBJECTS, 2) * 0.6 * size
        boxes = torch.cat([corners, corners + (0.1 + 0.3 * torch.rand(OBJECTS, 2)) * size], dim=1)
        objects.gt_boxes = Boxes(boxes)
        objects.gt_classes = torch.arange(OBJECTS) % classes
        objects.gt_masks = PolygonMasks([[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes.tolist()])
        batch.append({"image": torch.rand(3, size, size) * 255, "instances": objects})
    return batch


def _peak_mib(device: str) -> float:
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _drop_weights(cfg: Any) -> None:
    """Random weights cost the same, and need no download."""
    from detection_config import is_lazy
    from omegaconf import OmegaConf

    if not is_lazy(cfg):
        cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.PRETRAINED, cfg.MODEL.TIMM.WEIGHTS = "", False, ""
        return
    for path in ("model.backbone.bottom_up", "model.backbone.net"):
        if OmegaConf.select(cfg, path) is not None:
            OmegaConf.update(cfg, f"{path}.pretrained", False)


def _keep(path: Path, result: dict[str, Any]) -> None:
    kept = json.loads(path.read_text()) if path.exists() else []
    kept = [each for each in kept if each["label"] != result["label"]] + [result]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write((json.dumps(kept, indent=1) + "\n").encode()))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    from detectron2.engine import default_argument_parser

    parser = default_argument_parser(epilog=__doc__)
    parser.add_argument("--image-size", type=int, default=1024, help="pixels on each side")
    parser.add_argument("--batch-size", type=int, default=1, help="images per iteration")
    parser.add_argument("--iterations", type=int, default=5, help="timed iterations, after one that is not timed")
    parser.add_argument("--progress", type=float, default=1.0, help="of the schedules, 0 to 1")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--label", help="name of the result (that of the config)")
    parser.add_argument("--results", type=Path, help="JSON file that keeps it")
    args = parser.parse_args(argv)
    for field in ("image_size", "batch_size", "iterations", "threads"):
        if getattr(args, field) < 1:
            parser.error(f"--{field.replace('_', '-')} is {getattr(args, field)}; it must be at least 1")
    if not 0 <= args.progress <= 1:
        parser.error(f"--progress is {args.progress}; it must be from 0 to 1")
    return args


if __name__ == "__main__":
    main()
