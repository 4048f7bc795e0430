"""Nets within a budget that gates hold most probable."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from .budget import Budget
from .mask_gates import Gates
from .space import Choice

_FIRST = 10_000  # most probable nets that are looked at one by one
_PRICES = 40  # halvings of the interval of prices
_MOST_DRAWS = 20_000


def most_probable(gates: Gates, budget: Budget) -> Choice:
    """The most probable net within a budget, whichever choices give it.

    It is the best of the 10,000 most probable choices; where none of them is within the budget, one on the way between
    a cheaper and a dearer net, or, where options are equally probable and that has none, one that is drawn. No change
    of two decisions betters it.

    Args:
        gates: The gates.
        budget: The budget.

    Raises:
        ValueError: if none is found, with the nearest cost that was seen.
    """
    look, start = _Look(gates, budget), gates.argmax()
    for _, values in zip(range(_FIRST), gates.by_probability(list(gates))):
        look.at(start | values)
        if look.best is not None and gates.idle is None:
            return look.best
    if look.best is not None:
        return look.bettered()
    cheap, dear = look.around(start)
    for choice in (*look.between(cheap, dear), *look.between(dear, cheap)):
        look.at(choice)
    for drawing in (gates, Gates(gates.space, gates.idle)):  # sure gates draw few different nets, undecided ones many
        if look.best is None:
            sampled(drawing, replace(budget, cost=look.at), 1, np.random.default_rng(0))
    if look.best is None:
        raise ValueError(f"no net is found within the budget of {budget}; the nearest has {look.nearest:.6g}")
    return look.bettered()


def sampled(
    gates: Gates, budget: Budget, count: int, rng: np.random.Generator, known: Choice | None = None
) -> list[Choice]:
    """Different nets within a budget, drawn by the gates' probabilities; fewer where 20,000 draws give no more.

    ``known`` is none of them.
    """
    found: dict[tuple[Any, ...], Choice] = {}
    seen = set() if known is None else {gates.net_of(known)}
    for _ in range(_MOST_DRAWS):
        if len(found) == count:
            break
        choice = gates.sample_choice(rng)
        key = gates.net_of(choice)
        if key not in seen and budget.low <= budget.cost(choice) <= budget.high:
            found[key] = choice
        seen.add(key)
    return list(found.values())


def judged_nets(gates: Gates, budget: Budget, count: int, seed: int = 0) -> list[tuple[str, Choice]]:
    """The nets that a search ends with, each with how it was found: "argmax", "moved" into the budget, or "sampled".

    Raises:
        ValueError: No net is found within the budget.
    """
    first = most_probable(gates, budget)
    drawn = sampled(gates, budget, count, np.random.default_rng(seed), known=first)
    how = "argmax" if gates.net_of(first) == gates.net_of(gates.argmax()) else "moved"
    return [(how, first), *(("sampled", choice) for choice in drawn)]


class _Look:
    """Looks for a net, and remembers the most probable one within the budget of all that it has seen."""

    def __init__(self, gates: Gates, budget: Budget) -> None:
        self.gates, self.budget = gates, budget
        self.best: Choice | None = None
        self.best_log = -math.inf
        self.nearest = math.inf
        self._logs = gates.log_probabilities()
        self._costs: dict[tuple[Any, ...], float] = {}

    def log(self, choice: Mapping[str, Any]) -> float:
        """Logarithm of a net's probability, asked for often."""
        return sum(self._logs[name][option] for name, option in self.gates.net_of(choice))

    def at(self, choice: Choice) -> float:
        """The cost of a net, which is remembered."""
        key = tuple(choice.values())
        if key not in self._costs:
            cost = self._costs[key] = self.budget.cost(choice)
            if abs(cost - self.budget.high) < abs(self.nearest - self.budget.high):
                self.nearest = cost
            within = self.budget.low <= cost <= self.budget.high and self.gates.space.allows(choice)
            if within and self.log(choice) > self.best_log:
                self.best, self.best_log = choice, self.log(choice)
        return self._costs[key]

    def around(self, start: Choice) -> tuple[Choice, Choice]:
        """Two nets, not dearer and not cheaper than the budget, best at almost the same price of cost."""
        middle = (self.budget.low + self.budget.high) / 2
        low, high = -1.0, 1.0  # prices; at a higher one nets are cheaper
        while (dear := self._at_price(start, low))[1] < middle and low > -1e6:
            low *= 4
        while (cheap := self._at_price(start, high))[1] > middle and high < 1e6:
            high *= 4
        for _ in range(_PRICES):
            if self.best is not None and high - low < 1e-3 * (abs(low) + abs(high)):
                break
            price = (low + high) / 2
            net = self._at_price(start, price)
            if net[1] > middle:
                low, dear = price, net
            else:
                high, cheap = price, net
        return cheap[0], dear[0]

    def between(self, start: Choice, end: Choice) -> Iterator[Choice]:
        """Nets on a way from one to another, decision by decision, the least probability lost first."""
        apart = [name for name in self._logs if start[name] != end[name]]
        for name in sorted(apart, key=lambda name: self._logs[name][start[name]] - self._logs[name][end[name]]):
            start = start | {name: end[name]}
            yield start

    def bettered(self) -> Choice:
        """The best net, changed in one or two decisions as long as that makes it more probable."""
        before = None
        while self.best is not before:
            before = self.best
            changes = [{name: option} for name, logs in self._logs.items() for option in logs if option != before[name]]
            pairs = (one | other for one, other in combinations(changes, 2) if one.keys() != other.keys())
            for change in (*changes, *pairs):
                if self.log(before | change) > self.best_log:
                    self.at(before | change)
        return self.best

    def _at_price(self, choice: Choice, price: float) -> tuple[Choice, float]:
        """The net of the highest log probability - price * log cost that changes of one decision lead to."""
        value: Callable[[Choice], float] = lambda each: self.log(each) - price * math.log(self.at(each))  # noqa: E731
        while True:
            before = choice
            for name, logs in self._logs.items():
                choice = max((choice | {name: option} for option in logs), key=value)
            if choice == before:
                return choice, self.at(choice)
