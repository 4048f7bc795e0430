"""Times As-ViT's two scores against the published procedure's loops, in one run on one net, and compares the values.

python tools/benchmark_proxies.py --json docs/results/proxies_cpu.json

The loops are timed in part and scaled up: length distortion's over some of the feature's channels, the tangent
kernel's over some of the images. Their forward passes are timed apart and counted once. The fast forms are whole.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from arguments import demand_positive
from result_files import machine_record, write_json

from asvit_plugin.search.distortion import circle_frame, curve_length
from asvit_plugin.search.features import PooledFeature, measuring
from asvit_plugin.search.naive import naive_curve_length, naive_tangent_kernel
from asvit_plugin.search.norms import remove_norms
from asvit_plugin.search.ntk import tangent_kernel
from asvit_plugin.search.redrawing import draws

GENOTYPE = "8,2,3|4,1,2|4,1,4|4,1,6|{heads},{width}"  # found by the paper's search, at 32 heads and width 32


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--img-size", type=int, default=224, help="side of the square images in pixels")
    parser.add_argument("--width", type=int, default=32, help="channels of the first stage")
    parser.add_argument("--points", type=int, default=10, help="angles of the circle")
    parser.add_argument("--images", type=int, default=16, help="images of the tangent kernel")
    parser.add_argument("--loop-channels", type=int, default=16, help="feature channels of the loop that are timed")
    parser.add_argument("--loop-images", type=int, default=4, help="images of the loop that are timed")
    parser.add_argument("--rounds", type=int, default=3, help="times that everything is timed in turn; medians count")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    demand_positive(
        parser, args, "img_size", "width", "points", "images", "loop_channels", "loop_images", "rounds", "threads"
    )
    if args.loop_images > args.images:
        parser.error(f"argument --loop-images is {args.loop_images}; there are {args.images} images")
    try:
        torch.zeros(1, device=args.device).item()
        args.model = timm.create_model(
            "as_vit", genotype=GENOTYPE.format(heads=32, width=args.width), img_size=args.img_size, pos_embed=False
        )
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
    except (AssertionError, OSError, RuntimeError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    return args


def seconds_in_turn(jobs: dict[str, Callable[[], Any]], args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of every job, one of each per round after one that is not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for timed in range(args.rounds + 1):
        for name, job in jobs.items():
            synchronize(args.device)
            start = time.perf_counter()
            job()
            synchronize(args.device)
            if timed:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def synchronize(device: str) -> None:
    if torch.device(device).type != "cpu":
        torch.get_device_module(device).synchronize()


def time_length_distortion(args: argparse.Namespace) -> dict[str, Any]:
    """One repeat: the forward-mode pass, and the loop over the feature's channels."""
    draw = next(draws(args.model, repeats=1, seed=0, device=args.device))
    feature = PooledFeature(remove_norms(draw.model))
    frame = circle_frame((3, args.img_size, args.img_size), draw.generator).to(args.device)
    channels = args.model.num_features
    part = min(args.loop_channels, channels)
    seconds = seconds_in_turn(
        {
            "fast": lambda: curve_length(feature, frame, args.points),
            "forward": lambda: naive_curve_length(feature, frame, args.points, channels=0),
            "part": lambda: naive_curve_length(feature, frame, args.points, channels=part),
        },
        args,
    )
    return compare(seconds, part, channels, "channels")


def time_tangent_kernel(args: argparse.Namespace) -> dict[str, Any]:
    """One repeat: all images' gradients together, and the loop over images; also how far the values lie apart."""
    draw = next(draws(args.model, repeats=1, seed=0, device=args.device))
    feature = PooledFeature(draw.model)
    images = torch.randn(args.images, 3, args.img_size, args.img_size, generator=draw.generator).to(args.device)
    part = range(args.loop_images)
    seconds = seconds_in_turn(
        {
            "fast": lambda: tangent_kernel(feature, images),
            "forward": lambda: naive_tangent_kernel(feature, images, rows=()),
            "part": lambda: naive_tangent_kernel(feature, images, part),
        },
        args,
    )
    fast, naive = tangent_kernel(feature, images)[: len(part), : len(part)], naive_tangent_kernel(feature, images, part)
    apart = ((fast - naive).abs().max() / naive.abs().max()).item()
    return compare(seconds, len(part), args.images, "images") | {"relative_difference": apart}


def compare(seconds: dict[str, float], part: int, whole: int, unit: str) -> dict[str, Any]:
    loop = seconds["forward"] + (seconds["part"] - seconds["forward"]) * whole / part
    return {
        "seconds": seconds["fast"],
        "loop_seconds": loop,
        "speed_ratio": loop / seconds["fast"],
        "loop_timed": f"{part} of {whole} {unit}, backward passes scaled",
    }


def length_distortion_difference(args: argparse.Namespace) -> float:
    """Relative difference of the value and the whole loop's, at 64 pixels."""
    model = timm.create_model("as_vit", genotype=GENOTYPE.format(heads=8, width=8), img_size=64, pos_embed=False)
    draw = next(draws(model, repeats=1, seed=0, device=args.device))
    feature = PooledFeature(remove_norms(draw.model))
    frame = circle_frame((3, 64, 64), draw.generator).to(args.device)
    return abs(curve_length(feature, frame, args.points) / naive_curve_length(feature, frame, args.points) - 1)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    with measuring("the benchmark", args.model, (3, args.img_size, args.img_size)):
        distortion = time_length_distortion(args)
        distortion["relative_difference_at_64_px"] = length_distortion_difference(args)
        results = {"length_distortion": distortion, "tangent_kernel": time_tangent_kernel(args)}
    where = machine_record(args.device, args.threads)
    print(f"{where['device']}, torch {where['torch']}, {args.img_size} px, width {args.width}, one repeat")
    print("| score | seconds | loop's seconds | ratio | loop timed |\n|---|---|---|---|---|")
    for name, result in results.items():
        print(
            f"| {name} | {result['seconds']:.2f} | {result['loop_seconds']:.1f} | {result['speed_ratio']:.1f} | "
            f"{result['loop_timed']} |"
        )
    print(f"difference of length distortion at 64 px: {distortion['relative_difference_at_64_px']:.1e}")
    print(f"difference of the kernel: {results['tangent_kernel']['relative_difference']:.1e}")
    if args.json:
        setting = {name: getattr(args, name) for name in ("img_size", "width", "points", "images", "rounds")}
        write_json(args.json, {"machine": where, "setting": setting, "scores": results})


if __name__ == "__main__":
    main()
