"""What an evolution leaves: result.json, a picture, and its best net as a recipe and with the supernet's weights."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import timm
import yaml
from result_files import run_record, write_json
from supernet_run import SHARING, SupernetRun, TrainOptions

from asvit_plugin.atomic import new_folder, write_atomically
from asvit_plugin.search import Evolved, EvolvingSettings

# Options that a net's own training has by default: what is about the supernet, and where its run was.
_NOT_INHERITED = ("supernet", *SHARING, "holdout", "output", "resume", "initial_checkpoint", "device")


def write_report(found: Evolved, run: SupernetRun, settings: EvolvingSettings, output: Path) -> None:
    """Writes result.json, result.png, best.yaml, and best/ with the weights that the best net has in the supernet."""
    record = {
        "best": found.best,
        "front": found.front,
        "settings": {**asdict(settings), "budget": settings.budget and _plain(asdict(settings.budget))},
        **run_record(),
        "measuring_seconds": round(sum(trial["seconds"] for trial in found.trials), 1),
        "trials": found.trials,
    }
    write_json(output / "result.json", record)
    text = yaml.safe_dump(recipe(found.best, run), sort_keys=False)
    write_atomically(output / "best.yaml", lambda file: file.write(text.encode()))
    model = run.supernet.extract(found.best["choice"])
    with new_folder(output / "best") as place:
        timm.models.save_for_hf(model, str(place), safe_serialization=True, data_config=run.data_config)
    figure = draw(found, settings)
    write_atomically(output / "result.png", lambda file: figure.savefig(file, format="png", dpi=100))
    plt.close(figure)


def recipe(net: dict[str, Any], run: SupernetRun) -> dict[str, Any]:
    """Options of train.py for a net by itself: those of the supernet's run, on all of its training images."""
    options = {
        each.name: getattr(run.options, each.name) for each in fields(TrainOptions) if each.name not in _NOT_INHERITED
    }
    kwargs = {**run.options.model_kwargs, "network_def": net["network_def"]}
    return {**options, "model": "vit_resnas", "model_kwargs": kwargs, "experiment": f"{_name(run)}_best"}


def print_answer(found: Evolved, output: Path) -> None:
    """Prints the best net, and the commands that go on with it."""
    best = found.best
    values = ", ".join(f"{name} {value:.6g}" for name, value in best["values"].items())
    print(f"the best: {values}; {best['params']:,} parameters, {best['macs'] / 1e6:.1f} MMACs")
    print(f'  timm.create_model("vit_resnas", network_def="{best["network_def"]}")')
    train = f"python classification/train.py --config {output}/best.yaml"
    print(f"from scratch:             {train}")
    print(f"from inherited weights:   {train} --pretrained-path {output}/best --experiment inherited")
    print(f"written: {output}/result.json, result.png, best.yaml, best/")


def draw(found: Evolved, settings: EvolvingSettings) -> plt.Figure:
    """Accuracy of every net in its order and over its MACs (or latency), with the front."""
    cost = next((name for name in settings.objectives if name != "top1"), "macs")
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    top1 = [trial["values"]["top1"] for trial in found.trials]
    axes[0].plot(top1, ".", ms=3, color="tab:gray")
    axes[0].plot([max(top1[: i + 1]) for i in range(len(top1))], color="tab:blue", label="best so far")
    axes[0].set(xlabel="net", ylabel="held-out top-1, %")
    axes[0].legend()
    axes[1].plot([_cost(trial, cost) for trial in found.trials], top1, ".", ms=3, color="tab:gray")
    front = [(_cost(net, cost), net["values"]["top1"]) for net in found.front]
    axes[1].plot(*zip(*sorted(front)), ".-", color="tab:blue", label="front")
    axes[1].set(xlabel=cost, ylabel="held-out top-1, %")
    axes[1].legend()
    return figure


def _cost(net: dict[str, Any], name: str) -> float:
    return net["values"][name] if name in net["values"] else net[name]


def _plain(budget: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in budget.items() if name != "cost"}


def _name(run: SupernetRun) -> str:
    return run.options.experiment or run.supernet.networks.space.name
