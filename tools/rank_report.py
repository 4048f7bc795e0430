"""What tools/rank_proxies.py shows: a Markdown table per label, and a picture of them all."""

import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rank_statistics import Agreement, Estimate

from asvit_plugin.atomic import write_atomically

COLUMNS = 3  # panels of a row of the picture


def print_tables(
    agreements: Mapping[str, Mapping[str, Agreement]], seconds: Mapping[str, float], nets: int, size: str
) -> None:
    """Prints how every proxy agrees with every label."""
    for label, by_proxy in agreements.items():
        print(f"\n{label}, {nets} nets; in brackets 95 % intervals\n\n{table(by_proxy, seconds, size)}")


def table(by_proxy: Mapping[str, Agreement], seconds: Mapping[str, float], size: str) -> str:
    """Markdown table of one label."""
    rows = [
        [
            "proxy",
            "Kendall tau",
            "Spearman rho",
            f"partial tau given {size}",
            f"tau within bands of {size}",
            "s per net",
        ]
    ]
    rows.append(["---"] * len(rows[0]))
    for proxy, each in by_proxy.items():
        taus = [_estimate(value) for value in (each.tau, each.partial_tau, each.band_tau)]
        rows.append([f"`{proxy}`", taus[0], _number(each.rho), *taus[1:], f"{seconds[proxy]:.3f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(agreements: Mapping[str, Mapping[str, Agreement]], size: str, path: Path) -> None:
    """Partial tau against tau with their intervals, a panel per label; a line where size alone stands."""
    columns = min(COLUMNS, len(agreements))
    rows = math.ceil(len(agreements) / columns)
    alone = columns == 1  # the names then stand beside the panel
    figure, panels = plt.subplots(
        rows,
        columns,
        figsize=(8 if alone else 4.4 * columns, 3.8 * rows),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for panel, (label, by_proxy) in zip(panels.flat, agreements.items()):
        _draw_label(panel, by_proxy, size)
        panel.set_title(label)
    for panel in list(panels.flat)[len(agreements) :]:
        panel.remove()
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside right center" if alone else "outside lower center", ncols=1 if alone else 4
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=80))
    plt.close(figure)


def _draw_label(panel: plt.Axes, by_proxy: Mapping[str, Agreement], size: str) -> None:
    panel.axhline(0, color="lightgray", zorder=0)
    for number, (proxy, each) in enumerate(by_proxy.items()):
        colour = f"C{number}"
        if proxy == size:  # which has nothing to say beyond itself
            panel.axvline(each.tau.value, color=colour, linestyle="--", label=proxy)
            continue
        across, up = _whiskers(each.tau), _whiskers(each.partial_tau)
        panel.errorbar(each.tau.value, each.partial_tau.value, up, across, fmt="o", color=colour, lw=1, label=proxy)
    panel.set(xlabel="Kendall tau", ylabel=f"partial tau given {size}")


def _whiskers(estimate: Estimate) -> list[list[float]]:
    """Distances to both limits; a resample may miss the estimate, and matplotlib takes no negative ones."""
    below, above = estimate.value - estimate.low, estimate.high - estimate.value
    return [[max(below, 0.0)], [max(above, 0.0)]]


def _estimate(each: Estimate) -> str:
    return "-" if math.isnan(each.value) else f"{each.value:.2f} [{each.low:.2f}, {each.high:.2f}]"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
