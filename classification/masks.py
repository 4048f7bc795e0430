"""What the softmax branch of castled blocks still does during a run with attention switching, and a picture of it."""

from pathlib import Path
from typing import Any

import torch
from engine import Training

from asvit_plugin import mask_statistics
from asvit_plugin.atomic import write_atomically

IMAGES = 8  # enough for a share of thousands of weights; all N x N weights of a block are in memory at once


def measure_masks(training: Training) -> dict[str, list[float]] | None:
    """Density of the mask and share of the branch of every castled block, on the first held-out images."""
    if training.switching is None:
        return None
    model = (training.model if training.ema is None else training.ema.module).eval()
    images = next(iter(training.eval_loader))[0][:IMAGES]
    with training.autocast():
        found = mask_statistics(model, images.to(training.process.device))
    return {block: [each.density, each.share] for block, each in found.items()}


def draw_masks(history: list[dict[str, Any]], path: Path) -> None:
    """Draws the state of the switch and every block's mask density and share over the epochs.

    Args:
        history: Finished epochs of a run with attention switching.
        path: PNG file to write.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # this class needs no display

    figure = Figure(figsize=(12, 3.5), layout="constrained")
    state, *panels = figure.subplots(1, 3)
    epochs = [row["epoch"] + 1 for row in history]
    state.plot(epochs, [row["blend"] for row in history], label="blend")
    state.plot(epochs, [row["threshold"] for row in history], label="threshold")
    state.legend()
    blocks = list(history[-1]["masks"])
    colors = colormaps["viridis"](torch.linspace(0, 0.9, len(blocks)).tolist())
    for panel, index in zip(panels, (0, 1)):
        for block, color in zip(blocks, colors):
            panel.plot(epochs, [row["masks"][block][index] for row in history], color=color, label=block)
    panels[1].legend(fontsize=6, ncols=2)
    titles = ("state at the end of the epoch", "mask density", "share of the softmax branch")
    for axes, title in zip((state, *panels), titles):
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))
