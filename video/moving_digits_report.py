"""Table and picture of the trainings of video/train_moving_digits.py, made from its JSON file alone.

python video/moving_digits_report.py docs/results/moving_digits.json --picture docs/images/moving_digits.png
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from moving_digits import DIRECTIONS, held_out_clips

from asvit_plugin.atomic import write_atomically

Row = dict[str, Any]
HEAD = ("", "both right", "digit", "direction", "both, from the first frame", "parameters", "MMACs", "CPU seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--picture", type=Path, help="PNG file to write")
    args = parser.parse_args()
    try:
        rows = json.loads(args.results.read_text())["runs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"argument results is {str(args.results)!r}: no file of train_moving_digits.py ({error})")
    if args.picture:
        draw(rows, args.picture)
    print(table(rows))


def table(rows: list[Row]) -> str:
    """Markdown table: means over the seeds of the last epoch, accuracies in percent with standard deviations."""
    lines = [HEAD, ["---"] * len(HEAD)]
    for arm, runs in arms_of(rows):
        seconds = statistics.mean(run["image_seconds"] + sum(run["seconds"]) for run in runs)
        lines.append(
            [
                arm,
                *(_spread([run[name][-1] for run in runs]) for name in ("top1", "digit", "direction")),
                _spread([run["first_frame_only"] for run in runs]),
                f"{runs[0]['params']:,}",
                f"{runs[0]['macs'] / 1e6:.1f}",
                f"{seconds:.0f}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def arms_of(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """Arms in their order, each with its runs."""
    return [(arm, [row for row in rows if row["arm"] == arm]) for arm in dict.fromkeys(row["arm"] for row in rows)]


def draw(rows: list[Row], path: Path) -> None:
    """Draw one held-out clip of each direction, and below them held-out accuracy over the epochs.

    Args:
        rows: Results of the trainings.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure  # this class needs no display

    figure = Figure(figsize=(9, 7.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    _draw_clips(top)
    axes = bottom.subplots()
    for arm, runs in arms_of(rows):
        curve = [statistics.mean(epoch) for epoch in zip(*(run["top1"] for run in runs))]
        axes.plot(range(1, len(curve) + 1), curve, label=arm)
    axes.set(xlabel="epoch", ylabel="held-out top-1 (%)", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))


def _draw_clips(figure: Any) -> None:
    clips, labels = held_out_clips()
    frames = clips.shape[2]
    grid = figure.subplots(len(DIRECTIONS), frames)
    for direction, line in enumerate(grid):
        index = 5 * len(DIRECTIONS) * direction + direction  # four different digits, one per direction
        digit = int(labels[index]) // len(DIRECTIONS)
        for axes, frame in zip(line, clips[index, 0].numpy()):
            axes.imshow(frame, cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(f"{digit}, {DIRECTIONS[direction]}")


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
