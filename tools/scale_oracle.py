"""What tools/scale.py scores nets by: a proxy, short trainings, or the accuracies of a table of trained nets."""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trained_nets import TrainedTable, read_table
from trained_oracle import trained_oracle

from asvit_plugin.models.as_vit_genotype import AsViTGenotype
from asvit_plugin.models.scaled_pit_shape import stage_shapes
from asvit_plugin.search import PROXIES
from asvit_plugin.search.scaling_families import DEIT_TINY, PIT_TI
from asvit_plugin.search.scaling_oracle import Oracle, proxy_oracle

TRAINED = "trained"


def make_oracle(args: argparse.Namespace, model: str = "scaled_vit") -> Oracle:
    """The oracle that ``--oracle`` names, with the options that are its own.

    Args:
        args: ``oracle, label, repeats, seed, device, recipe, train_options, output`` of the command line.
        model: timm's name of the nets that are scaled.
    """
    trains, reads = args.oracle == TRAINED, args.oracle.endswith(".json")
    if args.label is not None and not reads:
        raise ValueError(f"--label is {args.label!r}; it is for a table, and --oracle is {args.oracle!r}")
    for name in ("recipe", "train_options"):
        if getattr(args, name) and not trains:
            raise ValueError(f"--{name.replace('_', '-')} is for --oracle {TRAINED}, and --oracle is {args.oracle!r}")
    if trains:
        return trained_oracle(args.recipe, args.train_options, args.seed, args.output / TRAINED)
    if reads:
        return table_oracle(Path(args.oracle), args.label, model)
    if args.oracle not in PROXIES:
        raise ValueError(
            f"--oracle is {args.oracle!r}; it must be one of {', '.join(PROXIES)}, {TRAINED}, or a table's .json file"
        )
    return proxy_oracle(args.oracle, args.repeats, args.seed, args.device)


def table_oracle(path: Path, label: str | None = None, model: str = "scaled_vit") -> Oracle:
    """The accuracies of a table's nets of one model; nets that are not in it have no score.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no table, has no such label, or no such net.
    """
    table = read_table(path)
    label = label or table.labels[0]
    if label not in table.labels:
        raise ValueError(f"--label is {label!r}; it must be one of {', '.join(table.labels)}")
    known = _accuracies(table, label, model)
    if not known:
        raise ValueError(f"{path} has no net of {model}, which is what scaling looks for in it")

    def measure(model: str, arguments: Mapping[str, Any]) -> float:
        return known.get(_shape(model, arguments), math.nan)

    return Oracle(label, measure, context={"source": table.source, "nets": len(known)})


def _accuracies(table: TrainedTable, label: str, model: str) -> dict[str, float]:
    nets = [net for net in table.nets if net.model == model]
    return {_shape(model, {"img_size": table.input_size, **net.arguments}): net.accuracy[label] for net in nets}


def _shape(model: str, arguments: Mapping[str, Any]) -> str:
    """Arguments in one form, however they were written; the number of classes is the table's own affair."""
    full = {name: each for name, each in arguments.items() if name != "num_classes"}
    if model == "as_vit":
        full["genotype"] = str(AsViTGenotype.parse(full["genotype"]))
    elif model == "scaled_pit":
        full = {**PIT_TI, **full}
        names = ("depth", "embed_dims", "num_heads", "head_dim", "mlp_ratio")
        stages = stage_shapes(*(full.pop(name, None) for name in names))
        full["stages"] = [[each.embed_dim, each.head_dim, each.num_heads, each.mlp_ratio] for each in stages]
    else:
        full = _plain_vit({**DEIT_TINY, **full})
    return json.dumps(_numbers(full), sort_keys=True)


def _plain_vit(full: dict[str, Any]) -> dict[str, Any]:
    for name in ("num_heads", "mlp_ratio"):
        values = full[name] if isinstance(full[name], (list, tuple)) else [full[name]]
        full[name] = values[0] if len(set(values)) == 1 else list(values)
    if full.get("embed_dim") is not None and full["num_heads"] * full["head_dim"] == full["embed_dim"]:
        del full["embed_dim"]
    return full


def _numbers(node: Any) -> Any:
    """The same with all whole numbers as floats, for 4 and 4.0 are one."""
    if isinstance(node, dict):
        return {key: _numbers(each) for key, each in node.items()}
    if isinstance(node, (list, tuple)):
        return [_numbers(each) for each in node]
    return float(node) if type(node) is int else node
