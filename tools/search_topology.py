"""The best net of a space, without training: proxies score nets, REINFORCE or one of Optuna's samplers picks them.

    python tools/search_topology.py                                        # As-ViT's seed search, the paper's settings
    python tools/search_topology.py --steps 60 --img-size 64 --repeats 2   # a quick one
    python tools/search_topology.py --space plain_vit --sampler tpe

The same command again goes on where it was stopped or killed; run several times at once it shares the work, on several
machines with --storage. docs/search.md tells more, and how to write a space.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from result_files import without_password
from study_command import run_study
from topology_report import print_answers, write_report
from tqdm import tqdm

from asvit_plugin.search import ReinforceSettings, TopologySettings, load_space, search_topology
from asvit_plugin.search.topology import SAMPLER_NAMES, best_by_rank_sum

PAPER = TopologySettings()


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="as_vit", help="as_vit, plain_vit or a YAML file")
    parser.add_argument("--output", type=Path, help="folder of the study and its results (output/search_SPACE)")
    parser.add_argument("--storage", help="file or Optuna storage URL of the study (study.db in the output folder)")
    parser.add_argument("--study-name", help="its name there (the space's)")
    parser.add_argument("--steps", type=int, default=PAPER.steps, help="nets to measure, of all processes together")
    parser.add_argument("--sampler", default=PAPER.sampler, choices=SAMPLER_NAMES)
    parser.add_argument("--proxies", nargs="+", default=list(PAPER.proxies), help="what nets are scored by")
    parser.add_argument("--seed", type=int, default=PAPER.seed)
    parser.add_argument("--repeats", type=int, default=PAPER.repeats, help="draws of weights per net and proxy")
    parser.add_argument("--img-size", type=int, help="image side in pixels, where the space does not decide it")
    parser.add_argument("--device", default=PAPER.device, help="cpu, cuda, ...")
    parser.add_argument("--lr", type=float, default=PAPER.reinforce.lr, help="REINFORCE: learning rate of Adam")
    parser.add_argument("--momentum", type=float, default=PAPER.reinforce.momentum, help="REINFORCE: of the baseline")
    parser.add_argument("--buffer", type=int, default=PAPER.reinforce.buffer, help="REINFORCE: values of the range")
    return parser


def settings_of(args: argparse.Namespace) -> TopologySettings:
    return TopologySettings(
        steps=args.steps,
        sampler=args.sampler,
        proxies=tuple(args.proxies),
        seed=args.seed,
        repeats=args.repeats,
        img_size=args.img_size,
        device=args.device,
        reinforce=ReinforceSettings(lr=args.lr, momentum=args.momentum, buffer=args.buffer),
    )


def progress(settings: TopologySettings, bars: list[tqdm]) -> Callable[[list[dict[str, Any]]], None]:
    """Shows how far the study is, with the best net so far; the bar starts where the study is."""

    def show(trials: list[dict[str, Any]]) -> None:
        if not bars:
            bars.append(tqdm(total=max(settings.steps, len(trials)), initial=len(trials), unit="net"))
        bars[0].update(len(trials) - bars[0].n)
        if trials:
            best = best_by_rank_sum(trials, settings.maximize)
            values = " ".join(f"{name} {value:.3g}" for name, value in best["values"].items())
            bars[0].set_postfix_str(f"best #{best['number']}: {values}", refresh=False)

    return show


def search(args: argparse.Namespace) -> None:
    space, settings = load_space(args.space), settings_of(args)
    output = args.output or Path("output") / f"search_{space.name}"
    output.mkdir(parents=True, exist_ok=True)
    storage = args.storage or output / "study.db"
    bars: list[tqdm] = []
    try:
        found = search_topology(space, settings, storage, args.study_name, progress(settings, bars))
    finally:
        for bar in bars:
            bar.close()
    with FileLock(output / ".report.lock"):  # processes that worked on it together end together
        write_report(found, space, settings, output)
    print_answers(found)
    print(f"written: {output}/result.json, result.png, and best.yaml for train.py --config")
    print(f"the study: {without_password(str(storage))}")


def main(argv: Sequence[str] | None = None) -> None:
    run_study(make_parser(), argv, search)


if __name__ == "__main__":
    main()
