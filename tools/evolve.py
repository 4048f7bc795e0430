"""The best net of a trained supernet within a budget: nets are judged by the supernet's weights, on held-out images.

    python tools/evolve.py --supernet output/vit_resnas_supernet/last.pth.tar --budget 1.79e9   # the paper's settings
    python tools/evolve.py --supernet ... --budget 4e6 --population 100 --parents 20 --mutations 25 --crossovers 25
    python tools/evolve.py --supernet ... --sampler nsga2 --objectives top1 latency --steps 500

The same command again goes on where it was stopped or killed; run several times at once it shares the work, on several
machines with --storage. docs/supernet.md tells more.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from evolution_report import print_answer, write_report
from filelock import FileLock
from study_command import run_study
from supernet_run import SupernetRun, open_run
from tqdm import tqdm

from asvit_plugin.search import Budget, EvolutionSettings, EvolvingSettings, evolve, network_cost
from asvit_plugin.search.evolving import OBJECTIVES, SAMPLER_NAMES, best_of
from asvit_plugin.search.measuring import measure_latency
from asvit_plugin.search.space import Choice

PAPER = EvolutionSettings()
HELP = {
    "population": "evolution: random nets to begin with",
    "parents": "evolution: best nets so far that a generation descends from",
    "mutations": "evolution: mutants in a generation",
    "crossovers": "evolution: crossovers in a generation",
    "mutate_prob": "evolution: probability of a mutant's decision to be drawn anew",
    "iterations": "evolution: generations, the random one included",
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--supernet", type=Path, required=True, help="checkpoint of train.py --supernet")
    parser.add_argument("--budget", type=float, help="MACs of an image (or parameters, see --budget-of), at most")
    parser.add_argument("--low", type=float, help="at least (0.975 of the budget)")
    parser.add_argument("--budget-of", default="macs", choices=["macs", "params"])
    parser.add_argument("--sampler", default="evolution", choices=SAMPLER_NAMES)
    parser.add_argument("--objectives", nargs="+", default=["top1"], help=f"of {', '.join(OBJECTIVES)}")
    parser.add_argument("--steps", type=int, help="nets to measure, of all processes together (evolution's)")
    for each in fields(EvolutionSettings):
        flag, default = f"--{each.name.replace('_', '-')}", getattr(PAPER, each.name)
        parser.add_argument(flag, type=type(default), default=default, help=f"{HELP[each.name]} ({default})")
    parser.add_argument("--seed", type=int, default=0, help="of all draws")
    parser.add_argument("--refit-steps", type=int, default=0, help="train norms and classifier of each net before")
    parser.add_argument("--refit-lr", type=float, default=1e-3, help="by AdamW with this learning rate")
    parser.add_argument("--output", type=Path, help="folder of the study and its results (output/evolved_RUN)")
    parser.add_argument("--storage", help="file or Optuna storage URL of the study (study.db in the output folder)")
    parser.add_argument("--study-name", help="its name there (the space's, with -evolution)")
    data = parser.add_argument_group("options of the supernet's run, where they are others here")
    data.add_argument("--space", dest="supernet_space", help="the space's file")
    data.add_argument("--data-dir", help="folder of the images")
    data.add_argument("--holdout", nargs="+", help="per-class NUMBER, or a FILE: images to judge by")
    data.add_argument("--validation-batch-size", type=int)
    data.add_argument("--workers", type=int, help="loader processes")
    data.add_argument("--device", help="cpu, cuda, ...")
    return parser


def settings_of(args: argparse.Namespace, run: SupernetRun) -> EvolvingSettings:
    """Settings of the search, for the images and classes of the run."""
    supernet = run.supernet
    counted = {"img_size": supernet.img_size, "in_chans": supernet.in_chans, "num_classes": supernet.num_classes}
    cost = network_cost(supernet.networks, args.budget_of, **counted)
    refit = {"refit_steps": args.refit_steps, "refit_lr": args.refit_lr} if args.refit_steps else {}
    return EvolvingSettings(
        budget=None if args.budget is None else Budget(args.budget_of, cost, args.budget, args.low),
        objectives=tuple(args.objectives),
        sampler=args.sampler,
        steps=args.steps,
        seed=args.seed,
        **counted,
        evolution=EvolutionSettings(**{each.name: getattr(args, each.name) for each in fields(EvolutionSettings)}),
        context={**run.record, **refit},
    )


def make_measure(args: argparse.Namespace, run: SupernetRun) -> Callable[[Choice], dict[str, float]]:
    """Judges a net as the arguments say."""

    def measure(choice: Choice) -> dict[str, float]:
        model = run.supernet.extract(choice)
        if args.refit_steps:
            run.refit(model, args.refit_steps, args.refit_lr)
        found = {"top1": run.top1(model)}
        if "latency" in args.objectives:
            found["latency"] = measure_latency(model, run.shape, str(run.process.device))
        return found

    return measure


def progress(total: int, bars: list[tqdm]) -> Callable[[list[dict[str, Any]]], None]:
    """Shows how far the study is, with the best net so far; the bar starts where the study is."""

    def show(trials: list[dict[str, Any]]) -> None:
        if not bars:
            bars.append(tqdm(total=max(total, len(trials)), initial=len(trials), unit="net"))
        bars[0].update(len(trials) - bars[0].n)
        if trials:
            best = best_of(trials)
            bars[0].set_postfix_str(f"best #{best['number']}: top1 {best['values']['top1']:.2f}", refresh=False)

    return show


def search(args: argparse.Namespace) -> None:
    for field in ("refit_steps", "refit_lr"):
        if getattr(args, field) < 0:
            raise ValueError(f"--{field.replace('_', '-')} is {getattr(args, field)}; it must be at least 0")
    names = ("data_dir", "holdout", "validation_batch_size", "workers", "device")
    run = open_run(args.supernet, supernet=args.supernet_space, **{name: getattr(args, name) for name in names})
    settings = settings_of(args, run)
    output = args.output or Path("output") / f"evolved_{args.supernet.absolute().parent.name}"
    output.mkdir(parents=True, exist_ok=True)
    storage = args.storage or output / "study.db"
    bars: list[tqdm] = []
    try:
        found = evolve(
            run.supernet.networks,
            settings,
            make_measure(args, run),
            storage,
            args.study_name,
            progress(settings.trials, bars),
        )
    finally:
        for bar in bars:
            bar.close()
    with FileLock(output / ".report.lock"):  # processes that worked on it together end together
        write_report(found, run, settings, output)
    print_answer(found, output)


def main(argv: Sequence[str] | None = None) -> None:
    run_study(make_parser(), argv, search)


if __name__ == "__main__":
    main()
