"""A net scaled to a budget of MACs, parameters or seconds on this device, by what a score gains for the cost.

    python tools/scale.py --base deit_tiny --budget macs --to 2.5e9 --output output/tiny
    python tools/scale.py --base deit_tiny img_size=96 --budget latency --to 0.02 --runtime onnxruntime --repeats 1 \
        --factors depth num_heads mlp_ratio --output output/fast    # 0.02 is in seconds
    python tools/scale.py --base pit_ti img_size=96 --to 2e8 --factors depth mlp_ratio_3 --output output/pit_ti
    python tools/scale.py --base deit_tiny --iso --output output/iso             # at its own cost: this for that
    python tools/scale.py --base deit_tiny img_size=96 patch_size=8 --to 6e8 --output output/heads \
        --factors depth head_dim=32,48,64 mlp_ratio
    python tools/scale.py --base deit_tiny --to 2.5e9 --sampler nsga2 --steps 200 --output output/front    # a trade-off
    python tools/scale.py --base deit_small --to 9e9 --strategy output/tiny/strategy.json --output output/followed
    python tools/scale.py --base deit_tiny img_size=32 patch_size=4 depth=4 --to 3e7 --oracle trained \
        --output output/digits

Every other base, budget or oracle needs an --output of its own. The same command again goes on where it was stopped or
killed; run several times at once it shares the nets of a step.
docs/scaling.md tells more.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from scale_base import read_base
from scale_oracle import make_oracle
from scale_report import print_nets, write_report
from scale_steps import outlook, step_by_step
from step_progress import StepProgress
from study_command import run_study

import asvit_plugin  # noqa: F401  (registers the models)
from asvit_plugin.atomic import write_atomically
from asvit_plugin.costs import DTYPES, RUNTIMES, LatencyCache, LatencySetting
from asvit_plugin.search.scaling import Scaled, ScalingSettings, scale
from asvit_plugin.search.scaling_bases import BASES, Base
from asvit_plugin.search.scaling_costs import UNITS, Target, Timing
from asvit_plugin.search.scaling_front import SAMPLER_NAMES, Front, FrontSettings, scale_front
from asvit_plugin.search.scaling_oracle import Oracle
from asvit_plugin.search.scaling_space import space_yaml
from asvit_plugin.search.scaling_strategy import Strategy, fit_strategy, purpose
from asvit_plugin.search.scaling_transfer import apply_strategy

# Settings of a study whose values are hashes, in terms of the options.
HASHED = {"space": "with another --base or other --factors", "recipes": "with another --recipe"}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--base",
        nargs="+",
        default=["deit_tiny"],
        metavar="NET",
        help=f"{', '.join(BASES)}, a genotype of As-ViT, or a net_STEP.yaml; then arguments as NAME=VALUE (deit_tiny)",
    )
    parser.add_argument("--budget", default="macs", choices=list(UNITS), help="what is limited")
    parser.add_argument("--to", type=float, metavar="BUDGET", help="MACs, parameters, or of latency seconds a batch")
    parser.add_argument("--iso", action="store_true", help="instead of --to: stay at what the base costs")
    parser.add_argument("--tolerance", type=float, default=0.03, help="part of the budget that a net may be off")
    parser.add_argument(
        "--factors",
        nargs="+",
        metavar="FACTOR",
        help="what may change, each FACTOR or FACTOR=VALUE,VALUE,...; FACTOR_STAGE for one stage of a pyramid (all)",
    )
    parser.add_argument("--growth", type=float, default=1.25, help="ratio of one step's budget to the one before")
    parser.add_argument("--beam", type=int, default=1, help="paths that are followed at once; 1 is greedy")
    parser.add_argument("--steps", type=int, help="steps of the path at most; with --sampler nets to measure (200)")
    parser.add_argument("--sampler", choices=SAMPLER_NAMES, help="instead of a path: the best nets of every cost")
    parser.add_argument(
        "--strategy", type=Path, metavar="FILE", help="a path's strategy.json: follow it, score nothing"
    )
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
        help="a proxy (spectrum_entropy), trained, or a table's JSON file",
    )
    group.add_argument("--label", help="accuracy of the table (its first)")
    group.add_argument(
        "--recipe",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="of trained: files for train.py --config (3 epochs on handwritten digits)",
    )
    group.add_argument("--train-options", default="", metavar="TEXT", help='of trained: as "--epochs 5 --lr 1e-3"')
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


def make_timing(args: argparse.Namespace) -> Timing | None:
    """How latency is measured, where it is."""
    if args.budget != "latency":
        return None
    try:
        setting = LatencySetting(args.runtime, args.device, args.dtype, args.threads)
    except ModuleNotFoundError as error:
        raise ValueError(f"--runtime: {error}") from error
    return Timing(setting, args.batch_size, args.seconds, LatencyCache(args.cache))


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is made."""
    if args.strategy and not args.strategy.is_file():
        path = repr(str(args.strategy))
        raise ValueError(f"--strategy is {path}, and there is no such file; a path that ends writes strategy.json")
    if args.iso and args.sampler:
        raise ValueError("--iso is for a path; with --sampler leave it out")
    if args.iso and args.to is not None and not args.strategy:
        raise ValueError(f"--iso stays at what the base costs, and --to is {args.to:g}; give one of them")
    if not (args.iso or args.sampler or args.to is not None):
        raise ValueError(f"give --to BUDGET, so many {UNITS[args.budget]}{', or --iso' * (not args.strategy)}")


