"""Three questions about training, answered on 1,797 handwritten digits by real runs of classification/train.py.

    python tools/digits_study.py                  # everything: below half an hour on 2 CPU cores
    python tools/digits_study.py --studies tokens --seeds 1 --output output/quick

`tokens`: all tokens throughout, progressive tokenization, and timm's progressive resizing of the images.
`castling`: a softmax teacher made linear, with and without what the linear attention is helped by on the way.
`mixing`: ViT-ResNAS with and without SwitchTokenMix.

A study that was stopped goes on where it was. Finished, it writes a JSON file and a picture, and prints the tables
of docs/digits_study.md.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from shlex import split
from typing import Any, NamedTuple

import torch
from arguments import demand_positive
from digits_report import draw, print_tables
from tqdm import tqdm

from asvit_plugin.atomic import write_atomically

SCRIPTS = Path(__file__).resolve().parents[1] / "classification"
RECIPE = f"--config {SCRIPTS / 'recipes' / 'digits_demo.yaml'} --tensorboard false"
AS_VIT = f"{RECIPE} --epochs 15"

DEPTH = 4
VIT = f"depth: {DEPTH}, num_heads: 4, embed_dim: 64, head_dim: 16, patch_size: 4, class_token: false, global_pool: avg"
FIXED = f"{RECIPE} --sched cosine --progressive-tokenization false"
PLAIN = f"{FIXED} --model scaled_vit --model-kwargs '{{{VIT}}}'"
CASTLED = f"{FIXED} --model castled --model-kwargs '{{base: scaled_vit, {VIT}}}'"
TUNE = "--epochs 10 --lr 5e-4 --pretrained-path {teacher}"
WITHOUT_BRANCH = "--mask-threshold 1"
WITHOUT_CONV = "--freeze " + " ".join(f"blocks.{i}.attn.dconv" for i in range(DEPTH))  # it starts as zeros

NET = (
    "((5, 32, 8), (1, (32, 2, 16), (32, 96), 1), (1, (32, 2, 16), (32, 96), 1), (3, 32, 64), "
    "(1, (64, 4, 16), (64, 192), 1), (1, (64, 4, 16), (64, 192), 1), (3, 64, 128), "
    "(1, (128, 8, 16), (128, 384), 1), (1, (128, 8, 16), (128, 384), 1), (2, 128, 10))"
)
RESNAS = f"{FIXED} --model vit_resnas --img-size 168 --epochs 12 --model-kwargs '{{network_def: \"{NET}\"}}'"

# Arms of each study, as options of train.py. {teacher} is the export of the arm `teacher` with the same seed.
STUDIES = {
    "tokens": {
        "all tokens": f"{AS_VIT} --progressive-tokenization false",
        "progressive tokenization": AS_VIT,
        "progressive resizing": f"{AS_VIT} --progressive-tokenization false --train-img-sizes 8 16 32 "
        "--train-size-schedule progressive",
    },
    "castling": {
        "teacher": PLAIN,
        "softmax, tuned on": f"{PLAIN} {TUNE}",
        "branch and convolution": f"{CASTLED} {TUNE} --attention-switching",
        "branch only": f"{CASTLED} {TUNE} --attention-switching {WITHOUT_CONV}",
        "convolution only": f"{CASTLED} {TUNE} --attention-switching {WITHOUT_BRANCH}",
        "neither": f"{CASTLED} {TUNE} --attention-switching {WITHOUT_BRANCH} {WITHOUT_CONV}",
        "both, and distilled": f"{CASTLED} {TUNE} --attention-switching --kd-model-name local-dir:{{teacher}} "
        "--kd-tokens-weight 1",
    },
    "mixing": {
        "no mixing": RESNAS,
        "SwitchTokenMix": f"{RESNAS} --mixup 0.8 --cutmix 1 --switch-token-mix --model-kwargs.patch_head true",
    },
}
SEEDS = {"tokens": 5, "castling": 3, "mixing": 3}


class Run(NamedTuple):
    """One training."""

    study: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.study}-{self.arm}-{self.seed}".replace(",", "").replace(" ", "_")


def main() -> None:
    args = parse_args()
    runs = [
        Run(study, arm, seed)
        for study in args.studies
        for seed in range(min(args.seeds or SEEDS[study], SEEDS[study]))
        for arm in STUDIES[study]
    ]
    first = [run for run in runs if "{teacher}" not in STUDIES[run.study][run.arm]]
    second = [run for run in runs if run not in first]
    with tqdm(total=len(runs), unit="run") as bar, ThreadPoolExecutor(args.workers) as pool:
        for stage in (first, second):
            for _ in pool.map(partial(train, output=args.output), stage):
                bar.update()
    rows = [result(run, args.output) for run in runs]
    write_results(rows, args.results or args.output / "results.json")
    draw(rows, args.picture or args.output / "results.png")
    print_tables(rows)


def parse_args() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--seeds", type=int, help=f"at most so many seeds of each study (by default all: {SEEDS})")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, with one thread each")
    parser.add_argument("--output", type=Path, default=Path("output/digits_study"), help="folder of the runs")
    parser.add_argument("--results", type=Path, help="JSON file to write (results.json in the folder of the runs)")
    parser.add_argument("--picture", type=Path, help="PNG file to write (results.png in the folder of the runs)")
    args = parser.parse_args()
    demand_positive(parser, args, "seeds", "workers")
    return args


def options_of(run: Run, output: Path) -> str:
    """What train.py is given for a run."""
    teacher = output / Run(run.study, "teacher", run.seed).name / "export"
    return STUDIES[run.study][run.arm].replace("{teacher}", str(teacher))


def train(run: Run, output: Path) -> None:
    """Trains one run, or finds it done; a castled one is also measured as it is before it learns."""
    options = split(options_of(run, output))
    place = ["--output", str(output), "--experiment", run.name]
    call("train.py", [*options, *place, "--seed", str(run.seed), "--resume", "auto"])
    untrained = output / run.name / "untrained.json"
    if "--attention-switching" in options and not untrained.exists():
        start = options[: options.index("--attention-switching")]
        call("validate.py", [*validation_options(start), "--results-file", str(untrained)])


def validation_options(options: list[str]) -> list[str]:
    """Those of train.py's options that validate.py has too: model, data and weights, each with its values."""
    kept = {"--model", "--model-kwargs", "--pretrained-path"}
    data = split("--in-chans 1 --img-size 32 --crop-pct 1 --interpolation bilinear --workers 0")
    return data + [word for flag, value in pairwise(options) for word in (flag, value) if flag in kept]


def call(script: str, arguments: Iterable[str]) -> None:
    """Runs a script with one thread; its own message ends the study where it fails."""
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(arguments)}\n{done.stderr.strip()}")


def result(run: Run, output: Path) -> dict[str, Any]:
    """What is kept of a run: its history without what can be derived, and what it saved."""
    folder = output / run.name
    state = torch.load(folder / "last.pth.tar", map_location="cpu", weights_only=True)
    columns = ("top1", "train_loss", "seconds", "blend", "threshold", "masks")
    row = {"study": run.study, "arm": run.arm, "seed": run.seed, "saved_macs": state.get("saved_macs")}
    row |= {name: [epoch[name] for epoch in state["history"]] for name in columns}
    untrained = folder / "untrained.json"
    return row | {"untrained": json.loads(untrained.read_text())["top1"] if untrained.exists() else None}


def write_results(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes the results with the machine and versions they were made with."""
    machine = {"torch": torch.__version__, "cores": os.cpu_count(), "command": " ".join(["python", *sys.argv])}
    text = json.dumps(machine | {"runs": rows}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    main()
