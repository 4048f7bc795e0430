"""Trains tiny video ViTs on digits that move (video/moving_digits.py), from scratch and from an image model's weights.

    python video/train_moving_digits.py                                    # all arms, one seed
    python video/train_moving_digits.py --arms "from scratch" --seeds 1 --epochs 10 --output output/quick

`from scratch`: a ScaledVideoViT with random weights.
`inflated, average`, `inflated, central`: it begins as an image model that was trained on still digits for a moment.
`one frame`: as from scratch, on the first frame of every clip alone; what can be had without seeing motion.

One that was stopped goes on from its last epoch, and ends with the same weights. Finished, it writes a JSON file and a
picture, and prints the table of docs/video.md.
"""

import argparse
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from moving_digits import CLASSES, FRAMES, SIZE, held_out_clips, training_clips
from moving_digits_report import draw, table
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from tqdm import tqdm

from asvit_plugin.atomic import write_atomically
from asvit_plugin.costs import macs, params
from asvit_plugin.models.scaled_video_vit import ScaledVideoViT
from asvit_plugin.models.video_inflation import inflate

ARMS = ("from scratch", "inflated, average", "inflated, central", "one frame")
MODEL = {
    "depth": 4,
    "num_heads": 4,
    "head_dim": 16,
    "img_size": SIZE,
    "patch_size": 8,
    "in_chans": 1,
    "class_token": False,
    "global_pool": "avg",
}
TUBELET_SIZE = 2
MEAN, STD = 0.08, 0.21  # of the pixels of all frames
WEIGHT_DECAY = 0.05
WARMUP = 0.1  # share of the epochs

Data = tuple[torch.Tensor, torch.Tensor]
State = dict[str, Any]


def main(argv: list[str] | None = None) -> None:
    """Trains what is not trained yet, and reports; mistakes end the program with one sentence and exit status 2."""
    parser = make_parser()
    args = parser.parse_args(argv)
    for field in ("seeds", "epochs", "image_epochs", "batch_size", "threads"):
        if getattr(args, field) < 1:
            parser.error(f"argument --{field.replace('_', '-')} is {getattr(args, field)}; it must be at least 1")
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    try:
        rows = [run(arm, seed, args) for seed in range(args.seeds) for arm in args.arms]
    except ValueError as error:
        parser.error(str(error))
    write_results(rows, args)
    draw(rows, args.picture or args.output / "results.png")
    print(table(rows))


def make_parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0 up")
    parser.add_argument("--epochs", type=int, default=20, help="over clips; each shows every training digit once")
    parser.add_argument("--image-epochs", type=int, default=30, help="over still images, before inflation")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("output/moving_digits"), help="folder of checkpoints")
    parser.add_argument("--results", type=Path, help="JSON file to write (results.json in that folder)")
    parser.add_argument("--picture", type=Path, help="PNG file to write (results.png in that folder)")
    return parser


