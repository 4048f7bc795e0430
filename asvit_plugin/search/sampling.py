"""Samplers over a space whose random numbers do not depend on how often the study was killed."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from .space import Choice, Space
from .study import complete_trials

if TYPE_CHECKING:
    from optuna import Study

_TRIES = 100  # draws of a sampler that may not be allowed, before a random point takes their place

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
}


def keyed_generator(seed: int, study: "Study", trial: FrozenTrial) -> np.random.Generator:
    """Random numbers for a trial: the same whenever as much was known when it began.

    The key is (seed, COMPLETE trials, RUNNING trials that began before this one). A trial that was killed has no part
    in it, so the next one draws what the killed one drew; the trial's number would not do.
    """
    key = (1, len(complete_trials(study)), len(running_before(study, trial)))
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def running_before(study: "Study", trial: FrozenTrial) -> list[FrozenTrial]:
    """The RUNNING trials that began before this one."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [other for other in running if other.number < trial.number]


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space's decisions as Optuna's distributions."""
    return {name: CategoricalDistribution(choices) for name, choices in space.decisions.items()}


def suggest(space: Space, trial: "optuna.Trial") -> Choice:
    """The choice of a trial."""
    return {name: trial.suggest_categorical(name, choices) for name, choices in space.decisions.items()}


class Points(Protocol):
    """Points of a space that may be sampled: the space itself, or those of its points that are within a budget."""

    def allows(self, choice: Mapping[str, Any]) -> bool:
        """Whether a choice of known values is one."""

    def sample(self, rng: np.random.Generator) -> Choice:
        """One at random."""


class SpaceSampler(BaseSampler):
    """A sampler of whole points of a space; what is not allowed is drawn again.

    Args:
        space: What it samples.
        seed: Seed of the search.
        points: Which of its points are allowed; by default all.
    """

    def __init__(self, space: Space, seed: int, points: Points | None = None) -> None:
        self.space, self.seed, self.points = space, seed, points or space

    @abstractmethod
    def draw(self, study: "Study", trial: FrozenTrial, rng: np.random.Generator) -> Choice:
        """One value for every decision; it may be a point that is not allowed."""

    def infer_relative_search_space(self, study: "Study", trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space."""
        return distributions(self.space)

    def sample_relative(
        self, study: "Study", trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """An allowed point of the space."""
        rng = keyed_generator(self.seed, study, trial)
        for _ in range(_TRIES):
            choice = self.draw(study, trial, rng)
            if self.points.allows(choice):
                return choice
        return self.points.sample(rng)

    def sample_independent(
        self, study: "Study", trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refused: the space has all decisions."""
        raise ValueError(f"parameter {param_name!r} is no decision of space {self.space.name!r}")


class OptunaSampler(SpaceSampler):
    """One of Optuna's samplers, made anew for every trial from a keyed seed; the study holds all that it knows.

    Args:
        space: What it samples.
        seed: Seed of the search.
        make: Makes the sampler from a seed.
        points: Which of its points are allowed; by default all.
    """

    def __init__(
        self, space: Space, seed: int, make: Callable[[int], BaseSampler], points: Points | None = None
    ) -> None:
        super().__init__(space, seed, points)
        self._make = make
        self._inner = make(seed)

    def before_trial(self, study: "Study", trial: FrozenTrial) -> None:
        """Make the trial's sampler."""
        self._inner = self._make(int(keyed_generator(self.seed, study, trial).integers(2**31)))
        self._inner.before_trial(study, trial)

    def draw(self, study: "Study", trial: FrozenTrial, rng: np.random.Generator) -> Choice:
        """What Optuna's sampler suggests."""
        together = self._inner.sample_relative(study, trial, self._inner.infer_relative_search_space(study, trial))
        return {
            name: together[name] if name in together else self._inner.sample_independent(study, trial, name, each)
            for name, each in distributions(self.space).items()
        }

    def after_trial(
        self, study: "Study", trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Optuna's own."""
        self._inner.after_trial(study, trial, state, values)
