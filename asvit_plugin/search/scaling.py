"""Scaling a net for a budget, step by step, by whatever factor gains most for its cost on this device.

The procedure is ours: a greedy walk, or one with a beam, over the factors of a space. Every net that a step looks at is
a trial of an Optuna study, so a killed run goes on where it was, and several processes may measure the nets of a step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from .scaling_costs import Pricing, Target, Timing
from .scaling_courses import BudgetCourse, Course, EqualCourse
from .scaling_moves import Moves, Priced, describe, unique
from .scaling_nets import NET, Evaluation, Record, ScaledNet, plain_records, value
from .scaling_oracle import Oracle, proxy_oracle
from .scaling_reach import check_counted, check_reach, ends
from .space import Choice, Space
from .steps import Steps
from .study import open_study

_NEAR = 4  # times the cost of a net: those that cost more or less say little about its latency


@dataclass(frozen=True)
class ScalingSettings:
    """How scaling goes.

    Attributes:
        iso: Stay at the base's cost: what one factor gives another takes. Else go to the target's value.
        growth: Ratio of one step's budget to the one before, where nets grow; where they shrink its inverse.
        beam: Paths that are followed at once; 1 is greedy.
        steps: Steps at most; None for as many as there are.
    """

    iso: bool = False
    growth: float = 1.25
    beam: int = 1
    steps: int | None = None

    def __post_init__(self) -> None:
        if not 1 < self.growth < math.inf:
            raise ValueError(f"growth is {self.growth!r}; it must be above 1 and finite")
        for name, number in (("beam", self.beam), ("steps", self.steps)):
            if number is not None and (type(number) is not int or number < 1):
                raise ValueError(f"{name} is {number!r}; it must be a whole number of at least 1")


@dataclass(frozen=True)
class Scaled:
    """The outcome of scaling.

    Attributes:
        path: The base, and the net of every step.
        end: Why it ended: "budget" (it is met), "no gain", "no move" (none is left within the budget), "steps"; of a
            strategy that was applied "missed", where no net that was looked at met the budget.
        trials: Every COMPLETE trial: number, step, choice, score (None where there is none), params, macs, cost,
            seconds, and of a latency p10, p90 and drift.
    """

    path: list[ScaledNet]
    end: str
    trials: list[Record]


def scale(
    space: Space,
    base: Choice,
    target: Target,
    oracle: Oracle | None = None,
    settings: ScalingSettings | None = None,
    timing: Timing | None = None,
    storage: Path | str | None = None,
    study_name: str | None = None,
    on_trial: Callable[[int, int, int], None] | None = None,
) -> Scaled:
    """Scale a net to a budget, or reshape it at its own.

    Args:
        space: The factors; all decisions are numbers.
        base: The point to begin with.
        target: The budget; without a value, or that of the base itself, only ``settings.iso`` goes anywhere.
        oracle: Scores nets; by default :func:`proxy_oracle`.
        settings: Greedily to the budget by default.
        timing: How latency is measured.
        storage: An SQLite file or a URL of Optuna; None keeps everything in memory.
        study_name: Name in the storage; by default the space's.
        on_trial: Called with the step, the nets measured in it, and all of them.

    Raises:
        ValueError: if the base is no point of the space, no net of it costs so little or so much, a decision is no
            number, or the study was begun with other settings.
        RuntimeError: if the database is locked, broken or out of reach.
    """
    settings, oracle = settings or ScalingSettings(), oracle or proxy_oracle()
    space.check(base)
    _check_numbers(space)
    _check_mode(target, settings)
    pricing = Pricing(space, target, timing)
    evaluate = Evaluation(pricing, oracle)
    record = _study_settings(evaluate, base, target, settings)
    sampler = optuna.samplers.RandomSampler(seed=0)  # there is nothing to draw
    with open_study(study_name or space.name, {oracle.name: oracle.maximize}, record, sampler, storage) as search:
        walk = _Walk(Steps(search, on_trial or (lambda *_: None)), evaluate, base, target, settings)
        end, best = walk.run()
        return Scaled(walk.nets(best), end, plain_records(search))


def _check_numbers(space: Space) -> None:
    for name, choices in space.decisions.items():
        for each in choices:
            if isinstance(each, bool) or not isinstance(each, (int, float)):
                raise ValueError(f"decision {name!r} of space {space.name!r} has {each!r}; scaling takes numbers only")


def _check_mode(target: Target, settings: ScalingSettings) -> None:
    if settings.iso != (target.value is None):
        given = "no budget" if target.value is None else f"a budget of {target.value:g}"
        raise ValueError(
            f"iso is {settings.iso} with {given}; at equal cost the base is the budget, else one is needed"
        )


def _study_settings(evaluate: Evaluation, base: Choice, target: Target, settings: ScalingSettings) -> dict[str, Any]:
    """All that the trials depend on; a run of more steps may go on with them."""
    chosen = {name: getattr(settings, name) for name in ("iso", "growth", "beam")}
    limit = {"value": target.value, "tolerance": target.tolerance}
    return {"method": "path, latency guessed from nets", **evaluate.record(), "base": base, **limit, **chosen}


@dataclass(frozen=True)
class _Path:
    """Nets one after the other, as (step, record)."""

    nets: tuple[tuple[int, Record], ...]

    @property
    def last(self) -> Record:
        return self.nets[-1][1]

    @property
    def priced(self) -> Priced:
        return Priced(self.last["choice"], self.last["cost"])

    def new(self, choices: list[Choice]) -> list[Choice]:
        """Those that the path has not been at: what is guessed changes, and would lead round in circles."""
        been = [record["choice"] for _, record in self.nets]
        return [choice for choice in choices if choice not in been]


class _Walk:
    """The steps from the base on."""

    def __init__(
        self, steps: Steps, evaluate: Evaluation, base: Choice, target: Target, settings: ScalingSettings
    ) -> None:
        self.steps, self.evaluate, self.pricing = steps, evaluate, evaluate.pricing
        self.base, self.target, self.settings = base, target, settings
        self.measured: list[Record] = []  # in all steps so far, whoever measured them and when
        self.ended: list[tuple[str, _Path]] = []

    def run(self) -> tuple[str, _Path]:
        """Why the best path ended, and the path: of those that met the budget, else of the others."""
        start = self._start()
        course = self._course(start)
        paths, step, stage = [_Path(((0, start),))], 1, 1
        while paths := self._not_arrived(paths, course):
            self._learn(paths)
            proposals = [path.new(course.proposals(path.priced, stage)) for path in paths]
            candidates = unique([choice for each in proposals for choice in each])
            if candidates and step > (self.settings.steps or math.inf):
                self.ended += [("steps", path) for path in paths]
                break
            found = self._measure(step, candidates, lambda _, cost: course.accepts(cost, stage))  # noqa: B023
            taken = [[each for each in found if each["choice"] in choices] for choices in proposals]
            paths = self._follow(paths, taken, course, step, stage)
            step, stage = step + bool(candidates), min(stage + 1, course.stages)
        return min(self.ended, key=lambda each: (each[0] != "budget", -self._worth(each[1].last)))

    def nets(self, path: _Path) -> list[ScaledNet]:
        """A path as nets, each with its move."""
        before = [path.nets[0], *path.nets]
        return [
            self.evaluate.net(record, step, describe(last["choice"], record["choice"]))
            for (_, last), (step, record) in zip(before, path.nets)
        ]

    def _measure(self, step: int, choices: list[Choice], wanted: Callable[[Choice, float], bool]) -> list[Record]:
        """The records of a step's nets, in their order; those that are not wanted at their cost have no score."""
        search, trial_of = self.steps.search, self.evaluate.trial

        def measure(trial: optuna.Trial, choice: Choice) -> list[float]:
            return [value(trial_of(search, trial, choice, lambda cost: wanted(choice, cost)))]

        found = [trial.user_attrs[NET] for trial in self.steps.run(step, choices, measure)]
        self.measured += found
        return found

    def _start(self) -> Record:
        """The base, measured and scored; refuses a budget that no net meets."""
        timed, wanted = self.pricing.timing is not None, self.target.value
        if wanted is not None and not timed:
            check_counted(self.pricing, self.base)
        smallest = [ends(self.pricing, self.base)[0]] if timed and wanted is not None else []
        # Where a step has only pairs to look at, what single factors do to the latency must be known before.
        net = Priced(self.base, 1.0)
        others = Moves(self.pricing, net).trials(net) if timed and wanted is None else []
        nets = unique([self.base, *smallest, *others])
        base, *others = self._measure(0, nets, lambda choice, _: choice == self.base)
        if base["score"] is None:
            raise ValueError(f"the base has no {self.evaluate.oracle.name}; scaling needs a base that can be scored")
        if smallest:
            check_reach(self.pricing, smallest[0], [base, *others][-1]["cost"])
        return base

    def _learn(self, paths: list[_Path]) -> None:
        """Let nets that cost about as much as those of the paths improve what is guessed of others."""
        costs = [path.last["cost"] for path in paths]
        near = [net for net in self.measured if any(1 / _NEAR < net["cost"] / cost < _NEAR for cost in costs)]
        self.pricing.learn(near)

    def _course(self, start: Record) -> Course:
        base, wanted = Priced(self.base, start["cost"]), self.target.value
        if wanted is None:
            return EqualCourse(Moves(self.pricing, base), self.target)
        moves = Moves(self.pricing, base, 1 if wanted >= start["cost"] else -1)
        return BudgetCourse(moves, self.target, wanted, self.settings.growth)

    def _not_arrived(self, paths: list[_Path], course: Course) -> list[_Path]:
        self.ended += [("budget", path) for path in paths if course.arrived(path.last["cost"])]
        return [path for path in paths if not course.arrived(path.last["cost"])]

    def _follow(
        self, paths: list[_Path], found: list[list[Record]], course: Course, step: int, stage: int
    ) -> list[_Path]:
        """The paths that go on: the best moves, and those that wait for the next budget."""
        moved, waiting = [], []
        for path, records in zip(paths, found):
            taken = [each for each in records if each["score"] is not None and course.accepts(each["cost"], stage)]
            gains = [(self._gain(course, path, each), path, each) for each in taken]
            better = [each for each in gains if each[0] > 0 or not course.must_gain]
            if better:
                moved += better
            elif stage < course.stages:
                waiting.append(path)
            else:
                self.ended.append(("no gain" if taken else "no move", path))
        moved.sort(key=lambda each: -each[0])
        ends = unique([record["choice"] for *_, record in moved])
        best = [next(each for each in moved if each[2]["choice"] == choice) for choice in ends]
        extended = [_Path((*path.nets, (step, record))) for _, path, record in best]
        return (extended + waiting)[: self.settings.beam]

    def _gain(self, course: Course, path: _Path, record: Record) -> float:
        return course.gain(path.last["cost"], record["cost"], self._worth(record) - self._worth(path.last))

    def _worth(self, record: Record) -> float:
        return self.evaluate.oracle.worth(record["score"])
