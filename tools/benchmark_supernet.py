"""Time of a supernet's training step by masks and by slices, beside that of the same nets standing alone.

python tools/benchmark_supernet.py sr_tiny_mh --batch-size 4 --examples-per-arch 2 --threads 1
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import demand_positive
from result_files import machine_record, write_json
from torch import nn

from asvit_plugin.costs.runtimes import synchronize
from asvit_plugin.models.vit_resnas_costs import network_macs
from asvit_plugin.search.network_space import NetworkSpace, load_network_space
from asvit_plugin.search.space import Choice
from asvit_plugin.search.supernet import make_supernet

_TRIED = 200  # nets, of which that whose MACs are nearest to the chosen ones' mean is timed alone
_PEER = "one net of the same MACs"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", nargs="?", default="sr_tiny_mh", help="a space of vit_resnas, by name or as YAML file")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--examples-per-arch", type=int, default=2, help="examples of the batch that each net computes")
    parser.add_argument("--img-size", type=int, default=224, help="side of the square images in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each kind, after one that is not timed")
    parser.add_argument("--seed", type=int, default=0, help="which nets are drawn")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--amp", action="store_true", help="forward passes in bfloat16 where autocast allows it")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    demand_positive(parser, args, "batch_size", "examples_per_arch", "img_size", "rounds", "threads")
    if args.batch_size % args.examples_per_arch:
        parser.error(f"--batch-size {args.batch_size} is no multiple of --examples-per-arch {args.examples_per_arch}")
    try:
        torch.zeros(1, device=args.device).item()
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
        args.networks = load_network_space(args.space)
    except (AssertionError, OSError, RuntimeError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    return args


def draw(networks: NetworkSpace, args: argparse.Namespace) -> tuple[list[Choice], Choice]:
    """The nets of a batch, and one whose MACs are close to their mean."""
    rng = np.random.default_rng(args.seed)
    choices = [networks.space.sample(rng) for _ in range(args.batch_size // args.examples_per_arch)]
    mean = statistics.mean(macs(networks, choice, args) for choice in choices)
    tried = [networks.space.sample(rng) for _ in range(_TRIED)]
    return choices, min(tried, key=lambda choice: abs(macs(networks, choice, args) - mean))


def macs(networks: NetworkSpace, choice: Choice, args: argparse.Namespace) -> int:
    return network_macs(networks.network(choice), args.img_size)


def steps(args: argparse.Namespace, choices: list[Choice], peer: Choice) -> dict[str, tuple[Callable[[], None], float]]:
    """What is timed, by name: the step, and MACs per image."""
    networks, batch = args.networks, args.batch_size
    torch.manual_seed(args.seed)
    supernet = make_supernet(networks, img_size=args.img_size).to(args.device).train()
    supernet.choose(choices)
    images = torch.randn(batch, 3, args.img_size, args.img_size, device=args.device)
    nets = [supernet.extract(choice) for choice in choices]
    one, largest = supernet.extract(peer), supernet.extract(networks.largest_choice())
    parts = [images[index :: len(nets)] for index in range(len(nets))]

    def share(mode: str) -> None:
        supernet.mode = mode
        step(supernet, images, args)

    def alone() -> None:
        for net, part in zip(nets, parts):
            step(net, part, args)

    mean = statistics.mean(macs(networks, choice, args) for choice in choices)
    return {
        "supernet, masks": (lambda: share("masks"), mean),
        "supernet, slices": (lambda: share("slices"), mean),
        "the same nets alone": (alone, mean),
        _PEER: (lambda: step(one, images, args), macs(networks, peer, args)),
        "the largest net": (lambda: step(largest, images, args), network_macs(networks.largest, args.img_size)),
    }


def step(model: nn.Module, images: torch.Tensor, args: argparse.Namespace) -> None:
    """Forward and backward pass, from no gradients on."""
    model.zero_grad()
    with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.amp):
        loss = model(images).float().square().mean()
    loss.backward()


def time_in_turn(timed: dict[str, Callable[[], None]], args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of every kind of step, one of each per round."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(1 + args.rounds):
        for name, run in timed.items():
            synchronize(args.device)
            start = time.perf_counter()
            run()
            synchronize(args.device)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row of figures for every kind of step."""
    kinds = steps(args, *draw(args.networks, args))
    seconds = time_in_turn({name: run for name, (run, _) in kinds.items()}, args)
    return [
        {
            "step": name,
            "gmacs_per_image": cost / 1e9,
            "seconds": statistics.median(seconds[name]),
            "ratio": statistics.median(own / peer for own, peer in zip(seconds[name], seconds[_PEER])),
        }
        for name, (_, cost) in kinds.items()
    ]


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    rows, where = measure(args), machine_record(args.device, args.threads)
    nets = args.batch_size // args.examples_per_arch
    print(f"{where['device']}, torch {where['torch']}, {args.space} at {args.img_size} px")
    print(f"batch of {args.batch_size} by {nets} nets, forward and backward, median of {args.rounds}\n")
    print(f"| step | GMACs per image | seconds | ratio to {_PEER} |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['step']} | {row['gmacs_per_image']:.3f} | {row['seconds']:.3f} | {row['ratio']:.2f} |")
    if args.json:
        settings = {
            name: getattr(args, name) for name in ("batch_size", "examples_per_arch", "img_size", "seed", "amp")
        }
        write_json(args.json, {"machine": where, "space": args.space, **settings, "steps": rows})


if __name__ == "__main__":
    main()
