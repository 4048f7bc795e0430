"""How well a table of blocks predicts the latency of scaled ViTs: a line is fitted on some, and judged by others."""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import timm
import torch
from torch import nn

from asvit_plugin.costs import (
    BlockTable,
    Latency,
    LatencyLine,
    LatencyProbe,
    LatencySetting,
    macs,
    relative_errors,
)

Measure = Callable[[list[LatencyProbe]], list[Latency]]
FACTORS = {"depth": (4, 6, 8, 12, 16), "num_heads": (2, 3, 4, 6), "head_dim": (32, 64), "mlp_ratio": (2.0, 3.0, 4.0)}


def draw_nets(count: int, seed: int) -> list[dict[str, Any]]:
    """Arguments of so many scaled ViTs, all different."""
    random_numbers = random.Random(seed)
    nets: list[dict[str, Any]] = []
    while len(nets) < count:
        net = {name: random_numbers.choice(values) for name, values in FACTORS.items()}
        if net not in nets:
            nets.append(net)
    return nets


def predict_nets(
    count: int, fit: int, seed: int, shape: tuple[int, ...], setting: LatencySetting, measure: Measure
) -> dict[str, Any]:
    """Measure nets beside their parts, fit the line on ``fit`` of them, small to large, and predict the rest.

    Args:
        count: Nets.
        fit: Those of them that the line is fitted on.
        seed: Of the draw of nets.
        shape: Of a batch of images.
        setting: How they run.
        measure: Times models in turn.

    Returns:
        Figures of every net, and for predictors from parts and from MACs their line and relative errors.

    Raises:
        ValueError: There are fewer different nets than asked for, or the runtime cannot run one.
    """
    most = torch.tensor([len(values) for values in FACTORS.values()]).prod().item()
    if count > most:
        raise ValueError(f"argument --predictor is {count}; there are {most} different nets")
    arguments = draw_nets(count, seed)
    models = [timm.create_model("scaled_vit", img_size=shape[-1], **each) for each in arguments]
    probes = [LatencyProbe(model, shape, setting) for model in models]
    measured: list[Latency] = []

    def with_nets(modules: list[nn.Module], inputs: list[torch.Tensor]) -> list[float]:
        parts = [LatencyProbe(module, each, setting) for module, each in zip(modules, inputs)]
        latencies = measure([*parts, *probes])
        measured.extend(latencies[len(parts) :])
        return [each.median for each in latencies[: len(parts)]]

    table = BlockTable(with_nets)
    sums = table.totals(models, shape)
    costs = {"parts": sums, "macs": [float(macs(model, shape)) for model in models]}
    fitted = spread(costs["macs"], fit)
    predictors = {name: judge(each, [net.median for net in measured], fitted) for name, each in costs.items()}
    rows = [
        {**net, "macs": cost, "parts": total, "seconds": latency.median, "drift": latency.drift, "fitted": i in fitted}
        for i, (net, cost, total, latency) in enumerate(zip(arguments, costs["macs"], sums, measured))
    ]
    return {"nets": rows, "distinct_parts": len(table.seconds), "predictors": predictors}


def spread(costs: Sequence[float], count: int) -> list[int]:
    """Which so many nets lie evenly between the cheapest and the dearest, both included."""
    order = sorted(range(len(costs)), key=costs.__getitem__)
    return [order[round(place * (len(order) - 1) / (count - 1))] for place in range(count)]


def judge(costs: Sequence[float], seconds: Sequence[float], fitted: Sequence[int]) -> dict[str, Any]:
    """A line fitted on some nets, what it predicts, and its errors on the others."""
    line = LatencyLine.fit([costs[i] for i in fitted], [seconds[i] for i in fitted])
    predicted = [line.predict(cost) for cost in costs]
    others = [i for i in range(len(costs)) if i not in fitted]
    median, largest = relative_errors([predicted[i] for i in others], [seconds[i] for i in others])
    return {**asdict(line), "median_error": median, "largest_error": largest, "predicted": predicted}


def print_prediction(found: dict[str, Any]) -> None:
    """Every net, then the error of both predictors."""
    print("| depth | heads | head width | MLP ratio | GMACs | ms | sum of parts | predicted | error |")
    print("|---|---|---|---|---|---|---|---|---|")
    for net, predicted in zip(found["nets"], found["predictors"]["parts"]["predicted"]):
        shape = " | ".join(str(net[name]) for name in FACTORS)
        ms = " | ".join(f"{1e3 * seconds:.2f}" for seconds in (net["seconds"], net["parts"], predicted))
        error = "fitted" if net["fitted"] else f"{predicted / net['seconds'] - 1:+.1%}"
        print(f"| {shape} | {net['macs'] / 1e9:.2f} | {ms} | {error} |")
    for name, figures in found["predictors"].items():
        offset, slope = 1e3 * figures["offset"], figures["slope"] * (1 if name == "parts" else 1e12)
        text = f"{offset:+.2f} ms {slope:+.3f} * parts" if name == "parts" else f"{offset:+.2f} ms {slope:+.2f} * GMACs"
        print(
            f"{text}: relative error on the nets it was not fitted on: median {figures['median_error']:.1%}, "
            f"largest {figures['largest_error']:.1%}"
        )
