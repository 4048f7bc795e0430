"""Nets within a budget: what a net may cost, and how one that costs so much is found."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import check_choice
from ..models.vit_resnas_costs import network_macs, network_params
from .network_space import NetworkSpace
from .space import Choice

_DRAWS = 100  # of channels and blocks for one net, before others are added to what is too small
_STEPS = 100  # down in heads and MLP widths, before channels and blocks follow
_TRIES = 300  # nets that are drawn, in either way, for one within the budget

COSTS: dict[str, Callable[..., int]] = {"macs": network_macs, "params": network_params}


@dataclass(frozen=True)
class Budget:
    """What a net may cost: from ``low`` to ``high``, both included.

    Attributes:
        name: What is counted, such as "macs".
        cost: The cost of a choice; wider nets and those with more blocks cost more.
        high: The most.
        low: The least; the paper's is 0.975 of ``high``.
    """

    name: str
    cost: Callable[[Choice], float]
    high: float
    low: float | None = None

    def __post_init__(self) -> None:
        if self.low is None:
            object.__setattr__(self, "low", 0.975 * self.high)
        if not 0 <= self.low <= self.high < math.inf or not self.high:
            raise ValueError(
                f"budget of {self.name} has low {self.low:g} and high {self.high:g}; high must be positive, and low "
                "from 0 to high"
            )

    def __str__(self) -> str:
        return f"{self.low:.7g} to {self.high:.7g} {self.name}"


def network_cost(
    networks: NetworkSpace,
    name: str,
    img_size: int | tuple[int, int] = 224,
    in_chans: int = 3,
    num_classes: int | None = None,
) -> Callable[[Choice], int]:
    """The cost of a choice by its formula: "macs" or "params", other arguments as ``network_macs`` takes them."""
    check_choice("name", name, tuple(COSTS))
    return lambda choice: COSTS[name](networks.network(choice), img_size, in_chans, num_classes)


class Affordable:
    """The points of a space that are within a budget.

    Args:
        networks: The space.
        budget: The budget.

    Raises:
        ValueError: where the budget is below the smallest net or above the largest.
    """

    def __init__(self, networks: NetworkSpace, budget: Budget) -> None:
        self.networks, self.budget = networks, budget
        self._reach = budget.cost(networks.smallest_choice()), budget.cost(networks.largest_choice())
        self._options = {name: sorted(choices) for name, choices in networks.space.decisions.items()}
        self._odds = {name: self._odds_of(name) for name in networks.space.decisions}
        self._coarse = [name for name, role in networks.roles.items() if role in ("embed", "exists")]
        self._fine = [name for name, role in networks.roles.items() if role in ("heads", "mlp")]
        if budget.high < self._reach[0] or budget.low > self._reach[1]:
            raise ValueError(f"budget is {budget}, which no net has: {self._range}")

    @property
    def _range(self) -> str:
        return f"those of space {self.networks.space.name!r} reach from {self._reach[0]:.4g} to {self._reach[1]:.4g}"

    def allows(self, choice: Mapping[str, Any]) -> bool:
        """Whether a choice of known values meets the constraints and the budget."""
        return self.networks.space.allows(choice) and self.budget.low <= self.budget.cost(choice) <= self.budget.high

    def sample(self, rng: np.random.Generator) -> Choice:
        """A net such as evolution begins with: channels and blocks at random, then heads and MLPs step by step.

        Where no such net meets the constraints, any random one within the budget.

        Raises:
            ValueError: if none of 600 is within the budget; names the nearest one's cost.
        """
        nearest = math.inf
        for draw in (self._shrunk_net, self.networks.space.sample):
            for _ in range(_TRIES):
                choice = draw(rng)
                if not self.networks.space.allows(choice):
                    continue
                cost = self.budget.cost(choice)
                if self.budget.low <= cost <= self.budget.high:
                    return choice
                nearest = min(nearest, cost, key=lambda each: abs(each - self.budget.high))
        raise ValueError(
            f"budget is {self.budget}, which none of {2 * _TRIES} drawn nets has: the nearest has {nearest:.6g}, and "
            f"{self._range}"
        )

    def _shrunk_net(self, rng: np.random.Generator) -> Choice:
        """Random decisions one option down until the net is cheap enough; channels and blocks only if that is slow."""
        choice, cost = self._coarse_net(rng)
        for names in self._shrinking():
            if cost <= self.budget.high:
                break
            name = names[rng.integers(len(names))]
            smaller = self._step_down(name, choice[name], rng)
            if smaller != choice[name]:
                choice = choice | {name: smaller}
                cost = self.budget.cost(choice)
        return choice

    def _coarse_net(self, rng: np.random.Generator) -> tuple[Choice, float]:
        """A net of the largest heads and MLPs whose channels and blocks are drawn until it costs enough."""
        largest = self.networks.largest_choice()
        for _ in range(_DRAWS):
            choice = largest | {name: self._draw(name, rng) for name in self._coarse}
            cost = self.budget.cost(choice)
            if cost >= self.budget.low:
                return choice, cost
        for name in map(str, rng.permutation(self._coarse)):  # only nearly the largest nets cost so much
            choice[name] = largest[name]
            cost = self.budget.cost(choice)
            if cost >= self.budget.low:
                break
        return choice, cost

    def _shrinking(self) -> Iterator[Sequence[str]]:
        """What each step may choose from; enough steps for every decision to reach its smallest value."""
        everything = [*self._coarse, *self._fine]
        yield from [self._fine or everything] * _STEPS
        yield from [everything] * (_STEPS * len(everything))

    def _step_down(self, name: str, value: Any, rng: np.random.Generator) -> Any:
        if self.networks.roles[name] == "exists":
            return min(value, self._draw(name, rng))
        options = self._options[name]
        return options[max(options.index(value) - 1, 0)]

    def _draw(self, name: str, rng: np.random.Generator) -> Any:
        """A value of a decision, as often as it stands in the pool."""
        choices = self.networks.space.decisions[name]
        return choices[np.searchsorted(self._odds[name], rng.random(), side="right")]

    def _odds_of(self, name: str) -> np.ndarray:
        space = self.networks.space
        pool = np.asarray(space.pools.get(name, [1] * len(space.decisions[name])), dtype=float)
        return np.cumsum(pool[:-1]) / pool.sum()