def run(args: argparse.Namespace) -> None:
    check(args)
    base, target = read_base(args.base, args.factors), Target(args.budget, args.to, args.tolerance)
    space, oracle, timing = base.space, make_oracle(args, base.model), make_timing(args)
    if args.strategy:
        settings, found = follow(args, base, target, timing)
    else:
        settings, found = search(args, base, target, oracle, timing)
    args.output.mkdir(parents=True, exist_ok=True)
    strategy = False
    with FileLock(args.output / ".report.lock"):  # processes that worked on it together end together
        write_atomically(args.output / "space.yaml", lambda file: file.write(space_yaml(space).encode()))
        write_report(found, space, target, oracle, settings, timing, args.output)
        if isinstance(settings, ScalingSettings) and not settings.iso:
            strategy = write_strategy(found, target, oracle, timing, args.output / "strategy.json")
    print_nets(found, target, oracle)
    files = f"result.json, result.png, space.yaml{', strategy.json' * strategy}"
    print(f"written: {args.output}/{files} and net_*.yaml for train.py --config")


def search(
    args: argparse.Namespace, base: Base, target: Target, oracle: Oracle, timing: Timing | None
) -> tuple[ScalingSettings | FrontSettings, Scaled | Front]:
    """The path or front that the options say, with their settings."""
    common = (base.space, base.choice, target, oracle)
    where = (timing, args.storage or args.output / "study.db", args.study_name)
    if args.sampler:
        front = FrontSettings(args.sampler, 200 if args.steps is None else args.steps, args.seed)
        args.output.mkdir(parents=True, exist_ok=True)
        with refusal_of_the_output(args), closing(StepProgress()) as progress:
            return front, scale_front(*common, front, *where, lambda done, count: progress(0, done, count))
    settings = ScalingSettings(args.iso, args.growth, args.beam, args.steps)
    print(outlook(base, target, settings, timing), flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    with refusal_of_the_output(args):
        return settings, step_by_step(
            lambda up_to, on_trial: scale(*common, up_to, *where, on_trial), settings, target, oracle, args.output
        )


@contextmanager
def refusal_of_the_output(args: argparse.Namespace) -> Iterator[None]:
    """Says of a study in the output folder that was begun with other options what to do; other mistakes stay."""
    try:
        yield
    except ValueError as error:
        refused = re.match(r"study '.*' in .* was begun (with (\w+) .*, not .*(?=; keep)|by another)", str(error))
        if refused is None or args.storage or args.study_name:
            raise
        begun = HASHED.get(refused[2], refused[1] if refused[2] else "by another program")
        raise ValueError(
            f"--output is {str(args.output)!r}, which holds what was begun {begun}; name another --output for another "
            "base, budget, score or device"
        ) from error


def follow(args: argparse.Namespace, base: Base, target: Target, timing: Timing | None) -> tuple[Strategy, Scaled]:
    """The net that a strategy leads to, with the strategy."""
    names = ("iso", "sampler", "growth", "beam", "steps", "storage", "study_name")
    unused = [name for name in names if getattr(args, name) != make_parser().get_default(name)]
    if unused:
        raise ValueError(f"--strategy leads to a budget without a study; leave --{unused[0].replace('_', '-')} out")
    if (args.output / "study.db").exists():
        raise ValueError(
            f"--output is {str(args.output)!r}, which holds a path of its own; name another for --strategy"
        )
    strategy = Strategy.load(args.strategy)
    here = purpose(target.name, timing and timing.record())
    if strategy.purpose != here:
        print(f"the strategy was fitted to {strategy.purpose}; it is applied to {here}")
    return strategy, apply_strategy(strategy, base.space, base.choice, target, timing)


def write_strategy(found: Scaled, target: Target, oracle: Oracle, timing: Timing | None, file: Path) -> bool:
    """Writes the strategy of a path, and says whether there is one; where not, removes that of an earlier path."""
    try:
        fit_strategy(found, target, oracle, timing).save(file)
    except ValueError as error:
        file.unlink(missing_ok=True)
        print(f"no strategy: {error}")
        return False
    return True


def main(argv: Sequence[str] | None = None) -> None:
    run_study(make_parser(), argv, run)


if __name__ == "__main__":
    main()
