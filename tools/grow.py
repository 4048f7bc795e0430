"""A family of nets, small to large, grown from a seed without training: As-ViT's auto-scaling, or any space's growth.

    python tools/grow.py                                              # As-ViT's published seed to 80 - 110 M parameters
    python tools/grow.py --seed-net "8,2,3|4,1,2|4,1,4|4,1,6|32" --budget macs --low 5e9 --high 7e9
    python tools/grow.py --seed-net output/search_as_vit/result.json --img-size 64 --repeats 2
    python tools/grow.py --space plain_vit --seed-net num_heads=3 mlp_ratio=4 patch_size=16 img_size=224 \\
        --low 20e6 --high 30e6

The same command again goes on where it was stopped or killed; run several times at once it shares the candidates of a
step. docs/growing.md tells more.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arguments import key_value
from filelock import FileLock
from growth_report import print_family, write_report
from step_progress import StepProgress
from study_command import run_study

from asvit_plugin.models.as_vit_genotype import AsViTGenotype
from asvit_plugin.search import GrowthSettings, Space, grow, load_space
from asvit_plugin.search.growing import BUDGETS

PAPER = GrowthSettings()
PUBLISHED_SEED = "8,2,3|4,1,2|4,1,4|4,1,6|32"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="as_vit", help="as_vit, plain_vit or a YAML file with growth")
    parser.add_argument(
        "--seed-net",
        nargs="+",
        default=[PUBLISHED_SEED],
        metavar="SEED",
        help="a genotype, DECISION=VALUE ..., or the result.json of a search (As-ViT's published seed)",
    )
    parser.add_argument("--output", type=Path, help="folder of the study and the family (output/grow_SPACE)")
    parser.add_argument("--storage", help="file or Optuna storage URL of the study (study.db in the output folder)")
    parser.add_argument("--study-name", help="its name there (the space's, with -growth)")
    parser.add_argument(
        "--budget", default=PAPER.budget, choices=list(BUDGETS), help="what is limited; latency in seconds"
    )
    parser.add_argument("--low", type=float, default=PAPER.low, help="growing ends with the first net of this much")
    parser.add_argument("--high", type=float, default=PAPER.high, help="nets of more are left out")
    parser.add_argument("--proxies", nargs="+", default=list(PAPER.proxies), help="what nets are scored by")
    parser.add_argument("--seed", type=int, default=PAPER.seed, help="of the random numbers")
    parser.add_argument("--repeats", type=int, default=PAPER.repeats, help="draws of weights per net and proxy")
    parser.add_argument("--img-size", type=int, help="image side in pixels, where the seed does not decide it")
    parser.add_argument("--device", default=PAPER.device, help="cpu, cuda, ...")
    return parser


def read_seed(texts: Sequence[str], space: Space) -> dict[str, Any]:
    """The seed's decisions: of a search's result, a genotype, or one by one."""
    if len(texts) == 1 and texts[0].endswith(".json"):
        return _read_result(Path(texts[0]))
    if all("=" in text for text in texts):
        return dict(map(_decision, texts))
    if space.model != "as_vit" or len(texts) > 1:
        raise ValueError(f"--seed-net is {' '.join(texts)!r}; for space {space.name!r} it must be DECISION=VALUE ...")
    genotype = AsViTGenotype.parse(texts[0])
    columns = (("K", genotype.kernel_sizes), ("S", genotype.splits), ("E", genotype.mlp_ratios))
    seed = {f"{letter}{stage}": value for letter, values in columns for stage, value in enumerate(values, start=1)}
    return {**seed, "H": genotype.num_heads}


def _read_result(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())["best"]["choice"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"--seed-net is {str(path)!r}; it must be the result.json of search_topology.py") from error


def _decision(text: str) -> tuple[str, Any]:
    try:
        return key_value(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"--seed-net: {error}") from error


def run(args: argparse.Namespace) -> None:
    space = load_space(args.space)
    names = ("budget", "low", "high", "seed", "repeats", "img_size", "device")
    settings = GrowthSettings(proxies=tuple(args.proxies), **{name: getattr(args, name) for name in names})
    seed = read_seed(args.seed_net, space)
    output = args.output or Path("output") / f"grow_{space.name}"
    output.mkdir(parents=True, exist_ok=True)
    progress = StepProgress()
    try:
        family = grow(space, seed, settings, args.storage or output / "study.db", args.study_name, progress)
    finally:
        progress.close()
    with FileLock(output / ".report.lock"):  # processes that worked on it together end together
        write_report(family, seed, space, settings, output)
    print_family(family, settings)
    print(f"written: {output}/family.json, family.png and net_1.yaml to net_{len(family)}.yaml for train.py --config")


def main(argv: Sequence[str] | None = None) -> None:
    run_study(make_parser(), argv, run)


if __name__ == "__main__":
    main()
