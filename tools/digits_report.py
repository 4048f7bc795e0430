"""Tables and a picture of the runs of tools/digits_study.py, made from its JSON file alone.

python tools/digits_report.py docs/results/digits_study.json --picture docs/images/digits_study.png
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from asvit_plugin.atomic import write_atomically

Row = dict[str, Any]
STEPS = ("castled, untrained", "softmax faded out", "branch about to go", "linear, at the end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--picture", type=Path, help="PNG file to write")
    args = parser.parse_args()
    try:
        rows = json.loads(args.results.read_text())["runs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"argument results is {str(args.results)!r}: no file of digits_study.py ({error})")
    if args.picture:
        draw(rows, args.picture)
    print_tables(rows)


def print_tables(rows: list[Row]) -> None:
    """Prints the Markdown table of every study that there are runs of."""
    tables = [table(study, rows) for study in ("tokens", "castling", "mixing") if arms_of(study, rows)]
    print("\n\n".join([*tables, mask_table(rows)] if arms_of("castling", rows) else tables))


def table(study: str, rows: list[Row]) -> str:
    """Markdown table of one study: means over seeds, with standard deviations of accuracies."""
    if study == "castling":
        head = ["", *STEPS]
        body = [[arm, *(_spread(steps) for steps in zip(*map(steps_of, own)))] for arm, own in arms_of(study, rows)]
    else:
        head = ["", "held-out top-1, last epoch"]
        body = [[arm, _spread([run["top1"][-1] for run in own])] for arm, own in arms_of(study, rows)]
    if study == "tokens":
        head += ["training MACs saved", "training time"]
        for line, (_, own) in zip(body, arms_of(study, rows)):
            line += [_saved(own), _time(own)]
    return _markdown([head, *body])


def mask_table(rows: list[Row], arm: str = "branch and convolution") -> str:
    """Markdown table of the mask density of every block after every epoch, mean over the seeds of a castling arm."""
    runs = [row["masks"] for row in rows if row["study"] == "castling" and row["arm"] == arm]
    body = [
        [block, *(f"{statistics.mean(epoch[block][0] for epoch in epochs):.1%}" for epochs in zip(*runs))]
        for block in runs[0][0]
    ]
    return _markdown([["epoch", *(str(i + 1) for i in range(len(runs[0])))], *body])


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]])


def arms_of(study: str, rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """Arms of a study in their order, each with its runs."""
    own = [row for row in rows if row["study"] == study]
    return [(arm, [row for row in own if row["arm"] == arm]) for arm in dict.fromkeys(row["arm"] for row in own)]


def steps_of(run: Row) -> list[float | None]:
    """Top-1 of a castling run at each of `STEPS`; a run with softmax has the last one only."""
    if run["untrained"] is None:
        return [None, None, None, run["top1"][-1]]
    faded = next(i for i, blend in enumerate(run["blend"]) if blend == 1)
    masked = [i for i, threshold in enumerate(run["threshold"]) if threshold < 1 and i >= faded]
    return [run["untrained"], run["top1"][faded], run["top1"][masked[-1]] if masked else None, run["top1"][-1]]


def draw(rows: list[Row], path: Path) -> None:
    """Draws one panel for each study that there are runs of.

    Args:
        rows: Results of the runs.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure  # this class needs no display

    panels = {"tokens": _draw_tokens, "castling": _draw_castling, "mixing": _draw_mixing}
    panels = {study: panel for study, panel in panels.items() if arms_of(study, rows)}
    figure = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained")
    for axes, (study, panel) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        panel(axes, arms_of(study, rows))
        axes.set_ylabel("held-out top-1 (%)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))


def _draw_tokens(axes: Any, arms: list[tuple[str, list[Row]]]) -> None:
    for arm, runs in arms:
        spent = [100 * (1 - (run["saved_macs"] or 0)) for run in runs]
        axes.scatter(spent, [run["top1"][-1] for run in runs], label=arm, alpha=0.7)
    axes.set(title="accuracy against cost, one dot per seed", xlabel="training MACs (% of all tokens throughout)")


def _draw_castling(axes: Any, arms: list[tuple[str, list[Row]]]) -> None:
    for arm, runs in arms:
        means = [_mean(steps) for steps in zip(*map(steps_of, runs))]
        points = [(step, mean) for step, mean in zip(STEPS, means) if mean is not None]
        if len(points) == 1:
            axes.axhline(points[0][1], linestyle="--", color="black" if arm == "teacher" else "grey", label=arm)
        else:
            axes.plot(*zip(*points[1:]), marker="o", label=arm)
    axes.set_title("from softmax to linear attention, mean of the seeds")


def _draw_mixing(axes: Any, arms: list[tuple[str, list[Row]]]) -> None:
    for arm, runs in arms:
        curve = [_mean(epoch) for epoch in zip(*(run["top1"] for run in runs))]
        axes.plot(range(1, len(curve) + 1), curve, label=arm)
    axes.set(title="ViT-ResNAS, mean of the seeds", xlabel="epoch", ylim=(60, 100))


def _mean(values: Any) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.mean(present) if present else None


def _spread(values: Any) -> str:
    present = [value for value in values if value is not None]
    if not present:
        return "-"
    return f"{statistics.mean(present):.2f} ± {statistics.stdev(present) if len(present) > 1 else 0:.2f}"


def _saved(runs: list[Row]) -> str:
    saved = _mean(run["saved_macs"] for run in runs)
    return "-" if saved is None else f"{saved:.1%}"


def _time(runs: list[Row]) -> str:
    return f"{statistics.mean(sum(run['seconds']) for run in runs):.0f} s"


if __name__ == "__main__":
    main()
