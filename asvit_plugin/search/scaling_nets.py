"""Nets that scaling looks at: measured once each, kept in the trials of a study."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna

from .measuring import create_model_line
from .scaling_costs import Pricing
from .scaling_oracle import Oracle
from .space import Choice
from .study import SearchStudy

NET = "net"  # user attribute of a trial: choice, score, params, macs, cost, seconds, and the spread of a latency
Record = dict[str, Any]


@dataclass(frozen=True)
class ScaledNet:
    """One net of a path, or of a front.

    Attributes:
        step: Number of the step that chose it, 0 for the base; of a front the number of its trial.
        choice: The point of the space.
        model: timm's name of the model.
        arguments: Further arguments of ``timm.create_model``.
        params: Parameters.
        macs: Multiply-accumulates of one image.
        cost: What the budget limits; of latency the median seconds for one batch.
        score: What the oracle gave.
        move: What changed from the net before.
    """

    step: int
    choice: Choice
    model: str
    arguments: dict[str, Any]
    params: int
    macs: int
    cost: float
    score: float
    move: str = ""

    @property
    def line(self) -> str:
        """The call of ``timm.create_model`` that makes the net."""
        return create_model_line(self.model, self.arguments)


class Evaluation:
    """Prices and scores the points of a space as trials."""

    def __init__(self, pricing: Pricing, oracle: Oracle) -> None:
        self.pricing, self.oracle, self.space = pricing, oracle, pricing.space

    def record(self) -> dict[str, Any]:
        """All that a trial depends on."""
        return {
            "space": f"{self.space.name} ({self.space.fingerprint})",
            **self.pricing.record(),
            **self.oracle.record(),
        }

    def trial(
        self, search: SearchStudy, trial: "optuna.Trial", choice: Choice, wanted: Callable[[float], bool]
    ) -> Record:
        """Measures a point, unless it was before, and keeps it in the trial; a cost that is not wanted has no score."""
        known = next((other.user_attrs[NET] for other in search.complete if _same(other, choice)), None)
        net = {**known, "seconds": 0.0} if known else self._measure(choice)
        if not net["scored"] and wanted(net["cost"]):
            begin = time.perf_counter()
            score = self.oracle.measure(*self.space.arguments(choice))
            net |= {"scored": True, "score": float(score) if math.isfinite(score) else None}
            net["seconds"] = round(net["seconds"] + time.perf_counter() - begin, 3)
        trial.set_user_attr(NET, net)
        return net

    def net(self, record: Record, step: int, move: str = "") -> ScaledNet:
        """A record with a score as a net."""
        model, arguments = self.space.arguments(record["choice"])
        costs = {name: record[name] for name in ("params", "macs", "cost", "score")}
        return ScaledNet(step, record["choice"], model, arguments, **costs, move=move)

    def _measure(self, choice: Choice) -> Record:
        begin = time.perf_counter()
        costs = self.pricing.measure(choice)
        seconds = round(time.perf_counter() - begin, 3)
        return {"choice": choice, "score": None, "scored": False, **costs, "seconds": seconds}


def value(record: Record) -> float:
    """The score of a record; NaN where it has none."""
    return math.nan if record["score"] is None else record["score"]


def plain_records(search: SearchStudy) -> list[Record]:
    """The COMPLETE trials: number, step (None off a path), and all that was measured."""
    return [
        {"number": trial.number, "step": trial.user_attrs.get("step"), **trial.user_attrs[NET]}
        for trial in search.complete
    ]


def _same(trial: optuna.trial.FrozenTrial, choice: Choice) -> bool:
    return trial.user_attrs[NET]["choice"] == choice
