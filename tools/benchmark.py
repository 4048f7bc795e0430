"""Parameters, MACs and images per second of timm models, timed in turn in one run so that their ratio can be trusted.

python tools/benchmark.py as_vit_small swin_tiny_patch4_window7_224 --json docs/results/as_vit_small_cpu.json
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import timm
import torch
from arguments import demand_positive
from result_files import machine_record, write_json
from torch import nn

from asvit_plugin.costs import macs, params


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="timm model names; ratios are to the last one")
    parser.add_argument("--img-size", type=int, default=224, help="side of the square images in pixels")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument(
        "--rounds", type=int, default=9, help="timed batches of each model, after one that is not timed"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="time the compiled models")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    for name in args.models:
        if not timm.is_model(name):
            parser.error(f"argument models: {name!r} is no timm model; timm.list_models('*vit*') lists some")
    demand_positive(parser, args, "img_size", "batch_size", "rounds", "threads")
    try:
        torch.zeros(1, device=args.device).item()
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
        args.modules = {name: build(name, args) for name in args.models}
    except (AssertionError, OSError, RuntimeError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    return args


def build(name: str, args: argparse.Namespace) -> nn.Module:
    torch.manual_seed(0)
    try:
        model = timm.create_model(name, img_size=args.img_size)
    except TypeError:  # models such as ResNet take any size and have no such argument
        model = timm.create_model(name)
    return model.to(args.device).eval()


@torch.inference_mode()
def time_in_turn(models: dict[str, nn.Module], args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds per batch of every model, one batch of each per round."""
    images = torch.randn(args.batch_size, 3, args.img_size, args.img_size, device=args.device)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for timed in range(args.rounds + 1):
        for name, model in models.items():
            synchronize(args.device)
            start = time.perf_counter()
            model(images)
            synchronize(args.device)
            if timed:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def synchronize(device: str) -> None:
    if torch.device(device).type != "cpu":
        torch.get_device_module(device).synchronize()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    models = args.modules
    shape = (1, 3, args.img_size, args.img_size)
    rows = [{"model": name, "params": params(model), "macs": macs(model, shape)} for name, model in models.items()]
    if args.compile:
        models = {name: torch.compile(model) for name, model in models.items()}
    seconds = time_in_turn(models, args)
    peer = seconds[args.models[-1]]
    for row in rows:
        own = seconds[row["model"]]
        row["images_per_s"] = args.batch_size / statistics.median(own)
        row["speed_ratio"] = statistics.median(theirs / ours for ours, theirs in zip(own, peer))

    where = machine_record(args.device, args.threads)
    print(f"{where['device']}, torch {where['torch']}, {args.img_size} px, batch {args.batch_size}")
    print(f"| model | parameters | GMACs | images/s | ratio to {args.models[-1]} |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['model']} | {row['params']:,} | {row['macs'] / 1e9:.2f} | {row['images_per_s']:.1f} | "
            f"{row['speed_ratio']:.2f} |"
        )
    if args.json:
        write_json(args.json, {"machine": where, "models": rows})


if __name__ == "__main__":
    main()
