"""Speed and memory of timm models beside each other, timed in turn so that their ratios can be trusted.

python tools/benchmark.py as_vit_small swin_tiny_patch4_window7_224 --img-size 224 512 --json figures.json
python tools/benchmark.py --img-size 224 384 512 1024 --step forward training --json docs/benchmarks/suite_NAME.json

Models that are named make one group, without names there are those of tools/benchmark_suite.py; ratios are to the last
model of a group. A command that was stopped goes on from the cells that its JSON file holds.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from arguments import MISTAKES, demand_positive
from benchmark_record import BenchmarkRecord, machine
from benchmark_suite import GROUPS, Cell, cells
from torch import nn

import asvit_plugin  # noqa: F401  (registers the models)
from asvit_plugin.costs import (
    DTYPES,
    STEPS,
    Latency,
    LatencyProbe,
    LatencySetting,
    macs,
    measure_in_turn,
    params,
    speed_ratio,
)
from asvit_plugin.costs.runtimes import TRAINING_RUNTIMES

_SHARED = ("device", "dtype", "threads", "clock", "batch_size", "rounds", "seconds", "memory", "limit")
_STOPPED = "stopped; the same command goes on from here"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="timm model names; ratios are to the last one")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, metavar="NAME", help=f"some of: {' '.join(GROUPS)}")
    parser.add_argument("--img-size", type=int, nargs="+", default=[224], help="sides of the square images in pixels")
    parser.add_argument("--step", nargs="+", default=["forward"], choices=STEPS)
    parser.add_argument("--runtime", nargs="+", default=["eager"], choices=TRAINING_RUNTIMES)
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="cpu: processor time of one thread")
    parser.add_argument("--batch-size", type=int, help="images at once (as many pixels as 8 images of 224 px have)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each model")
    parser.add_argument("--seconds", type=float, default=3.0, help="timed runs of each model, in all its turns")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure peak memory")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds that one batch of a model may take")
    parser.add_argument("--json", type=Path, help="keep the figures here, and go on from those that are there")
    return parser


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is built."""
    if args.models and args.groups:
        raise ValueError("argument --groups: models are named as well; give one of the two")
    for name in args.models:
        if not timm.is_model(name):
            raise ValueError(f"argument models: {name!r} is no timm model; timm.list_models('*vit*') lists some")
    for field in ("seconds", "limit"):
        if not getattr(args, field) > 0:
            raise ValueError(f"argument --{field} is {getattr(args, field)}; it must be positive")
    if min(args.img_size) < 1:
        raise ValueError(f"argument --img-size is {min(args.img_size)}; it must be at least 1")
    for runtime in args.runtime:
        for step in args.step:
            LatencySetting(runtime, args.device, args.dtype, args.threads, args.clock, step)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)


def build(name: str, img_size: int) -> nn.Module:
    torch.manual_seed(0)
    try:
        return timm.create_model(name, img_size=img_size)
    except TypeError:  # models such as ResNet take any size and have no such argument
        return timm.create_model(name)


def measure(cell: Cell, args: argparse.Namespace, record: BenchmarkRecord) -> list[dict[str, Any]]:
    """One row for each model of a cell: its figures, or the reason why there are none."""
    setting = LatencySetting(cell.runtime, args.device, args.dtype, args.threads, args.clock, cell.step)
    rows, probes = [], {}
    for name in cell.models:
        row: dict[str, Any] = {"model": name}
        reason = record.too_slow(cell, name)
        try:
            if not reason:
                probes[name] = make_ready(row, cell, setting, args)
        except TimeoutError as error:
            row["too_slow"], reason = True, str(error)
        except Exception as error:  # models have errors of many kinds for a size that they cannot take
            reason = " ".join(f"{error or type(error).__name__}".split())[:300]
        rows.append({**row, "reason": reason} if reason else row)
        print(f"{name}: {reason or 'ready'}", file=sys.stderr, flush=True)
    latencies = dict(zip(probes, measure_in_turn(list(probes.values()), args.seconds, args.rounds)))
    peer = latencies.get(cell.models[-1])
    torch._dynamo.reset()  # what was compiled is of no more use
    return [{**row, **(figures(latencies[row["model"]], peer) if row["model"] in latencies else {})} for row in rows]


def make_ready(row: dict[str, Any], cell: Cell, setting: LatencySetting, args: argparse.Namespace) -> LatencyProbe:
    """A model warmed up; notes what it costs by counting."""
    model, image = build(row["model"], cell.img_size), (3, cell.img_size, cell.img_size)
    row["params"] = params(model)
    row["macs"] = macs(model, image)
    return LatencyProbe(model, (cell.batch, *image), setting, args.memory, args.limit)


def figures(own: Latency, peer: Latency | None) -> dict[str, Any]:
    """What is kept of a latency; seconds are of a batch, and ratios are to the peer's images per second."""
    names = ("speed_ratio", "speed_ratio_p10", "speed_ratio_p90")
    return {
        "images_per_s": own.throughput,
        **dict(zip(names, speed_ratio(own, peer) if peer else (None, None, None))),
        **{name: getattr(own, name) for name in ("median", "p10", "p90", "runs", "drift", "peak_memory", "no_memory")},
    }


def print_table(cell: Cell, rows: Sequence[dict[str, Any]]) -> None:
    print(f"\n{cell}\n\n| model | parameters | GMACs | images/s | ratio to {cell.models[-1]} (p10 to p90) | peak MiB |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        if "reason" in row:
            print(f"| {row['model']} | {row['reason']} | | | | |")
            continue
        ratios = [row[name] for name in ("speed_ratio", "speed_ratio_p10", "speed_ratio_p90")]
        ratio = "" if None in ratios else "{:.2f} ({:.2f} to {:.2f})".format(*ratios)
        memory = "" if row["peak_memory"] is None else f"{row['peak_memory'] / 2**20:.0f}"
        print(
            f"| {row['model']} | {row['params']:,} | {row['macs'] / 1e9:.2f} | {row['images_per_s']:.1f} "
            f"| {ratio} | {memory} |"
        )


def run(args: argparse.Namespace) -> None:
    check(args)
    groups = {"models": args.models} if args.models else {name: GROUPS[name] for name in args.groups or GROUPS}
    where = machine(args.device, args.threads)
    record = BenchmarkRecord(args.json, where, {name: getattr(args, name) for name in _SHARED})
    wanted = cells(groups, args.img_size, args.step, args.runtime, args.batch_size)
    found = {cell: record.find(cell) for cell in wanted}  # a file of other models is refused before anything is timed
    print(f"{where['device']}, {args.threads} threads, torch {where['torch']}, {args.dtype}", flush=True)
    for cell in wanted:
        kept = found[cell] or record.add(cell, measure(cell, args, record))
        print_table(cell, kept["models"])
        sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    demand_positive(parser, args, "batch_size", "rounds", "threads")
    try:
        run(args)
    except KeyError as error:
        parser.error(f"{args.json} has a cell without {error}; give another file, or delete it")
    except MISTAKES as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        sys.exit(_STOPPED if args.json else "stopped")


if __name__ == "__main__":
    main()
