"""Weight-sharing search from end to end on handwritten digits: what it finds, and what its scores are worth.

    python tools/evolution_study.py            # a quarter of an hour on 2 CPU cores; goes on where it was stopped

Trains a supernet (classification/recipes/digits_supernet.yaml), evolves a net within a budget of MACs
(tools/evolve.py), and finds another by gates that learn beside the weights (tools/mask_search.py). It trains both from
scratch, and beside them random nets of the same budget and the space's largest net. Then it trains random nets of all
sizes, and compares what they reach with what they have by the supernet's weights. Finished, it writes a JSON file and a
picture, and prints the tables of docs/supernet.md.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import evolve
import numpy as np
import torch
from digits_study import SCRIPTS, call
from evolution_study_report import draw, print_tables
from result_files import run_record, write_json
from study_command import run_study
from supernet_run import SupernetRun, open_run
from tqdm import tqdm

from asvit_plugin.models.vit_resnas_costs import network_macs, network_params
from asvit_plugin.search import Budget, network_cost
from asvit_plugin.search.budget import Affordable
from asvit_plugin.search.space import Choice

MASK_SEARCH = Path(__file__).with_name("mask_search.py")
RECIPE = SCRIPTS / "recipes" / "digits_supernet.yaml"
ALONE = ("evolved", "mask search", "largest")  # groups of one net
IN_BUDGET = 4  # random nets
EVOLUTION = ["--population", "100", "--parents", "20", "--mutations", "25", "--crossovers", "25", "--iterations", "9"]
MASKS = ["--gate-passes", "4"]


class Run(NamedTuple):
    """One net's training from scratch.

    Attributes:
        group: "evolved", "mask search", "largest", "random in budget", or "random" for nets of all sizes.
        number: Of the net in its group.
        seed: Of the training.
    """

    group: str
    number: int
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.group.replace(' ', '_')}-{self.number}-{self.seed}"


def main() -> None:
    run_study(make_parser(), None, study, positive=("budget", "epochs", "nets", "seeds", "workers"))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=3.5e6, help="MACs of an image, at most")
    parser.add_argument("--epochs", type=int, default=4, help="of each training from scratch")
    parser.add_argument("--nets", type=int, default=20, help="random nets of all sizes")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each net; twice as many where one is alone")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, with one thread each")
    parser.add_argument("--output", type=Path, default=Path("output/evolution_study"), help="folder of all runs")
    parser.add_argument("--results", type=Path, help="JSON file to write (results.json in that folder)")
    parser.add_argument("--picture", type=Path, help="PNG file to write (results.png in that folder)")
    return parser


def study(args: argparse.Namespace) -> None:
    """Does what is not done yet, and writes the results."""
    print("training the supernet ...", flush=True)
    place = ["--output", str(args.output), "--resume", "auto", "--tensorboard", "false"]
    call("train.py", ["--config", str(RECIPE), *place, "--experiment", "supernet"])
    checkpoint, evolved = args.output / "supernet" / "last.pth.tar", args.output / "evolved"
    evolve.main(["--supernet", str(checkpoint), "--budget", str(args.budget), "--output", str(evolved), *EVOLUTION])
    found = json.loads((evolved / "result.json").read_text())
    searched = search_by_masks(args)
    supernet = open_run(checkpoint)
    best = {"evolved": found["best"]["choice"], "mask search": searched["best"]["choice"]}
    nets = choose(supernet, best, args)
    runs = [Run(*net, seed) for net in nets for seed in range(args.seeds * (2 if net[0] in ALONE else 1))]
    print("training nets from scratch ...", flush=True)
    with tqdm(total=len(runs), unit="net") as bar, ThreadPoolExecutor(args.workers) as pool:
        for _ in pool.map(lambda run: train(supernet, nets[run[:2]], run, args), runs):
            bar.update()
    own = {("mask search", 0): searched["best"]["top1"]}
    history = torch.load(checkpoint, map_location="cpu", weights_only=True)["history"]
    results = {
        **run_record(),
        "budget": args.budget,
        "supernet": history,
        "evolution": {
            "measuring_seconds": found["measuring_seconds"],
            "trials": [{key: trial[key] for key in ("macs", "params", "values")} for trial in found["trials"]],
        },
        "mask_search": {name: searched[name] for name in ("options", "best", "nets", "history")},
        "search_seconds": {
            "evolved": sum(epoch["seconds"] for epoch in history) + found["measuring_seconds"],
            "mask search": searched["seconds"] + searched["judging_seconds"],
        },
        "nets": [record(supernet, nets[run[:2]], run, args, own.get(run[:2])) for run in runs],
    }
    write_json(args.results or args.output / "results.json", results)
    draw(results, args.picture or args.output / "results.png")
    print_tables(results)


def search_by_masks(args: argparse.Namespace) -> dict[str, Any]:
    """What tools/mask_search.py finds within the budget; a process of its own, as it is to be timed with one thread."""
    print("searching by masks ...", flush=True)
    place = ["--output", str(args.output), "--experiment", "masks"]
    call(str(MASK_SEARCH), ["--config", str(RECIPE), "--macs", str(args.budget), *MASKS, *place])
    return json.loads((args.output / "masks" / "result.json").read_text())


def choose(supernet: SupernetRun, best: dict[str, Choice], args: argparse.Namespace) -> dict[tuple[str, int], Choice]:
    """The nets that are trained, by group and number; those of all sizes have MACs evenly over the space's."""
    networks = supernet.supernet.networks
    cost = network_cost(networks, "macs", supernet.supernet.img_size, supernet.supernet.in_chans)
    rng = np.random.default_rng(0)
    nets = {(group, 0): choice for group, choice in best.items()} | {("largest", 0): networks.largest_choice()}
    in_budget = Affordable(networks, Budget("macs", cost, args.budget))
    nets |= {("random in budget", number): in_budget.sample(rng) for number in range(IN_BUDGET)}
    limits = np.linspace(cost(networks.smallest_choice()), cost(networks.largest_choice()), args.nets + 2)[1:-1]
    for number, limit in enumerate(limits):
        nets["random", number] = Affordable(networks, Budget("macs", cost, limit)).sample(rng)
    return nets


