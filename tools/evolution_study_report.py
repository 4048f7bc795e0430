"""Tables and a picture of tools/evolution_study.py, made from its JSON file alone.

python tools/evolution_study_report.py docs/results/evolution_digits.json --picture docs/images/evolution_digits.png
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rank_statistics import Comparison, Estimate

from asvit_plugin.atomic import write_atomically
from asvit_plugin.search.ranking import unbeaten

Results = dict[str, Any]
GROUPS = {
    "evolved": "evolved within the budget",
    "mask search": "by mask search within the budget",
    "random in budget": "random nets of the same budget",
    "largest": "the largest net",
    "random": "random nets of all sizes",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--picture", type=Path, help="PNG file to write")
    args = parser.parse_args()
    try:
        results = json.loads(args.results.read_text())
        results["nets"], results["evolution"], results["search_seconds"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"argument results is {str(args.results)!r}: no file of evolution_study.py ({error})")
    if args.picture:
        draw(results, args.picture)
    print_tables(results)


def print_tables(results: Results) -> None:
    """Prints the nets' table, and how well inherited accuracies say which net is the better one."""
    print("| | search | nets x seeds | MMACs | parameters | top-1 by shared weights | top-1 trained from scratch |")
    print("|---|---|---|---|---|---|---|")
    for group, title in GROUPS.items():
        rows = of_group(results, group)
        seconds = results["search_seconds"].get(group)
        search = "" if seconds is None else f"{seconds:.0f} s"
        counts = f"{len({row['number'] for row in rows})} x {len({row['seed'] for row in rows})}"
        costs = [_range([row["macs"] / 1e6 for row in rows]), _range([row["params"] / 1e3 for row in rows]) + " k"]
        values = [_spread([row[name] for row in rows]) for name in ("inherited", "trained")]
        print(f"| {' | '.join([title, search, counts, *costs, *values])} |")
    tau, partial = rank_correlation(results)
    rows = of_group(results, "random")
    print(
        f"\nKendall's tau between the two accuracies of the {len(means(rows))} random nets of all sizes: "
        f"{_interval(tau)}; given MACs {_interval(partial)}"
    )


def rank_correlation(results: Results) -> tuple[Estimate, Estimate]:
    """Kendall's tau between inherited and trained accuracy over the random nets, and the partial one given MACs."""
    nets = means(of_group(results, "random"))
    comparison = Comparison([net["trained"] for net in nets], [net["macs"] for net in nets])
    found = comparison.agreement([net["inherited"] for net in nets])
    return found.tau, found.partial_tau


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each net, with the mean of its trainings' accuracies."""
    nets = {(row["group"], row["number"]): row for row in rows}
    return [
        {**net, "trained": statistics.mean(row["trained"] for row in rows if (row["group"], row["number"]) == key)}
        for key, net in nets.items()
    ]


def draw(results: Results, path: Path) -> None:
    """Accuracies over MACs, of the evolution and of the nets trained from scratch; and one over the other."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    trials = results["evolution"]["trials"]
    macs, values = [trial["macs"] / 1e6 for trial in trials], [trial["values"]["top1"] for trial in trials]
    axes[0].plot(macs, values, ".", ms=3, color="tab:gray", label="evolution, the supernet's weights")
    for marker, (group, title) in zip("*PsDo", GROUPS.items()):
        rows = means(of_group(results, group))
        axes[0].plot([row["macs"] / 1e6 for row in rows], [row["trained"] for row in rows], marker, label=title)
        axes[1].plot([row["inherited"] for row in rows], [row["trained"] for row in rows], marker, label=title)
    nets = means(results["nets"])
    columns = {name: [net[name] for net in nets] for name in ("trained", "macs")}
    best = [nets[index] for index in unbeaten(columns, {"trained": True, "macs": False})]
    front = sorted((net["macs"] / 1e6, net["trained"]) for net in best)
    axes[0].step(*zip(*front), where="post", color="black", lw=0.8, label="Pareto front, trained from scratch")
    axes[0].set(xlabel="MACs of an image, millions", ylabel="top-1, %", xscale="log")
    axes[1].set(xlabel="held-out top-1 by shared weights, %", ylabel="test top-1, trained from scratch, %")
    axes[0].xaxis.set_major_formatter("{x:g}")
    axes[0].xaxis.set_minor_formatter("{x:g}")
    axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))
    plt.close(figure)


def of_group(results: Results, group: str) -> list[dict[str, Any]]:
    """The nets of a group."""
    return [row for row in results["nets"] if row["group"] == group]


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} - {high}"


def _spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(set(values)) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation} %"


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


if __name__ == "__main__":
    main()
