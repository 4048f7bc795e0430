"""A plain ViT scaled to a budget of MACs, parameters or seconds on this device, by what a score without training gains.

    python tools/scale.py --base deit_tiny --budget macs --to 2.5e9
    python tools/scale.py --base deit_small --budget latency --to 0.03 --runtime onnxruntime  # seconds
    python tools/scale.py --base deit_tiny --iso                                # at its own cost: this for that
    python tools/scale.py --base deit_tiny img_size=96 patch_size=8 --to 6e8 --factors depth head_dim=32,48,64 mlp_ratio
    python tools/scale.py --base deit_tiny --to 2.5e9 --sampler nsga2 --steps 200   # the trade-off of score and cost

The same command again goes on where it was stopped or killed; run several times at once it shares the nets of a step.
docs/scaling.md tells more.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arguments import key_value
from filelock import FileLock
from scale_oracle import make_oracle
from scale_report import print_nets, write_report
from step_progress import StepProgress
from study_command import run_study

import asvit_plugin  # noqa: F401  (registers the models)
from asvit_plugin.atomic import write_atomically
from asvit_plugin.costs import DTYPES, RUNTIMES, LatencyCache, LatencySetting
from asvit_plugin.search.scaling import ScalingSettings, scale
from asvit_plugin.search.scaling_costs import UNITS, Target, Timing
from asvit_plugin.search.scaling_front import SAMPLER_NAMES, FrontSettings, scale_front
from asvit_plugin.search.scaling_space import BASES, FACTORS, base_choice, factor_space, space_yaml


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--base",
        nargs="+",
        default=["deit_tiny"],
        metavar="NET",
        help=f"{', '.join(BASES)}, and arguments of scaled_vit as NAME=VALUE (deit_tiny)",
    )
    parser.add_argument("--budget", default="macs", choices=list(UNITS), help="what is limited")
    parser.add_argument("--to", type=float, metavar="BUDGET", help="so much: MACs, parameters, or seconds for a batch")
    parser.add_argument("--iso", action="store_true", help="instead of --to: stay at what the base costs")
    parser.add_argument("--tolerance", type=float, default=0.03, help="part of the budget that a net may be off")
    parser.add_argument(
        "--factors",
        nargs="+",
        metavar="FACTOR",
        help=f"what may change, each FACTOR or FACTOR=VALUE,VALUE,... ({' '.join(FACTORS)}, each with its grid)",
    )
    parser.add_argument("--growth", type=float, default=1.25, help="ratio of one step's budget to the one before")
    parser.add_argument("--beam", type=int, default=1, help="paths that are followed at once; 1 is greedy")
    parser.add_argument("--steps", type=int, help="steps of the path at most; with --sampler nets to measure (200)")
    parser.add_argument("--sampler", choices=SAMPLER_NAMES, help="instead of a path: the best nets of every cost")
    parser.add_argument("--output", type=Path, default=Path("output/scale"), help="folder of the study and the nets")
    parser.add_argument("--storage", help="file or Optuna storage URL of the study (study.db in the output folder)")
    parser.add_argument("--study-name", help="its name there (scaling, or scaling-front)")
    _add_oracle(parser.add_argument_group("what nets are scored by"))
    _add_timing(parser.add_argument_group("how latency is measured"))
    return parser


def _add_oracle(group: Any) -> None:
    group.add_argument(
        "--oracle",
        default="spectrum_entropy",
        metavar="NAME",
        help="a proxy (spectrum_entropy), or a table's JSON file",
    )
    group.add_argument("--label", help="accuracy of the table (its first)")
    group.add_argument("--seed", type=int, default=0, help="of the random numbers")
    group.add_argument("--repeats", type=int, default=3, help="draws of weights per net")


def _add_timing(group: Any) -> None:
    group.add_argument("--runtime", default="eager", choices=RUNTIMES)
    group.add_argument("--device", default="cpu", help="cpu, cuda, ...; proxies are measured there too")
    group.add_argument("--dtype", default="float32", choices=list(DTYPES))
    group.add_argument("--batch-size", type=int, default=1)
    group.add_argument("--threads", type=int, default=1, help="CPU threads")
    group.add_argument("--seconds", type=float, default=1.0, help="how long each net is timed")
    group.add_argument("--cache", type=Path, help="file of latencies (in the user's cache by default)")


def read_base(texts: Sequence[str]) -> dict[str, Any]:
    """Arguments of ``scaled_vit``: of a known net, and one by one."""
    base: dict[str, Any] = {}
    for text in texts:
        if "=" not in text and text not in BASES:
            raise ValueError(f"--base has {text!r}; it must be one of {', '.join(BASES)}, or NAME=VALUE")
        base |= dict([_pair("--base", text)]) if "=" in text else BASES[text]
    return base


def read_factors(texts: Sequence[str] | None) -> dict[str, list[float] | None] | None:
    """Choices by factor; None instead of them for its grid, and None for all factors with their grids."""
    if texts is None:
        return None
    found: dict[str, list[float] | None] = {}
    for text in texts:
        name, values = _pair("--factors", text) if "=" in text else (text, None)
        found[name] = values if values is None or isinstance(values, (list, tuple)) else [values]
    return found


def _pair(option: str, text: str) -> tuple[str, Any]:
    try:
        return key_value(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{option}: {error}") from error


def make_timing(args: argparse.Namespace) -> Timing | None:
    """How latency is measured, where it is."""
    if args.budget != "latency":
        return None
    setting = LatencySetting(args.runtime, args.device, args.dtype, args.threads)
    return Timing(setting, args.batch_size, args.seconds, LatencyCache(args.cache))


def run(args: argparse.Namespace) -> None:
    base = read_base(args.base)
    space, target = factor_space(base, read_factors(args.factors)), Target(args.budget, args.to, args.tolerance)
    choice, oracle, timing = base_choice(space, base), make_oracle(args), make_timing(args)
    common = (space, choice, target, oracle)
    args.output.mkdir(parents=True, exist_ok=True)
    where = (timing, args.storage or args.output / "study.db", args.study_name)
    progress = StepProgress()
    try:
        if args.sampler:
            if args.iso:
                raise ValueError("--iso is for a path; with --sampler leave it out")
            settings = FrontSettings(args.sampler, 200 if args.steps is None else args.steps, args.seed)
            found = scale_front(*common, settings, *where, lambda done, count: progress(0, done, count))
        else:
            settings = ScalingSettings(args.iso, args.growth, args.beam, args.steps)
            found = scale(*common, settings, *where, progress)
    finally:
        progress.close()
    with FileLock(args.output / ".report.lock"):  # processes that worked on it together end together
        write_atomically(args.output / "space.yaml", lambda file: file.write(space_yaml(space).encode()))
        write_report(found, space, target, oracle, settings, timing, args.output)
    print_nets(found, target, oracle)
    print(f"written: {args.output}/result.json, result.png, space.yaml and net_*.yaml for train.py --config")


def main(argv: Sequence[str] | None = None) -> None:
    run_study(make_parser(), argv, run)


if __name__ == "__main__":
    main()