def train(supernet: SupernetRun, choice: Choice, run: Run, args: argparse.Namespace) -> None:
    """Trains one net from scratch on all of the training images, or finds it trained."""
    recipe = args.output / "evolved" / "best.yaml"
    net = f'{{network_def: "{supernet.supernet.networks.network(choice)}"}}'
    place = ["--output", str(args.output), "--experiment", run.name, "--resume", "auto", "--tensorboard", "false"]
    schedule = ["--epochs", str(args.epochs), "--seed", str(run.seed)]
    call("train.py", ["--config", str(recipe), "--model-kwargs", net, *schedule, *place])


def record(
    supernet: SupernetRun, choice: Choice, run: Run, args: argparse.Namespace, inherited: float | None
) -> dict[str, Any]:
    """What is kept of a net: its costs, and its top-1 by shared weights and by its own after the last epoch.

    ``inherited`` is that by the weights that it was found with; None for the supernet's.
    """
    whole = supernet.supernet
    net = whole.networks.network(choice)
    state = torch.load(args.output / run.name / "last.pth.tar", map_location="cpu", weights_only=True)
    return {
        **run._asdict(),
        "network_def": str(net),
        "macs": network_macs(net, whole.img_size, whole.in_chans, whole.num_classes),
        "params": network_params(net, whole.img_size, whole.in_chans, whole.num_classes),
        "inherited": supernet.top1(whole.extract(choice)) if inherited is None else inherited,
        "trained": state["history"][-1]["top1"],
        "seconds": sum(epoch["seconds"] for epoch in state["history"]),
    }


if __name__ == "__main__":
    main()
