"""The trade-off of score and cost over a space of factors: a study of two objectives by one of Optuna's samplers."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import check_choice
from .ranking import unbeaten
from .sampling import SAMPLERS, OptunaSampler, suggest
from .scaling_costs import UNITS, Pricing, Target, Timing
from .scaling_nets import Evaluation, Record, ScaledNet, plain_records, value
from .scaling_oracle import Oracle, proxy_oracle
from .scaling_reach import check_counted, ends
from .space import Choice, Space
from .study import open_study

SAMPLER_NAMES = ("nsga2", "random")
_DRAWS = 10_000  # random points that may cost too much, before the cheapest takes their place


@dataclass(frozen=True)
class FrontSettings:
    """How a front is searched.

    Attributes:
        sampler: One of Optuna's: "nsga2" or "random".
        steps: Nets to measure; a study may be continued with more.
        seed: Of all draws.
    """

    sampler: str = "nsga2"
    steps: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("sampler", self.sampler, SAMPLER_NAMES)
        for name, number, smallest in (("steps", self.steps, 1), ("seed", self.seed, 0)):
            if type(number) is not int or number < smallest:
                raise ValueError(f"{name} is {number!r}; it must be a whole number of at least {smallest}")


@dataclass(frozen=True)
class Front:
    """The outcome: the nets that no other one beats in score and cost, cheap to dear, and every COMPLETE trial."""

    nets: list[ScaledNet]
    trials: list[Record]


def scale_front(
    space: Space,
    base: Choice,
    target: Target,
    oracle: Oracle | None = None,
    settings: FrontSettings | None = None,
    timing: Timing | None = None,
    storage: Path | str | None = None,
    study_name: str | None = None,
    on_trial: Callable[[int, int], None] | None = None,
) -> Front:
    """Search a space for the best nets of every cost.

    Args:
        space: The factors.
        base: Any point of it.
        target: What nets cost, and with a value the most that they may; slower ones are measured, but not scored.
        oracle: Scores nets; by default :func:`proxy_oracle`.
        settings: NSGA-II by default.
        timing: How latency is measured.
        storage: An SQLite file or a URL of Optuna; None keeps everything in memory.
        study_name: Name in the storage; by default the space's, with "-front".
        on_trial: Called at the start, and after each trial of this process, with the nets measured and all of them.

    Raises:
        ValueError: if no net of the space costs so little, none could be scored, or the study was begun with other
            settings.
        RuntimeError: if the database is locked, broken or out of reach.
    """
    settings, oracle, watch = settings or FrontSettings(), oracle or proxy_oracle(), on_trial or (lambda *_: None)
    evaluate = Evaluation(Pricing(space, target, timing), oracle)
    affordable = _Affordable(evaluate.pricing, base)
    sampler = OptunaSampler(space, settings.seed, SAMPLERS[settings.sampler], affordable)
    limit = {"value": target.value, "tolerance": target.tolerance}
    record = {**evaluate.record(), **limit, "method": settings.sampler, "sampler seed": settings.seed}
    objectives = {oracle.name: oracle.maximize, f"cost in {UNITS[target.name]}": False}
    with open_study(study_name or f"{space.name}-front", objectives, record, sampler, storage) as search:
        watch(len(search.complete), settings.steps)

        def measure(trial: Any, choice: Choice) -> list[float]:
            net = evaluate.trial(search, trial, choice, lambda cost: cost <= affordable.most)
            return [value(net), net["cost"]]

        search.run(
            lambda trial: suggest(space, trial),
            measure,
            settings.steps,
            lambda *_: watch(len(search.complete), settings.steps),
        )
        trials = plain_records(search)
    nets = [evaluate.net(record, record["number"]) for record in best_by_cost(trials, oracle)]
    if not nets:
        raise ValueError(f"none of {len(trials)} nets has a score within the budget; raise it, or take more steps")
    return Front(nets, trials)


def best_by_cost(trials: list[Record], oracle: Oracle) -> list[Record]:
    """The records that none beats in both score and cost, cheap to dear."""
    scored = [each for each in trials if each["score"] is not None]
    columns = {"score": [each["score"] for each in scored], "cost": [each["cost"] for each in scored]}
    front = [scored[index] for index in unbeaten(columns, {"score": oracle.maximize, "cost": False})]
    distinct = {each["cost"]: each for each in reversed(front)}  # of equal ones the first
    return [distinct[cost] for cost in sorted(distinct)]


class _Affordable:
    """The points of a space that cost at most the budget; all where cost must be measured.

    Raises:
        ValueError: where no net costs so little.
    """

    def __init__(self, pricing: Pricing, base: Choice) -> None:
        self._pricing, self._space, target = pricing, pricing.space, pricing.target
        self.most = math.inf if target.value is None else target.value * (1 + target.tolerance)
        self._cheapest, _ = ends(pricing, base)
        if pricing.timing is None and self._cost(self._cheapest) > self.most:
            check_counted(pricing, base)

    def allows(self, choice: Choice) -> bool:
        """Whether a choice of known values is one."""
        return self._space.allows(choice) and (self._pricing.timing is not None or self._cost(choice) <= self.most)

    def sample(self, rng: np.random.Generator) -> Choice:
        """One at random."""
        drawn = (self._space.sample(rng) for _ in range(_DRAWS))
        return next(filter(self.allows, drawn), self._cheapest)

    def _cost(self, choice: Choice) -> float:
        counted = self._pricing.counted(choice)
        return counted["macs" if self._pricing.timing is not None else self._pricing.target.name]
