"""What a search by masks leaves: result.json, pictures, and its best net as a recipe and with its weights."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import timm
import yaml
from mask_run import MaskRun
from result_files import run_record, write_json
from supernet_run import SHARING, TrainOptions

from asvit_plugin.atomic import new_folder, write_atomically

Rows = list[dict[str, Any]]
# Options that a net's own training has by default: what is about the search, and where its run was.
_NOT_INHERITED = (
    *("supernet", *SHARING, "holdout", "output", "resume", "initial_checkpoint", "device", "pretrained"),
    *("pretrained_path", "model", "model_kwargs", "img_size", "in_chans", "num_classes"),
)
_COLUMNS = 6  # of small plots


def write_report(run: MaskRun, history: Rows, nets: Rows, judging_seconds: float, output: Path) -> None:
    """Writes result.json, result.png, gates.png, best.yaml, and best/ with the weights that the best net has here."""
    space = run.net.space
    record = {
        "best": nets[0],
        "nets": nets,
        "settings": asdict(run.search.settings),
        "options": {**run.options.training(), **run.options.own()},
        "space": {**asdict(space), "fingerprint": space.fingerprint, "size": space.size},
        "reach": run.net.reach(run.search.settings.cost),
        **run_record(),
        **{name: sum(row[name] for row in history) for name in ("seconds", "processor_seconds")},
        "setup_seconds": run.setup_seconds,
        "judging_seconds": judging_seconds,
        "history": history,
    }
    write_json(output / "result.json", record)
    text = yaml.safe_dump(recipe(nets[0], run), sort_keys=False)
    write_atomically(output / "best.yaml", lambda file: file.write(text.encode()))
    model = run.net.extract(nets[0]["choice"]).eval()
    config = run.training.data_config
    with new_folder(output / "best") as place:
        timm.models.save_for_hf(model, str(place), safe_serialization=True, data_config=config)
    pictures = {"result": draw(history, nets, run), "gates": draw_gates(history, space.decisions)}
    for name, figure in pictures.items():
        write_atomically(
            output / f"{name}.png", lambda file, figure=figure: figure.savefig(file, format="png", dpi=100)
        )
        plt.close(figure)


def recipe(net: dict[str, Any], run: MaskRun) -> dict[str, Any]:
    """Options of train.py for a net by itself: those of the search, on all of its training images."""
    options = {
        each.name: getattr(run.options, each.name) for each in fields(TrainOptions) if each.name not in _NOT_INHERITED
    }
    chans, side, _ = run.training.data_config["input_size"]
    said = {"num_classes", "in_chans", "img_size", "drop_rate", "drop_path_rate"}
    kwargs = {name: value for name, value in net["arguments"].items() if name not in said}
    shape = {"img_size": side, "in_chans": chans, "num_classes": run.training.model.num_classes}
    # The searched model's own preprocessing is not that of every net of its kind.
    config = {name: run.training.data_config[name] for name in ("mean", "std", "interpolation", "crop_pct")}
    config |= {name: list(config[name]) for name in ("mean", "std")}
    own = {"model": net["model"], "model_kwargs": kwargs, "experiment": f"{run.options.name}_best"}
    return {**options, **shape, **config, **own}


def print_answer(nets: Rows, run: MaskRun, output: Path) -> None:
    """Prints the best net, and the commands that go on with it."""
    best, first = nets[0], next(net for net in nets if net["how"] != "sampled")
    costs = ", ".join(f"{best[cost]:.6g} {cost}" for cost in run.net.costs)
    print(f"best of {len(nets)} nets: {costs}, held-out top-1 {best['top1']:.2f} % ({best['how']})")
    if first["how"] == "moved":
        likely = run.search.budget.cost(run.net.gates.argmax())
        print(
            f"the gates' own argmax has {likely:.6g} {run.search.settings.cost}, which is not within "
            f"{run.search.budget}; the most probable net that is was taken in its place"
        )
    drawn = sum(net["how"] == "sampled" for net in nets)
    if drawn < run.options.samples:
        print(f"{drawn} nets within the budget were drawn, of {run.options.samples} asked for")
    print(f"  timm.create_model({best['model']!r}, **{best['arguments']!r})")
    print(f"train it:\n  python classification/train.py --config {output / 'best.yaml'}")
    print("or go on from the weights that it has:")
    print(f"  python classification/train.py --config {output / 'best.yaml'} --pretrained-path {output / 'best'}")


def draw(history: Rows, nets: Rows, run: MaskRun) -> plt.Figure:
    """Costs over the epochs, with the budget; held-out accuracy; and the nets that were judged in the end."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    cost, epochs = run.search.settings.cost, [row["epoch"] + 1 for row in history]
    axes[0].plot(epochs, [row["expected_cost"] for row in history], label="expected")
    axes[0].plot(epochs, [row["argmax_cost"] for row in history], label="most probable net")
    axes[0].axhspan(run.search.budget.low, run.search.budget.high, color="tab:gray", alpha=0.4, label="budget")
    axes[0].set(xlabel="epoch", ylabel=cost)
    axes[1].plot(epochs, [row["top1"] for row in history], label="most probable net")
    axes[1].set(xlabel="epoch", ylabel="held-out top-1, %")
    for how in ("argmax", "moved", "sampled"):
        found = [net for net in nets if net["how"] == how]
        if found:
            places = [[net[name] for net in found] for name in ("log_probability", "top1")]
            axes[2].plot(*places, "." if how == "sampled" else "*", label=how)
    axes[2].set(xlabel="log probability of a net", ylabel="held-out top-1, %")
    for each in axes:
        each.axvline(run.search.first + 0.5, color="black", lw=0.6, ls=":") if each is not axes[2] else None
        each.legend(fontsize=8)
    return figure


def draw_gates(history: Rows, decisions: dict[str, Any]) -> plt.Figure:
    """The probabilities of every gate's options over the epochs."""
    names = list(history[-1]["gates"])
    rows = -(-len(names) // _COLUMNS)
    figure, axes = plt.subplots(
        rows, _COLUMNS, figsize=(2.4 * _COLUMNS, 1.7 * rows + 0.3), layout="constrained", squeeze=False, sharey=True
    )
    epochs = np.arange(len(history)) + 1
    for axis, name in zip(axes.flat, names):
        odds = np.array([row["gates"][name] for row in history]).T
        options = decisions[name]
        shades = plt.get_cmap("viridis")(np.argsort(np.argsort(options)) / max(len(options) - 1, 1))
        axis.stackplot(epochs, odds, labels=list(map(str, options)), colors=shades)
        axis.set(title=name, ylim=(0, 1))
        axis.title.set_size(8)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=5, loc="lower left")
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    figure.supxlabel("epoch", fontsize=8)
    figure.supylabel("probability", fontsize=8)
    return figure
