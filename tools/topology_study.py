"""Trains random As-ViT topologies on 1,797 handwritten digits: a table of trained nets for tools/rank_proxies.py.

    python tools/topology_study.py --table tools/data/as_vit_digits.json
    python tools/rank_proxies.py tools/data/as_vit_digits.json --img-size 32 --repeats 5

Every topology of the paper's space has one block per stage, 16 channels in the first, and a stem of stride 2 for images
of 32 x 32 pixels. Training is short, so that accuracies differ. A study that was stopped goes on where it was.
"""

import argparse
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shlex import split
from typing import Any

import numpy as np
from digits_study import FIXED
from result_files import run_record, write_json
from study_command import run_study
from tqdm import tqdm
from trainings import last_top1
from trainings import train as train_net

from asvit_plugin.models.as_vit_genotype import AsViTGenotype
from asvit_plugin.search import load_space

WIDTH, STEM_STRIDE, IMG_SIZE = 16, 2, 32


def main() -> None:
    run_study(make_parser(), None, study, positive=("nets", "seeds", "epochs", "workers"))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=int, default=36, help="topologies, drawn with all the same probability")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each; their mean counts")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, with one thread each")
    parser.add_argument("--output", type=Path, default=Path("output/topology_study"), help="folder of the trainings")
    parser.add_argument("--table", type=Path, help="JSON file to write (table.json in that folder)")
    return parser


def study(args: argparse.Namespace) -> None:
    """Trains what is not trained yet, and writes the table."""
    nets = draw_topologies(args.nets)
    runs = [(number, seed) for number in range(args.nets) for seed in range(args.seeds)]
    with tqdm(total=len(runs), unit="run") as bar, ThreadPoolExecutor(args.workers) as pool:
        for _ in pool.map(lambda run: train(nets[run[0]], *run, args), runs):
            bar.update()
    table = {
        "source": f"{args.nets} random As-ViT topologies, {args.epochs} epochs on scikit-learn's digits: held-out "
        f"top-1 %, mean of {args.seeds} seeds",
        "input_size": IMG_SIZE,
        "num_classes": 10,
        **run_record(),
        "nets": [{"arch": arch(net), "accuracy": {"top1": accuracy(number, args)}} for number, net in enumerate(nets)],
    }
    write_json(args.table or args.output / "table.json", table)


def draw_topologies(count: int) -> list[str]:
    """Different genotypes of the paper's space, at this study's width; more begin with the same ones."""
    space, rng, found = load_space("as_vit"), np.random.default_rng(0), {}
    while len(found) < count:
        _, arguments = space.arguments(space.sample(rng))
        found[str(AsViTGenotype.parse(f"{arguments['genotype']},{WIDTH}"))] = None
    return list(found)


def arch(genotype: str) -> dict[str, Any]:
    """The net as rank_proxies.py builds it: without the position embedding, as the published search scores nets."""
    arguments = {"genotype": genotype, "stem_stride": STEM_STRIDE, "in_chans": 1, "pos_embed": False}
    return {"model": "as_vit", "arguments": arguments}


def name_of(number: int, seed: int) -> str:
    """Name of a training's folder."""
    return f"net{number:03d}-{seed}"


def train(genotype: str, number: int, seed: int, args: argparse.Namespace) -> None:
    """Trains one net, or finds it trained."""
    options = split(FIXED)  # the recipe's model is an As-ViT
    net = f'{{genotype: "{genotype}", stem_stride: {STEM_STRIDE}}}'
    schedule = ["--epochs", str(args.epochs), "--seed", str(seed)]
    train_net([*options, "--model-kwargs", net, *schedule], args.output / name_of(number, seed))


def accuracy(number: int, args: argparse.Namespace) -> float:
    """Top-1 % of a net after its last epoch, mean over the seeds."""
    found = [last_top1(args.output / name_of(number, seed)) for seed in range(args.seeds)]
    return round(statistics.fmean(found), 3)


if __name__ == "__main__":
    main()
