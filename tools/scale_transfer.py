"""What becomes of a strategy of scaling in another runtime, on another device, or on a PiT in the place of a ViT.

    python tools/scale_transfer.py
    python tools/scale_transfer.py --clock cpu --onto pit_ti head_dim=16 img_size=64 patch_size=8

The base is scaled to --ratio times its own cost, counted (macs) and in every runtime, by every oracle; a strategy is
fitted to each path; and every strategy is applied at every other cost's budget. Regret is what the net of the foreign
strategy lacks of the score that the native path gained. At the end all nets are timed side by side in all runtimes.
The same command again goes on with the paths and latencies that are there; what is left, the scores of carried nets and
the turns side by side, is done again. docs/scaling.md tells more.
"""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from result_files import run_record, write_json
from scale_base import read_base
from scale_transfer_cases import COUNTED, Case, Transfer, Workshop
from scale_transfer_report import draw, tables
from step_progress import StepProgress
from study_command import run_study

import asvit_plugin  # noqa: F401  (registers the models)
from asvit_plugin.costs import RUNTIMES
from asvit_plugin.costs.latency_record import hardware_name
from asvit_plugin.search.scaling_bases import Base

_BASE = ["deit_tiny", "depth=4", "num_heads=6", "head_dim=16", "img_size=64", "patch_size=8"]
_FACTORS = ["depth", "num_heads", "img_size"]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", nargs="+", default=_BASE, metavar="NET", help=f"as of scale.py ({' '.join(_BASE)})")
    parser.add_argument("--factors", nargs="+", default=_FACTORS, metavar="FACTOR", help="as of scale.py")
    parser.add_argument("--onto", nargs="+", metavar="NET", help="another base, that the first one's strategies scale")
    parser.add_argument("--onto-factors", nargs="+", metavar="FACTOR", help="what may change there (--factors)")
    parser.add_argument("--ratio", type=float, default=2.0, help="budget over the cost of the base")
    parser.add_argument(
        "--costs", nargs="+", default=default_costs(), metavar="COST", help=f"{COUNTED}, RUNTIME, or RUNTIME@DEVICE"
    )
    parser.add_argument("--onto-costs", nargs="+", default=[COUNTED, "eager"], metavar="COST", help="of --onto")
    parser.add_argument("--oracles", nargs="+", default=["macs", "spectrum_entropy"], help="proxies that choose paths")
    parser.add_argument("--growth", type=float, default=2.0, help="ratio of one step's budget to the one before")
    parser.add_argument("--tolerance", type=float, default=0.05, help="part of the budget that a net may be off")
    parser.add_argument("--repeats", type=int, default=1, help="draws of weights per net")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--seconds", type=float, default=0.3, help="how long each net is timed")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each net gets side by side")
    parser.add_argument(
        "--clock", default="wall", choices=("wall", "cpu"), help="cpu: processor time, where one CPU thread runs"
    )
    parser.add_argument("--output", type=Path, default=Path("output/scale_transfer"), help="folder of all that is made")
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--picture", type=Path, help="also draw the picture here")
    return parser


def default_costs() -> list[str]:
    """MACs, and what this machine has of eager, compile and ONNX Runtime."""
    runtimes = ["eager", "compile", *(["onnxruntime"] if find_spec("onnxruntime") else [])]
    return [COUNTED, *runtimes, *(["eager@cuda", "compile@cuda"] if torch.cuda.is_available() else [])]


def run(args: argparse.Namespace) -> None:
    _check(args)
    bases = {"base": read_base(args.base, args.factors)}
    if args.onto:
        bases["onto"] = read_base(args.onto, args.onto_factors or args.factors)
    args.output.mkdir(parents=True, exist_ok=True)
    progress = StepProgress()
    try:
        results = study(args, bases, progress)
    finally:
        progress.close()
    for path in (args.output / "results.json", args.json):
        if path is not None:
            write_json(path, results)
    for path in (args.output / "results.png", args.picture):
        if path is not None:
            draw(results, path)
    print(tables(results))


def _check(args: argparse.Namespace) -> None:
    if not args.ratio > 0 or abs(args.ratio - 1) <= args.tolerance:
        raise ValueError(f"--ratio is {args.ratio:g}; it must be positive, and farther from 1 than the tolerance")
    for option in ("costs", "onto_costs"):
        for cost in getattr(args, option):
            if cost != COUNTED and cost.partition("@")[0] not in RUNTIMES:
                allowed = f"{COUNTED}, or one of {', '.join(RUNTIMES)} with @DEVICE or without"
                raise ValueError(f"--{option.replace('_', '-')} has {cost!r}; it must be {allowed}")


def study(args: argparse.Namespace, bases: dict[str, Base], progress: StepProgress) -> dict[str, Any]:
    """All that the report needs."""
    shop = Workshop(args, bases)
    cases = [Case(key, cost, oracle) for key in bases for oracle in args.oracles for cost in _costs(args, key)]
    cases = [case for case in cases if case.oracle != case.cost]  # nothing gains MACs at equal MACs
    for key in bases:
        if not any(case.key == key for case in cases):
            raise ValueError(
                f"--oracles are {' '.join(args.oracles)}, and the costs {' '.join(_costs(args, key))}; nothing gains "
                "MACs at equal MACs, so name another of either"
            )
        shop.check(_costs(args, key))
    natives = {}
    for number, case in enumerate(cases):
        print(f"{case.name}, path {number + 1} of {len(cases)}", flush=True)
        natives[case] = shop.native(case, progress)
    print("applying strategies", flush=True)
    transfers = [
        shop.transfer(Transfer(source, goal), natives) for goal in cases for source in cases if _serves(source, goal)
    ]
    print("measuring side by side", flush=True)
    names = ("ratio", "tolerance", "growth", "repeats", "seed", "dtype", "threads", "seconds", "rounds", "clock")
    devices = sorted({shop.device(case.cost) for case in cases if case.cost != COUNTED})
    return {
        "settings": {**{name: getattr(args, name) for name in names}, "batch": args.batch_size},
        "hardware": {device: hardware_name(device) for device in devices},
        "bases": {
            key: {"name": base.name, "model": base.model, "arguments": base.arguments} for key, base in bases.items()
        },
        "cases": [natives[case] for case in cases],
        "transfers": [each for each in transfers if each],
        "nets": shop.side_by_side({key: _costs(args, key) for key in bases}),
        **run_record(),
    }


def _costs(args: argparse.Namespace, key: str) -> Sequence[str]:
    return args.costs if key == "base" else args.onto_costs


def _serves(source: Case, goal: Case) -> bool:
    """Whether a strategy is tried: at another cost on the same base, or at the same cost on the other base."""
    if source.oracle != goal.oracle:
        return False
    return source.cost != goal.cost if source.key == goal.key else (source.key == "base" and source.cost == goal.cost)


def main(argv: Sequence[str] | None = None) -> None:
    run_study(make_parser(), argv, run, ("batch_size", "threads", "rounds", "repeats"))


if __name__ == "__main__":
    main()
