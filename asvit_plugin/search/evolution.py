"""ViT-ResNAS's evolutionary search as an Optuna sampler (Liao, Karaman, Sze, arXiv 2109.00642)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from .budget import Affordable, Budget
from .network_space import NetworkSpace
from .sampling import SpaceSampler, running_before
from .space import Choice
from .study import complete_trials

if TYPE_CHECKING:
    from optuna import Study

_REPEATS = 100  # nets drawn anew because they were drawn before; then a repeated one will do
_CHILDREN = 1_000  # of the same parents, for one within the budget; then a random net takes their place
_FATHER = 0.5  # probability of a crossover's decision to be the second parent's


@dataclass(frozen=True)
class EvolutionSettings:
    """How the evolution goes; the defaults are the paper's.

    Attributes:
        population: Random nets to begin with.
        parents: The best of all nets so far, which the next generation descends from.
        mutations: Nets of a generation that are mutants of one parent.
        crossovers: Nets of a generation, after those, that mix two.
        mutate_prob: Probability of a mutant's decision to be drawn anew.
        iterations: Generations, the random nets included.
    """

    population: int = 500
    parents: int = 75
    mutations: int = 75
    crossovers: int = 75
    mutate_prob: float = 0.3
    iterations: int = 20

    def __post_init__(self) -> None:
        for field in fields(self):
            value, smallest = getattr(self, field.name), 0 if field.name in ("mutations", "crossovers") else 1
            if field.type is int and (type(value) is not int or value < smallest):
                raise ValueError(f"{field.name} is {value!r}; it must be a whole number of at least {smallest}")
        if not 2 <= self.parents <= self.population:
            raise ValueError(
                f"parents is {self.parents} with population={self.population}; it must be at least 2 and at most "
                "population"
            )
        if self.generation == 0:
            raise ValueError("mutations and crossovers are both 0; a generation must have at least one net")
        if not 0 < self.mutate_prob <= 1:
            raise ValueError(f"mutate_prob is {self.mutate_prob!r}; it must be over 0 and at most 1")

    @property
    def generation(self) -> int:
        """Nets of each generation after the first."""
        return self.mutations + self.crossovers

    @property
    def trials(self) -> int:
        """Nets of the whole search."""
        return self.population + (self.iterations - 1) * self.generation


class EvolutionSampler(SpaceSampler):
    """The paper's evolution within a budget; all that it knows are the study's COMPLETE trials, in their order.

    A trial's place in the algorithm is the number of COMPLETE trials, and of RUNNING ones that began before it. The
    random nets come first; then each generation descends from the best nets that were there when it began, by the
    study's first objective. A net that was drawn before is drawn again, up to 100 times, for the widths of few parents
    are soon used up.

    What differs from the authors' code: no loop is without end (where 1,000 children of the same parents are all
    beyond the budget, a random net takes their place), and a net that breaks the space's constraints is rejected.

    Args:
        networks: What it samples.
        budget: What every net costs.
        seed: Of all draws.
        settings: The paper's by default.

    Raises:
        ValueError: where the budget is below the smallest net or above the largest.
    """

    def __init__(
        self, networks: NetworkSpace, budget: Budget, seed: int = 0, settings: EvolutionSettings | None = None
    ) -> None:
        self.affordable = Affordable(networks, budget)
        super().__init__(networks.space, seed, self.affordable)
        self.networks, self.settings = networks, settings or EvolutionSettings()
        self._ranked: tuple[list[int], list[Choice]] = ([], [])

    def draw(self, study: "Study", trial: FrozenTrial, rng: np.random.Generator) -> Choice:
        """The next net of the algorithm.

        Raises:
            ValueError: if no random net is within the budget; names the nearest one's cost.
        """
        complete, running = complete_trials(study), running_before(study, trial)
        place = len(complete) + len(running)
        parents = self.parents(study, place)
        drawn = [each.params for each in (*complete, *running)]
        for _ in range(_REPEATS):
            choice = self._individual(place, parents, rng)
            if choice not in drawn:
                break
        return choice

    def parents(self, study: "Study", place: int) -> list[Choice]:
        """The best distinct nets, best first, of those that were there when the trial's generation began."""
        settings = self.settings
        generation = max(0, (place - settings.population) // settings.generation + 1)
        if generation == 0:
            return []
        begun = settings.population + (generation - 1) * settings.generation
        history = complete_trials(study)[:begun]
        numbers = [trial.number for trial in history]
        if self._ranked[0] != numbers:
            self._ranked = numbers, self._best(history, study.directions[0] is StudyDirection.MAXIMIZE)
        return self._ranked[1]

    def _best(self, history: Sequence[FrozenTrial], maximize: bool) -> list[Choice]:
        ranked = sorted(history, key=lambda trial: -trial.values[0] if maximize else trial.values[0])
        distinct = {tuple(trial.params[name] for name in self.space.decisions): None for trial in ranked}
        return [dict(zip(self.space.decisions, values)) for values in distinct][: self.settings.parents]

    def _individual(self, place: int, parents: Sequence[Choice], rng: np.random.Generator) -> Choice:
        if len(parents) < 2:  # the first nets, or others are at work on all of those
            return self.affordable.sample(rng)
        mutant = (place - self.settings.population) % self.settings.generation < self.settings.mutations
        chosen = [parents[index] for index in rng.choice(len(parents), 1 if mutant else 2, replace=False)]
        for _ in range(_CHILDREN):
            child = self.mutate(chosen[0], rng) if mutant else self.cross(*chosen, rng)
            if self.affordable.allows(child):
                return child
        return self.affordable.sample(rng)

    def mutate(self, parent: Mapping[str, Any], rng: np.random.Generator) -> Choice:
        """A net some of whose widths are drawn anew and some of whose blocks come or go; it may cost anything."""
        anew = rng.random(len(parent)) < self.settings.mutate_prob
        return {
            name: self._other(name, parent[name], rng) if again else parent[name]
            for name, again in zip(self.space.decisions, anew)
        }

    def cross(self, mother: Mapping[str, Any], father: Mapping[str, Any], rng: np.random.Generator) -> Choice:
        """A net that has each decision from either parent; it may cost anything."""
        fathers = rng.random(len(mother)) < _FATHER
        return {name: (father if his else mother)[name] for name, his in zip(self.space.decisions, fathers)}

    def _other(self, name: str, value: Any, rng: np.random.Generator) -> Any:
        """A width's draw may give the same again; a block's presence changes."""
        choices = self.space.decisions[name]
        if self.networks.roles[name] == "exists":
            choices = [choice for choice in choices if choice != value]
        return choices[rng.integers(len(choices))]
