"""What growing leaves: family.json with all that repeats it, recipes, a picture, and a table."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from result_files import run_record, write_json, write_recipes

from asvit_plugin.atomic import write_atomically
from asvit_plugin.search import Grown, GrowthSettings, Space


def write_report(
    family: list[Grown], seed: dict[str, Any], space: Space, settings: GrowthSettings, output: Path
) -> None:
    """Writes family.json, family.png and every net as net_STEP.yaml into a folder."""
    record = {
        "family": [{**asdict(net), "create_model": net.line} for net in family],
        "seed": seed,
        "settings": asdict(settings),
        "space": {**asdict(space), "fingerprint": space.fingerprint},
        **run_record(),
    }
    write_json(output / "family.json", record)
    write_recipes(output, family)
    figure = draw(family)
    write_atomically(output / "family.png", lambda file: figure.savefig(file, format="png", dpi=100))
    plt.close(figure)


def print_family(family: list[Grown], settings: GrowthSettings) -> None:
    """Prints the family as a Markdown table, and the line that builds the largest net."""
    timed = settings.budget == "latency"
    header = ["step", "net", "parameters", "GMACs", *(["ms"] if timed else []), *settings.proxies]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for net in family:
        shown = net.arguments.get("genotype") or ", ".join(f"{name} {value}" for name, value in net.size.items())
        shown = str(shown).replace("|", "\\|")
        costs = [f"{net.params / 1e6:.2f} M", f"{net.macs / 1e9:.3f}", *([f"{1e3 * net.cost:.1f}"] if timed else [])]
        values = [f"{value:.4g}" for value in net.values.values()]
        print(f"| {' | '.join([str(net.step), f'`{shown}`', *costs, *values])} |")
    print(f"the largest:\n  {family[-1].line}")


def draw(family: list[Grown]) -> plt.Figure:
    """Depth, width and costs over the steps, and the scores of the thin nets."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    steps = [net.step for net in family]
    for name in family[0].size:
        axes[0].plot(steps, [net.size[name] for net in family], ".-", label=name)
    axes[0].set(xlabel="step", ylabel="depths, width of the thin net", yscale="log")
    axes[1].plot([net.macs / 1e9 for net in family], [net.params / 1e6 for net in family], ".-")
    axes[1].set(xlabel="GMACs", ylabel="parameters, millions")
    for name in family[0].values:
        first = abs(family[0].values[name]) or 1.0
        axes[2].plot(steps, [net.values[name] / first for net in family], ".-", label=name)
    axes[2].set(xlabel="step", ylabel="score over that of step 1", yscale="symlog")
    for each in (axes[0], axes[2]):
        each.legend()
    return figure
