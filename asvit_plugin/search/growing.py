"""Auto-scaling (As-ViT): a seed grows step by step into a family of nets, without training.

Every candidate of every step is a trial of an Optuna study, so a killed run goes on where it was, and several
processes may measure the candidates of a step.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from ..checks import check_choice
from .growth_rule import Size, pick
from .measuring import (
    build_net,
    check_measurement,
    count_costs,
    create_model_line,
    directions,
    input_shape,
    measure_latency,
    measure_scores,
    with_img_size,
)
from .space import Choice, Space
from .steps import Steps
from .study import SearchStudy, open_study

BUDGETS = {"params": "parameters", "macs": "multiply-accumulates", "latency": "seconds"}
NET = "net"  # user attribute of a trial: params, macs, cost, spread of the proxies, seconds


@dataclass(frozen=True)
class GrowthSettings:
    """What growing depends on, beside the space and the seed. The defaults are As-ViT's.

    Attributes:
        budget: What is limited: "params", "macs" of one image, or "latency", seconds for one image on this machine.
        low: Growing ends with the first net of at least this.
        high: Nets of more are no candidates.
        proxies: Names of the scores, of ``asvit_plugin.search.PROXIES``.
        seed: Of all proxies: every candidate is measured by the same random numbers.
        repeats: Draws of weights per net and proxy.
        img_size: Image side in pixels, where the seed does not decide it; None for the model's own.
        device: Where nets are measured.
    """

    budget: str = "params"
    low: float = 80e6
    high: float = 110e6
    proxies: tuple[str, ...] = ("ntk_condition", "length_distortion")
    seed: int = 27
    repeats: int = 5
    img_size: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_choice("budget", self.budget, tuple(BUDGETS))
        if not 0 < self.low <= self.high:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}; they must be positive, low at most high")
        check_measurement(self.proxies, self.seed, self.repeats, self.img_size)

    @property
    def maximize(self) -> dict[str, bool]:
        """For each proxy, whether more is better."""
        return directions(self.proxies)


@dataclass(frozen=True)
class Grown:
    """One net of a family.

    Attributes:
        step: Number of the step that chose it, from 1.
        size: Depths and the width of the thin net that was measured.
        model: timm's name of the model.
        arguments: Further arguments of ``timm.create_model``.
        params: Parameters.
        macs: Multiply-accumulates of one image.
        cost: What the budget limits.
        values: Value of each proxy, of the thin net.
    """

    step: int
    size: Size
    model: str
    arguments: dict[str, Any]
    params: int
    macs: int
    cost: float
    values: dict[str, float]

    @property
    def line(self) -> str:
        """The call of ``timm.create_model`` that makes the net."""
        return create_model_line(self.model, self.arguments)


def grow(
    space: Space,
    seed: Choice,
    settings: GrowthSettings | None = None,
    storage: Path | str | None = None,
    study_name: str | None = None,
    on_trial: Callable[[int, int, int], None] | None = None,
) -> list[Grown]:
    """Grow a seed to its budget.

    Args:
        space: Says how its nets grow (``growth``).
        seed: Decisions that stay; any values that the model takes.
        settings: The paper's by default.
        storage: An SQLite file or a URL of Optuna; None keeps everything in memory.
        study_name: Name in the storage; by default the space's, with "-growth".
        on_trial: Called with the step, the candidates measured in it, and all of them.

    Returns:
        The net of every step, small to large.

    Raises:
        ValueError: if the space does not say how it grows, the seed lacks a decision, no net meets the budget, or the
            study was begun with other settings.
    """
    settings = settings or GrowthSettings()
    rule = space.growth
    if rule is None:
        raise ValueError(f"space {space.name!r} has no growth, which says how its nets grow")
    missing = sorted(rule.names - set(seed) - set(rule.start))
    if missing:
        raise ValueError(f"the seed lacks {missing[0]!r}; it must have {sorted(rule.names - set(rule.start))}")
    step = _Step(space, {name: seed[name] for name in sorted(rule.names - set(rule.start))}, settings)
    name = study_name or f"{space.name}-growth"
    sampler = optuna.samplers.RandomSampler(seed=0)  # there is nothing to draw
    with open_study(name, settings.maximize, step.record(), sampler, storage) as search:
        return _grow(search, step, on_trial or (lambda *_: None))


def _grow(search: SearchStudy, step: "_Step", watch: Callable[[int, int, int], None]) -> list[Grown]:
    steps, size, number, family = Steps(search, watch), dict(step.rule.start), 1, []
    while True:
        candidates = step.rule.candidates(size)
        trials = steps.run(number, candidates, step.measure)
        grown = step.choose(trials, number, candidates)
        if grown is None:
            break
        family.append(grown)
        size, number = grown.size, number + 1
        if grown.cost >= step.settings.low:
            return family
    if not family:
        raise ValueError(
            f"high is {step.settings.high:g} {BUDGETS[step.settings.budget]}; the smallest net that the seed grows "
            f"into has {min(trial.user_attrs[NET]['cost'] for trial in trials):g}"
        )
    return family


class _Step:
    """One step's candidates, as trials."""

    def __init__(self, space: Space, seed: Choice, settings: GrowthSettings) -> None:
        self.space, self.model, self.rule, self.scoring = space.name, space.model, space.growth, dict(space.scoring)
        self.seed, self.settings = seed, settings

    def record(self) -> dict[str, Any]:
        """All that the trials depend on."""
        rule = {"model": self.model, **asdict(self.rule), "scoring": self.scoring}
        return {"growth": rule, "seed net": self.seed, **_without_device(self.settings)}

    def arguments(self, size: Mapping[str, int]) -> dict[str, Any]:
        """Arguments of ``timm.create_model`` for a size."""
        return with_img_size(self.space, self.rule.arguments(self.seed, size), self.settings.img_size)

    def thin_arguments(self, size: Mapping[str, int]) -> dict[str, Any]:
        """The same for the net that is scored."""
        arguments = {**self.rule.arguments(self.seed, size, thin=True), **self.scoring}
        return with_img_size(self.space, arguments, self.settings.img_size)

    def measure(self, trial: "optuna.Trial", size: Size) -> list[float]:
        """The scores of a candidate; one that exceeds the budget is not measured."""
        begin = time.perf_counter()
        net: dict[str, Any] = count_costs(self.model, self.arguments(size))
        net["cost"] = self._latency(size) if self.settings.budget == "latency" else net[self.settings.budget]
        values = dict.fromkeys(self.settings.proxies, math.nan)
        if net["cost"] <= self.settings.high:
            settings = self.settings
            chosen = settings.proxies, settings.repeats, settings.seed, settings.device
            values, net["spread"] = measure_scores(self.model, self.thin_arguments(size), *chosen)
        trial.set_user_attr(NET, {**net, "seconds": round(time.perf_counter() - begin, 3)})
        return list(values.values())

    def choose(self, trials: Sequence[FrozenTrial], number: int, candidates: list[Size]) -> Grown | None:
        """The net that a step takes; None if all exceed the budget."""
        within = [i for i, trial in enumerate(trials) if trial.user_attrs[NET]["cost"] <= self.settings.high]
        if not within:
            return None
        values = {
            name: [trials[index].values[place] for index in within] for place, name in enumerate(self.settings.proxies)
        }
        chosen = pick(values, self.settings.maximize)
        index, net = within[chosen], trials[within[chosen]].user_attrs[NET]
        scores = {name: column[chosen] for name, column in values.items()}
        costs = {name: net[name] for name in ("params", "macs", "cost")}
        return Grown(number, candidates[index], self.model, self.arguments(candidates[index]), **costs, values=scores)

    def _latency(self, size: Mapping[str, int]) -> float:
        arguments = self.arguments(size)
        model = build_net(self.model, arguments)
        return measure_latency(model, input_shape(model, arguments), self.settings.device)


def _without_device(settings: GrowthSettings) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if name != "device"}