def run(arm: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train one arm with one seed, or find it done; returns its row of the results."""
    torch.manual_seed(seed)
    image_seconds = 0.0
    if arm.startswith("inflated"):
        image_model = timm.create_model("scaled_vit", num_classes=10, **MODEL)
        state = fit(image_model, "still", seed, args.image_epochs, args)
        image_seconds = sum(epoch["seconds"] for epoch in state["history"])
        model = inflate(image_model, FRAMES, TUBELET_SIZE, mode=arm.partition(", ")[2])
        model.reset_classifier(CLASSES)
    else:
        model = ScaledVideoViT(FRAMES, TUBELET_SIZE, num_classes=CLASSES, **MODEL)
    history = fit(model, arm, seed, args.epochs, args)["history"]
    clips, _ = prepared(arm, held_out_clips())
    first_frames, labels = as_one_frame(held_out_clips())
    return {
        "arm": arm,
        "seed": seed,
        "first_frame_only": accuracies(predict(model, first_frames), labels)["top1"],
        "image_seconds": image_seconds,
        "params": params(model),
        "macs": macs(model, torch.empty(1, *clips.shape[1:], device="meta")),
        **{name: [epoch[name] for epoch in history] for name in history[0]},
    }


def as_images(data: Data) -> Data:
    """The first frames of clips, (N, 1, H, W), and which digits they are."""
    return data[0][:, :, 0], data[1] // 4


def as_one_frame(data: Data) -> Data:
    """Clips of one frame, (N, 1, 1, H, W), and their classes."""
    return data[0][:, :, :1], data[1]


def prepared(name: str, data: Data) -> Data:
    """What a training of this name makes of clips."""
    return {"still": as_images, "one frame": as_one_frame}.get(name, lambda clips: clips)(data)


def fit(model: nn.Module, name: str, seed: int, epochs: int, args: argparse.Namespace) -> State:
    """Train a model from its last checkpoint on, with one after every epoch; it ends with the last one's weights."""
    path = args.output / f"{name.replace(', ', '_').replace(' ', '_')}-{seed}.pth"
    settings = {"name": name, "epochs": epochs, "batch_size": args.batch_size, "lr": args.lr, "model": MODEL}
    settings |= {"image_epochs": args.image_epochs} if name.startswith("inflated") else {}
    optimizer = create_optimizer_v2(model, opt="adamw", lr=args.lr, weight_decay=WEIGHT_DECAY)
    scheduler, _ = create_scheduler_v2(optimizer, "cosine", epochs, warmup_epochs=round(WARMUP * epochs))
    state = read_checkpoint(path, settings) or {"settings": settings, "history": []}
    if state["history"]:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    for epoch in tqdm(range(len(state["history"]), epochs), desc=f"{name}, seed {seed}", disable=None):
        scheduler.step(epoch)
        state["history"].append(run_epoch(model, optimizer, name, training_clips(seed, epoch), args.batch_size))
        state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        write_atomically(path, partial(torch.save, state))
    return state


def run_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, name: str, clips: Data, batch_size: int
) -> dict[str, float]:
    """Train for one epoch, and measure on held-out clips; seconds are processor time of the training alone."""
    start = time.process_time()
    loss = train_epoch(model, optimizer, prepared(name, clips), batch_size)
    seconds = time.process_time() - start
    inputs, labels = prepared(name, held_out_clips())
    return {"loss": loss, "seconds": seconds, **accuracies(predict(model, inputs), labels, name == "still")}


def read_checkpoint(path: Path, settings: dict[str, Any]) -> State | None:
    """The state of a training that was stopped or is finished; None if there is none.

    Raises:
        ValueError: if it was one with other settings.
    """
    if not path.exists():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    theirs = state["settings"]
    odd = [
        f"{name} {theirs.get(name)} instead of {ours}" for name, ours in settings.items() if theirs.get(name) != ours
    ]
    if odd:
        raise ValueError(f"{path} is of a training with {', '.join(odd)}; remove it or give another --output")
    return state


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, data: Data, batch_size: int) -> float:
    """One pass over clips or images; returns the mean loss."""
    model.train()
    losses = []
    for inputs, labels in zip(*(each.split(batch_size) for each in data)):
        loss = nn.functional.cross_entropy(model((inputs - MEAN) / STD), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def predict(model: nn.Module, inputs: torch.Tensor, batch_size: int = 240) -> torch.Tensor:
    """Likeliest class of each clip or image."""
    model.eval()
    return torch.cat([model((part - MEAN) / STD).argmax(1) for part in inputs.split(batch_size)])


def accuracies(predicted: torch.Tensor, labels: torch.Tensor, digits_alone: bool = False) -> dict[str, float]:
    """Shares in percent of right classes and, unless these are digits alone, of right digits and right directions."""
    right = {"top1": predicted == labels}
    if not digits_alone:
        right |= {"digit": predicted // 4 == labels // 4, "direction": predicted % 4 == labels % 4}
    return {name: 100 * hits.double().mean().item() for name, hits in right.items()}


def write_results(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Write the rows with what is needed to make them again."""
    record = {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "cores": os.cpu_count(),
        "threads": args.threads,
        "command": " ".join(["python", *sys.argv]),
        "model": {**MODEL, "num_frames": FRAMES, "tubelet_size": TUBELET_SIZE},
        "runs": rows,
    }
    path = args.results or args.output / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write((json.dumps(record, indent=1) + "\n").encode()))


if __name__ == "__main__":
    main()
