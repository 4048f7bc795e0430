"""What scaling leaves: result.json with all that repeats it, recipes, a picture, and a table with lines of Python."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from result_files import run_record, write_json, write_recipes

from asvit_plugin.atomic import write_atomically
from asvit_plugin.search import Space
from asvit_plugin.search.scaling import Scaled, ScalingSettings
from asvit_plugin.search.scaling_costs import Target, Timing
from asvit_plugin.search.scaling_front import Front, FrontSettings
from asvit_plugin.search.scaling_nets import ScaledNet
from asvit_plugin.search.scaling_oracle import Oracle
from asvit_plugin.search.scaling_strategy import Strategy

SHOWN = {"macs": (1e9, "GMACs"), "params": (1e6, "million parameters"), "latency": (1e-3, "ms")}


def write_report(
    found: Scaled | Front,
    space: Space,
    target: Target,
    oracle: Oracle,
    settings: ScalingSettings | FrontSettings | Strategy,
    timing: Timing | None,
    output: Path,
) -> None:
    """Writes result.json, result.png and every net as net_STEP.yaml into a folder."""
    nets = nets_of(found)
    record = {
        "end": found.end if isinstance(found, Scaled) else None,
        "nets": [{**asdict(net), "create_model": net.line} for net in nets],
        "target": asdict(target),
        "timing": timing and timing.record(),
        "oracle": oracle.record(),
        "settings": asdict(settings),
        "space": {**asdict(space), "fingerprint": space.fingerprint, "size": space.size},
        **run_record(),
        "measuring_seconds": round(sum(trial["seconds"] for trial in found.trials), 1),
        "trials": found.trials,
    }
    write_json(output / "result.json", record)
    write_recipes(output, nets)
    figure = draw(found, target, oracle)
    write_atomically(output / "result.png", lambda file: figure.savefig(file, format="png", dpi=100))
    plt.close(figure)


def nets_of(found: Scaled | Front) -> list[ScaledNet]:
    """The nets that a run gives."""
    return found.path if isinstance(found, Scaled) else found.nets


def print_nets(found: Scaled | Front, target: Target, oracle: Oracle) -> None:
    """Prints the nets as a Markdown table, and the lines that build them."""
    nets = nets_of(found)
    timed = ["ms"] if target.name == "latency" else []
    shape = list(nets[0].choice)
    header = ["net", *shape, "parameters", "GMACs", *timed, oracle.name]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for net in nets:
        costs = [f"{net.params / 1e6:.2f} M", f"{net.macs / 1e9:.4g}", *(f"{1e3 * net.cost:.2f}" for _ in timed)]
        cells = [str(net.step), *(f"{net.choice[name]:g}" for name in shape), *costs, _score(net)]
        print(f"| {' | '.join(cells)} |")
    for net in nets:
        print(f"{net.step}: {net.line}")
    if isinstance(found, Scaled):
        print(f"ended by: {found.end}, {len(found.trials)} nets measured")


def _score(net: ScaledNet) -> str:
    return "" if math.isnan(net.score) else f"{net.score:.5g}"  # a strategy scores nothing


def draw(found: Scaled | Front, target: Target, oracle: Oracle) -> plt.Figure:
    """Score over cost of all nets with the path or front, and of a path its factors."""
    nets, (unit, label) = nets_of(found), SHOWN[target.name]
    path = isinstance(found, Scaled)
    figure, axes = plt.subplots(
        1, 2 if path else 1, figsize=(11 if path else 6, 3.8), squeeze=False, layout="constrained"
    )
    scored = [trial for trial in found.trials if trial["score"] is not None]
    first = axes[0][0]
    first.plot(
        [each["cost"] / unit for each in scored], [each["score"] for each in scored], ".", ms=3, color="tab:gray"
    )
    first.plot([net.cost / unit for net in nets], [net.score for net in nets], ".-", label="path" if path else "front")
    costs = [net.cost for net in nets]
    scale = "log" if max(costs) > 3 * min(costs) else "linear"
    first.set(xlabel=label, ylabel=f"{oracle.name} ({'up' if oracle.maximize else 'down'} is better)", xscale=scale)
    first.legend()
    if path:
        _draw_factors(axes[0][1], nets)
    return figure


def _draw_factors(axis: Any, nets: list[ScaledNet]) -> None:
    """Every factor over its value in the base."""
    for name, value in nets[0].choice.items():
        axis.plot([net.step for net in nets], [net.choice[name] / value for net in nets], ".-", label=name)
    axis.set(xlabel="step", ylabel="factor over the base's", yscale="log")
    axis.legend()
