"""Latency, throughput and peak memory of timm models in the runtimes of this machine, timed in turn in one run.

python tools/measure_latency.py deit_tiny_patch16_224 pit_ti_224 --runtime eager compile onnxruntime --json figures.json
python tools/measure_latency.py --predictor 16 --threads 1 --clock cpu    # how well a table of blocks predicts ViTs

What is measured is also kept in a file of this machine, where asvit_plugin.costs.LatencyCache finds it.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from arguments import MISTAKES, key_value
from latency_prediction import predict_nets, print_prediction
from result_files import machine_record, write_json
from torch import nn
from tqdm import tqdm, trange

import asvit_plugin  # noqa: F401  (registers the models)
from asvit_plugin.costs import (
    DTYPES,
    RUNTIMES,
    Latency,
    LatencyCache,
    LatencyProbe,
    LatencySetting,
    macs,
    measure_in_turn,
)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="timm model names")
    parser.add_argument(
        "--predictor", type=int, metavar="NETS", help="instead: predict so many scaled ViTs from blocks"
    )
    parser.add_argument("--fit", type=int, default=4, help="nets of --predictor that its line is fitted on")
    parser.add_argument("--seed", type=int, default=0, help="of the nets of --predictor")
    parser.add_argument("--model-kwargs", type=key_value, nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--img-size", type=int, help="side of the square images in pixels (the models' own)")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--runtime", nargs="+", default=["eager"], choices=RUNTIMES)
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="cpu: processor time of one thread")
    parser.add_argument("--seconds", type=float, default=2.0, help="of timed runs of each model in each runtime")
    parser.add_argument("--rounds", type=int, default=5, help="turns that these seconds are split into")
    parser.add_argument("--memory", action="store_true", help="peak memory also on a CPU (a process for each)")
    parser.add_argument("--cache", type=Path, help="file to keep the figures in (in the user's cache by default)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is built."""
    if bool(args.models) == bool(args.predictor):
        raise ValueError("either models or --predictor must be given")
    for name in args.models:
        if not timm.is_model(name):
            raise ValueError(f"argument models: {name!r} is no timm model; timm.list_models('*vit*') lists some")
    for field in ("img_size", "batch_size", "threads", "rounds"):
        if getattr(args, field) is not None and getattr(args, field) < 1:
            raise ValueError(f"argument --{field.replace('_', '-')} is {getattr(args, field)}; it must be at least 1")
    if not args.seconds > 0:
        raise ValueError(f"argument --seconds is {args.seconds}; it must be positive")
    if args.predictor and not 2 <= args.fit < args.predictor:
        raise ValueError(f"argument --fit is {args.fit}; it must be at least 2 and less than the {args.predictor} nets")
    if args.predictor and len(set(args.runtime)) > 1:
        raise ValueError(f"argument --runtime is {' '.join(args.runtime)}; --predictor takes one")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
    LatencyCache(args.cache).latencies()  # a broken file is refused before anything is measured


def settings_of(args: argparse.Namespace) -> list[LatencySetting]:
    how = args.device, args.dtype, args.threads, args.clock
    return [LatencySetting(runtime, *how) for runtime in dict.fromkeys(args.runtime)]


def build(name: str, args: argparse.Namespace) -> tuple[nn.Module, tuple[int, ...]]:
    """A model and the shape of its batch."""
    kwargs: dict[str, Any] = dict(args.model_kwargs)
    size = {"img_size": args.img_size} if args.img_size else {}
    try:
        model = timm.create_model(name, **kwargs, **size)
    except TypeError:
        if not size:
            raise
        model = timm.create_model(name, **kwargs)  # models such as ResNet take any size and have no such argument
    channels, height, width = timm.models.get_model_input_config(model)["input_size"]
    height, width = (args.img_size, args.img_size) if args.img_size else (height, width)
    return model, (args.batch_size, channels, height, width)


def timed(probes: list[LatencyProbe], args: argparse.Namespace) -> list[Latency]:
    """Time models in turn, and keep what comes out."""
    for _ in trange(args.rounds, desc="timing", unit="round", leave=False):
        latencies = measure_in_turn(probes, args.seconds / args.rounds, rounds=1)
    LatencyCache(args.cache).put(*latencies)
    return latencies


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Figures of every model in every runtime."""
    names, probes, costs, settings = [], [], [], settings_of(args)
    with tqdm(total=len(args.models) * len(settings), desc="getting ready", unit="model", leave=False) as bar:
        for name in args.models:
            model, shape = build(name, args)
            for setting in settings:
                bar.set_postfix_str(f"{name} in {setting.runtime}")
                probes.append(LatencyProbe(model, shape, setting, args.memory))
                names.append(name)
                costs.append(macs(model, (1, *shape[1:])))
                bar.update()
    return [
        {"model": name, "macs": cost, "throughput": each.throughput, **asdict(each)}
        for name, cost, each in zip(names, costs, timed(probes, args))
    ]


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    print("| model | runtime | GMACs | ms (p10 to p90) | images/s | runs | drift | peak memory |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        low, high = 1e3 * row["p10"], 1e3 * row["p90"]
        memory = f"{row['peak_memory'] / 2**20:.0f} MiB" if row["peak_memory"] is not None else row["no_memory"]
        print(
            f"| {row['model']} | {row['key']['runtime']} | {row['macs'] / 1e9:.2f} | {1e3 * row['median']:.2f} "
            f"({low:.2f} to {high:.2f}) | {row['throughput']:.1f} | {row['runs']} | {row['drift']:.2f} | {memory} |"
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        check(args)
        settings = {"batch": args.batch_size, "dtype": args.dtype, "clock": args.clock}
        where = {**machine_record(args.device, args.threads), **settings}
        print(f"{where['device']}, torch {where['torch']}, batch {args.batch_size}, {args.dtype}, {args.clock} time")
        if args.predictor:
            size = args.img_size or 224
            (setting,) = settings_of(args)
            shape = (args.batch_size, 3, size, size)
            found = predict_nets(args.predictor, args.fit, args.seed, shape, setting, lambda each: timed(each, args))
            print_prediction(found)
        else:
            found = {"models": measure(args)}
            print_table(found["models"])
    except (*MISTAKES, ModuleNotFoundError) as error:
        parser.error(" ".join(str(error).split()))
    if args.json:
        write_json(args.json, {"machine": where, **found})


if __name__ == "__main__":
    main()
