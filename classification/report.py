"""What a run shows of itself: CSV, TensorBoard, curves and the closing table, all made from its history.

The history is a list with one dictionary per finished epoch. It lives in the checkpoint, so nothing here can disagree
with the weights: a resumed run writes the same files again from it.
"""

import csv
import io
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from asvit_plugin.atomic import write_atomically

COLUMNS = ("epoch", "stride", "lr", "train_loss", "eval_loss", "top1", "top5", "images_per_second", "seconds")
# Of runs with attention switching, and of those of a supernet
EXTRA_COLUMNS = ("blend", "threshold", "smallest_top1")


class Reporter:
    """Writes `summary.csv` and TensorBoard events after each epoch.

    Args:
        folder: The experiment's folder.
        history: Epochs that a resumed run already has.
        tensorboard: Whether to write TensorBoard events.

    Raises:
        ValueError: TensorBoard is asked for and not installed, or matplotlib is not.
    """

    def __init__(self, folder: Path, history: list[dict[str, Any]], tensorboard: bool) -> None:
        if find_spec("matplotlib") is None:  # said now: it is needed at the very end
            raise ValueError("the curves need matplotlib: pip install matplotlib")
        self.folder = folder
        self.events = _open_events(folder, purge_step=len(history)) if tensorboard else None
        write_csv(history, folder / "summary.csv")

    def add(self, history: list[dict[str, Any]]) -> None:
        """Reports the epoch that was added to the history last."""
        write_csv(history, self.folder / "summary.csv")
        if self.events is not None:
            row = history[-1]
            scalars = {name: row[name] for name in (*COLUMNS[1:], *EXTRA_COLUMNS) if row.get(name) is not None}
            for block, (density, share) in (row.get("masks") or {}).items():
                scalars |= {f"mask_density/{block}": density, f"mask_share/{block}": share}
            for name, value in scalars.items():
                self.events.add_scalar(name, value, row["epoch"])
            self.events.flush()

    def close(self) -> None:
        """Finishes the TensorBoard file."""
        if self.events is not None:
            self.events.close()


def write_csv(history: list[dict[str, Any]], path: Path) -> None:
    """Writes one row per finished epoch; the file is replaced as a whole, so a kill cannot tear or repeat rows."""
    text = io.StringIO()
    extra = [name for name in EXTRA_COLUMNS if any(row.get(name) is not None for row in history)]
    columns = (*COLUMNS, *extra)
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def best_epoch(history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The epoch with the highest top-1 (the first of equals) among those with the model in its last state, if any."""
    return max((row for row in history if row["final_state"]), key=lambda row: row["top1"], default=None)


def draw_curves(history: list[dict[str, Any]], img_size: int, path: Path) -> None:
    """Draws loss, accuracy, and the token grid (or the learning rate) over the epochs.

    Args:
        history: Finished epochs, at least one.
        img_size: Side of the input in pixels.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure  # this class needs no display

    figure = Figure(figsize=(12, 3.5), layout="constrained")
    loss, accuracy, third = figure.subplots(1, 3)
    epochs = [row["epoch"] + 1 for row in history]
    loss.plot(epochs, [row["train_loss"] for row in history], label="training")
    loss.plot(epochs, [row["eval_loss"] for row in history], label="held-out")
    loss.legend()
    accuracy.plot(epochs, [row["top1"] for row in history], label="top-1")
    accuracy.plot(epochs, [row["top5"] for row in history], label="top-5")
    accuracy.legend(loc="lower right")
    if history[-1]["stride"] is None:
        third.plot(epochs, [row["lr"] for row in history])
    else:
        sides = [math.ceil(img_size / row["stride"]) for row in history]
        third.step(epochs, sides, where="mid")
        third.set_yscale("log", base=2)
        third.set_yticks(sorted(set(sides)), [str(side) for side in sorted(set(sides))])
    titles = ("loss", "accuracy (%)", "learning rate" if history[-1]["stride"] is None else "tokens per side")
    for axes, title in zip((loss, accuracy, third), titles):
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))


def epoch_line(row: dict[str, Any]) -> str:
    """A finished epoch on one line."""
    stride = "" if row["stride"] is None else f"stride {row['stride']:2d}   "
    smallest = "" if row.get("smallest_top1") is None else f"(smallest net {row['smallest_top1']:.2f} %)   "
    return (
        f"epoch {row['epoch'] + 1:3d}   {stride}loss {row['train_loss']:.4f}   held-out {row['eval_loss']:.4f}   "
        f"top-1 {row['top1']:.2f} %   {smallest}{row['images_per_second']:.0f} images/s"
    )


def closing_table(history: list[dict[str, Any]], saved_fraction: float | None) -> str:
    """The run in a few lines.

    Args:
        history: Finished epochs, at least one.
        saved_fraction: Part of the training MACs that the schedule saved; None without a schedule.
    """
    best = best_epoch(history) or history[-1]
    seconds = sum(row["seconds"] for row in history)
    epoch_seconds = sum(1 / row["images_per_second"] for row in history) / len(history)
    rows = [
        ("top-1, best epoch", f"{best['top1']:.2f} % (epoch {best['epoch'] + 1} of {len(history)})"),
        ("top-1, last epoch", f"{history[-1]['top1']:.2f} %"),
        ("training speed", f"{1 / epoch_seconds:.1f} images/s"),
        ("training MACs saved by the schedule", "no schedule" if saved_fraction is None else f"{saved_fraction:.1%}"),
        ("wall time, all starts together", f"{seconds:.1f} s"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _open_events(folder: Path, purge_step: int) -> Any:
    """TensorBoard writer that hides events of epochs that a killed run reported but did not save."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError(
            "--tensorboard is on; install it with pip install tensorboard, or give --tensorboard false"
        ) from None
    return SummaryWriter(str(folder), purge_step=purge_step)
