"""What tools/scale.py scores nets by: a proxy, or the accuracies of a table of trained nets."""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trained_nets import TrainedTable, read_table

from asvit_plugin.search import PROXIES
from asvit_plugin.search.scaling_oracle import Oracle, proxy_oracle
from asvit_plugin.search.scaling_space import BASES


def make_oracle(args: argparse.Namespace) -> Oracle:
    """The oracle that ``--oracle``, ``--label``, ``--repeats``, ``--seed`` and ``--device`` name."""
    if args.oracle.endswith(".json"):
        return table_oracle(Path(args.oracle), args.label)
    if args.oracle not in PROXIES:
        raise ValueError(
            f"--oracle is {args.oracle!r}; it must be one of {', '.join(PROXIES)}, or a table's .json file"
        )
    if args.label is not None:
        raise ValueError(f"--label is {args.label!r}; it is for a table, and --oracle is {args.oracle!r}")
    return proxy_oracle(args.oracle, args.repeats, args.seed, args.device)


def table_oracle(path: Path, label: str | None = None) -> Oracle:
    """The accuracies of a table's ``scaled_vit`` nets; nets that are not in it have no score.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no table, has no such label, or no plain ``scaled_vit``.
    """
    table = read_table(path)
    label = label or table.labels[0]
    if label not in table.labels:
        raise ValueError(f"--label is {label!r}; it must be one of {', '.join(table.labels)}")
    known = _accuracies(table, label)
    if not known:
        raise ValueError(f"{path} has no net of scaled_vit, which is what scaling looks for in it")

    def measure(model: str, arguments: Mapping[str, Any]) -> float:
        return known.get(_shape(arguments), math.nan)

    return Oracle(label, measure, context={"source": table.source, "nets": len(known)})


def _accuracies(table: TrainedTable, label: str) -> dict[str, float]:
    nets = [net for net in table.nets if net.model == "scaled_vit"]
    return {_shape({"img_size": table.input_size, **net.arguments}): net.accuracy[label] for net in nets}


def _shape(arguments: Mapping[str, Any]) -> str:
    """Arguments in one form, however they were written; the number of classes is the table's own affair."""
    full = {**BASES["deit_tiny"], **arguments}
    for name in ("num_heads", "mlp_ratio"):
        values = full[name] if isinstance(full[name], (list, tuple)) else [full[name]]
        full[name] = values[0] if len(set(values)) == 1 else list(values)
    if full.get("embed_dim") is not None and full["num_heads"] * full["head_dim"] == full["embed_dim"]:
        del full["embed_dim"]
    full.pop("num_classes", None)
    return json.dumps({name: float(each) if type(each) is int else each for name, each in full.items()}, sort_keys=True)
