"""What tools/scale_transfer.py shows: tables of exponents, regrets and rank correlations, and a picture.

    python tools/scale_transfer_report.py docs/results/scaling_transfer.json --picture docs/images/scaling_transfer.png

prints the tables of a finished study again, and draws its picture.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rank_statistics import Comparison, Estimate

from asvit_plugin.atomic import write_atomically

Results = Mapping[str, Any]
_COUNTED = "macs"


def tables(results: Results) -> str:
    """All tables as Markdown."""
    parts = [exponents(results), transfers(results)]
    parts += [agreements(results, key) for key in results["nets"] if len(costs_of(results, key)) > 1]
    return "\n\n".join(parts)


def exponents(results: Results) -> str:
    """The strategy of each path: exponents over the factors, and where the path ended."""
    factors = list(
        dict.fromkeys(name for case in results["cases"] if case["strategy"] for name in case["strategy"]["exponents"])
    )
    rows = [["path", *factors, "largest residual", "nets", "looked at", "end"]]
    for case in results["cases"]:
        fitted = case["strategy"]
        slopes = [
            f"{fitted['exponents'][name]:.2f}" if fitted and name in fitted["exponents"] else "" for name in factors
        ]
        residual = f"{max(fitted['residuals'].values()):.2f}" if fitted else ""
        rows.append([label(results, case), *slopes, residual, str(len(case["path"])), str(case["trials"]), case["end"]])
    return _markdown(rows)


def transfers(results: Results) -> str:
    """Regret of each foreign strategy, and the costs that the two nets reached of the budget."""
    natives = {_name(case): case for case in results["cases"]}
    rows = [["strategy of", "applied to", "regret", "its net's cost over the budget", "the native net's"]]
    for each in results["transfers"]:
        native = natives[_name(each["goal"])]
        regret = "none gained" if each["regret"] is None else f"{100 * each['regret']:.0f} %"
        mine = "" if each["net"] is None else f"{reached(results, each['goal'], each['net']):.2f}"
        note = "" if each["end"] == "budget" else f" ({each['end']})"
        own = f"{reached(results, each['goal'], native['path'][-1]):.2f}"
        rows.append([label(results, each["source"]), label(results, each["goal"]), regret + note, mine, own])
    return _markdown(rows)


def agreements(results: Results, key: str) -> str:
    """Kendall's tau between the ranks of all nets of a base by every two costs, with 95 % intervals over nets."""
    costs = costs_of(results, key)
    rows = [[f"{results['bases'][key]['name']}, {len(results['nets'][key])} nets", *costs[1:]]]
    for one in costs[:-1]:
        cells = [
            _estimate(tau(results, key, one, other)) if costs.index(other) > costs.index(one) else ""
            for other in costs[1:]
        ]
        rows.append([one, *cells])
    return _markdown(rows)


def tau(results: Results, key: str, one: str, other: str) -> Estimate:
    """Of the nets of a base, by two costs."""
    values = {cost: [cost_of(net, cost) for net in results["nets"][key]] for cost in (one, other)}
    return Comparison(values[one], values[_COUNTED] if _COUNTED in values else values[one]).agreement(values[other]).tau


def costs_of(results: Results, key: str) -> list[str]:
    """MACs, and the runtimes in which a base's nets were timed."""
    return [_COUNTED, *results["nets"][key][0]["latency"]]


def cost_of(net: Mapping[str, Any], cost: str) -> float:
    """MACs, or what it took of the base's time side by side."""
    return net["macs"] if cost == _COUNTED else net["latency"][cost]["over_base"]


def reached(results: Results, case: Mapping[str, Any], index: int) -> float:
    """A net's cost over the base's, both measured side by side, over the ratio that was the budget."""
    base, net = (results["nets"][case["key"]][each] for each in (0, index))
    return cost_of(net, case["cost"]) / cost_of(base, case["cost"]) / results["settings"]["ratio"]


def label(results: Results, case: Mapping[str, Any]) -> str:
    """A case in words."""
    return f"{results['bases'][case['key']]['name']}, {case['cost']}, by {case['oracle']}"


def draw(results: Results, path: Path) -> None:
    """Latencies over MACs in all runtimes, and regrets."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    base, *_ = nets = results["nets"]["base"]
    for cost in costs_of(results, "base")[1:]:
        points = sorted((net["macs"] / base["macs"], cost_of(net, cost) / cost_of(base, cost)) for net in nets)
        axes[0].plot(*zip(*points), "o", ms=4, label=cost)
    axes[0].axline((1, 1), slope=1, color="tab:gray", lw=0.8)
    axes[0].set(xlabel="MACs over the base's", ylabel="latency over the base's")
    axes[0].legend()
    known = [each for each in results["transfers"] if each["regret"] is not None]
    bases = results["bases"]
    names = [
        f"{_short(bases, each['source'])} $\\rightarrow$ {_short(bases, each['goal'])}, {each['goal']['oracle']}"
        for each in known
    ]
    axes[1].barh(range(len(known)), [100 * each["regret"] for each in known], height=0.6)
    axes[1].set_yticks(range(len(known)), names, fontsize=7)
    axes[1].invert_yaxis()
    axes[1].axvline(0, color="black", lw=0.8)
    axes[1].set(xlabel="regret, % of what the native path gained")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON of scale_transfer.py")
    parser.add_argument("--picture", type=Path, help="file to draw the picture into")
    args = parser.parse_args(argv)
    try:
        results = json.loads(args.results.read_text())
        print(tables(results))
        if args.picture:
            draw(results, args.picture)
    except (KeyError, OSError, TypeError, ValueError) as error:
        parser.error(f"{args.results} is no file of scale_transfer.py: {' '.join(str(error).split())}")


def _short(bases: Mapping[str, Any], case: Mapping[str, Any]) -> str:
    return f"{bases[case['key']]['name']} {case['cost']}"


def _name(case: Mapping[str, Any]) -> tuple[str, str, str]:
    return case["key"], case["cost"], case["oracle"]


def _estimate(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
