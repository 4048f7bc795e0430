"""What a topology search leaves: result.json with all that repeats it, recipes, a picture, and lines of Python."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from result_files import run_record, write_json, write_recipe

from asvit_plugin.atomic import write_atomically
from asvit_plugin.search import Space, Topology, TopologySettings
from asvit_plugin.search.topology import Answer


def write_report(found: Topology, space: Space, settings: TopologySettings, output: Path) -> None:
    """Writes result.json, result.png and the answers as best.yaml and argmax.yaml into a folder."""
    write_json(output / "result.json", summary(found, space, settings))
    for name, net in (("best", found.best), ("argmax", found.argmax)):
        if net is not None:
            write_recipe(output / f"{name}.yaml", net.model, net.arguments)
    figure = draw(found, settings)
    write_atomically(output / "result.png", lambda file: figure.savefig(file, format="png", dpi=100))
    plt.close(figure)


def summary(found: Topology, space: Space, settings: TopologySettings) -> dict[str, Any]:
    """The search as JSON: answers, settings, space, versions, and every trial."""
    policy = found.policy
    return {
        "best": answer(found.best),
        "argmax": found.argmax and answer(found.argmax),
        "settings": asdict(settings),
        "space": {**asdict(space), "fingerprint": space.fingerprint, "size": space.size},
        **run_record(),
        "measuring_seconds": round(sum(trial["seconds"] for trial in found.trials), 1),
        "policy": policy
        and {
            "rewards": policy.rewards,
            "entropies": policy.entropies,
            "probabilities": dict(zip(space.decisions, map(list, policy.probabilities))),
        },
        "trials": found.trials,
    }


def answer(net: Answer) -> dict[str, Any]:
    """One answer as JSON."""
    return {**asdict(net), "create_model": net.line}


def print_answers(found: Topology) -> None:
    """Prints both answers, each with the line that builds it."""
    names = {"best by the sum of ranks": found.best, "most probable of the policy": found.argmax}
    for name, net in names.items():
        if net is not None:
            values = ", ".join(f"{proxy} {value:.6g}" for proxy, value in net.values.items())
            print(f"{name}: {values}, {net.params:,} parameters, {net.macs / 1e9:.3f} GMACs\n  {net.line}")


def draw(found: Topology, settings: TopologySettings) -> plt.Figure:
    """History and cost of every objective, and the policy's entropy."""
    rows = len(settings.proxies) + (found.policy is not None)
    figure, axes = plt.subplots(rows, 2, figsize=(11, 3.2 * rows), squeeze=False, layout="constrained")
    for row, proxy in zip(axes, settings.proxies):
        values = [trial["values"][proxy] for trial in found.trials]
        row[0].plot(values, ".", ms=3, color="tab:gray")
        row[0].plot(_smooth(values), color="tab:blue", label="mean of the last 20")
        row[0].set(xlabel="net", ylabel=f"{proxy} ({'up' if settings.maximize[proxy] else 'down'} is better)")
        row[0].legend()
        row[1].plot([trial["params"] / 1e6 for trial in found.trials], values, ".", ms=3, color="tab:gray")
        for name, net, marker in (("best by ranks", found.best, "*"), ("policy", found.argmax, "D")):
            if net is not None:
                row[1].plot(net.params / 1e6, net.values[proxy], marker, ms=9, label=name)
        row[1].set(xlabel="parameters, millions", ylabel=proxy)
        row[1].legend()
    if found.policy is not None:
        axes[-1][0].plot(found.policy.entropies)
        axes[-1][0].set(xlabel="net", ylabel="entropy of the policy, nats")
        axes[-1][1].plot(found.policy.rewards, ".", ms=3, color="tab:gray")
        axes[-1][1].plot(_smooth(found.policy.rewards), color="tab:blue")
        axes[-1][1].set(xlabel="net", ylabel="reward")
    return figure


def _smooth(values: list[float], window: int = 20) -> list[float]:
    """Mean of the finite ones among the last values, at each."""
    parts = [[v for v in values[max(0, i - window + 1) : i + 1] if math.isfinite(v)] for i in range(len(values))]
    return [sum(part) / len(part) if part else math.nan for part in parts]
