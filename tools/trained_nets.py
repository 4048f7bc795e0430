"""Tables of trained nets, in JSON: shapes of nets and the accuracies that training brought them to.

``{"source": text, "input_size": pixels, "num_classes": 100, "nets": [{"arch": {...}, "accuracy": {name: percent}}]}``;
``num_classes`` may be left out. ``arch`` is a PiT (``base_dim, mlp_ratio, depth[3], num_heads[3]``), a ViT of
AutoFormer's space (``hidden_dim, depth, num_heads[depth], mlp_ratio[depth]``), or any model of timm's registry
(``model, arguments``).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from torch import nn

import asvit_plugin  # noqa: F401  registers its models

PIT = frozenset({"base_dim", "mlp_ratio", "depth", "num_heads"})
AUTOFORMER = frozenset({"hidden_dim", "depth", "num_heads", "mlp_ratio"})
REGISTERED = frozenset({"model", "arguments"})
AUTOFORMER_HEAD_DIM = 64  # of all its nets: attention is narrower or wider than the tokens
MIN_NETS = 3


@dataclass(frozen=True)
class TrainedNet:
    """One net of a table.

    Attributes:
        number: Its place in the table, from 0.
        model: Name for ``timm.create_model``.
        arguments: Arguments for it, without the image size.
        accuracy: Percent, by label.
    """

    number: int
    model: str
    arguments: dict[str, Any]
    accuracy: dict[str, float]

    def build(self, img_size: int) -> nn.Module:
        """The untrained net, for images of ``img_size`` pixels.

        Raises:
            ValueError: It cannot be built.
        """
        try:
            try:
                return timm.create_model(self.model, **{**self.arguments, "img_size": img_size})
            except TypeError as error:
                if "img_size" not in str(error):
                    raise
                return timm.create_model(self.model, **self.arguments)  # convolutional nets have no such argument
        except (AssertionError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"nets[{self.number}]: {self.model} cannot be built: {reason}") from error


@dataclass(frozen=True)
class TrainedTable:
    """Trained nets that can be compared with each other.

    Attributes:
        source: Where the accuracies come from.
        input_size: Image side in pixels that the nets were trained at.
        nets: At least three, each with the same labels.
    """

    source: str
    input_size: int
    nets: list[TrainedNet]

    @property
    def labels(self) -> list[str]:
        """Names of the accuracies."""
        return list(self.nets[0].accuracy)


def read_table(path: Path) -> TrainedTable:
    """A table from its file.

    Raises:
        OSError: There is no such file, or it cannot be read.
        ValueError: It is no JSON, or no such table; says what is wrong where.
    """
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    try:
        return _table(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _table(data: Any) -> TrainedTable:
    _require("the table", data, {"source", "input_size", "nets"})
    size, classes, rows = data["input_size"], data.get("num_classes"), data["nets"]
    for field, value in (("input_size", size), ("num_classes", 1 if classes is None else classes)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{field} is {value!r}; it must be a whole number of at least 1")
    if not isinstance(rows, list) or len(rows) < MIN_NETS:
        count = len(rows) if isinstance(rows, list) else "no list of"
        raise ValueError(f"nets has {count} nets; a comparison needs at least {MIN_NETS}")
    common = {} if classes is None else {"num_classes": classes}
    nets = [_net(number, row, common) for number, row in enumerate(rows)]
    for net in nets:
        if net.accuracy.keys() != nets[0].accuracy.keys():
            names = [", ".join(each.accuracy) for each in (net, nets[0])]
            raise ValueError(f"nets[{net.number}] has accuracies {names[0]}; it must have those of nets[0]: {names[1]}")
    return TrainedTable(str(data["source"]), size, nets)


def _net(number: int, row: Any, common: Mapping[str, Any]) -> TrainedNet:
    where = f"nets[{number}]"
    _require(where, row, {"arch", "accuracy"})
    model, arguments = _model(f"{where}.arch", row["arch"])
    return TrainedNet(number, model, {**common, **arguments}, _accuracy(f"{where}.accuracy", row["accuracy"]))


def _model(where: str, arch: Any) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the model that an ``arch`` stands for."""
    keys = arch.keys() if isinstance(arch, dict) else ()
    if keys == PIT:
        return "scaled_pit", {**{key: arch[key] for key in sorted(PIT - {"base_dim"})}, "head_dim": arch["base_dim"]}
    if keys == AUTOFORMER:
        shape = {key: arch[key] for key in sorted(AUTOFORMER - {"hidden_dim"})}
        return "scaled_vit", {**shape, "embed_dim": arch["hidden_dim"], "head_dim": AUTOFORMER_HEAD_DIM}
    if keys == REGISTERED and isinstance(arch["model"], str) and isinstance(arch["arguments"], dict):
        return arch["model"], arch["arguments"]
    forms = "; ".join(", ".join(sorted(form)) for form in (PIT, AUTOFORMER, REGISTERED))
    raise ValueError(
        f"{where} has {', '.join(keys) or repr(arch)}; it must have the keys of one of these forms: {forms}"
    )


def _accuracy(where: str, accuracy: Any) -> dict[str, float]:
    if not isinstance(accuracy, dict) or not accuracy:
        raise ValueError(f"{where} is {accuracy!r}; it must be numbers by name, at least one")
    for name, value in accuracy.items():
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{where}.{name} is {value!r}; it must be a finite number")
    return accuracy


def _require(where: str, value: Any, keys: set[str]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {type(value).__name__}; it must be an object with {', '.join(sorted(keys))}")
    if missing := keys - value.keys():
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}")
