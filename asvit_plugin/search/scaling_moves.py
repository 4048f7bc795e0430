"""The moves of scaling: one factor towards a budget, or one that gives and another that takes at equal cost.

Costs are looked at as progress, the logarithm of the cost over that of the base, with its sign turned where nets
shrink: so growing to a budget and shrinking to one are the same walk.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from .scaling_costs import Pricing
from .space import Choice

_FAR = math.log(1.5)


@dataclass(frozen=True)
class Priced:
    """A point and what it costs."""

    choice: Choice
    cost: float


class Moves:
    """Moves in a space.

    Args:
        pricing: What points cost.
        base: Where scaling begins.
        sign: 1 where nets grow, -1 where they shrink.
    """

    def __init__(self, pricing: Pricing, base: Priced, sign: int = 1) -> None:
        self.pricing, self.space, self.base, self.sign = pricing, pricing.space, base, sign
        self.factors = [name for name, choices in self.space.decisions.items() if len(choices) > 1]

    def progress(self, cost: float) -> float:
        """How far a cost is from the base's."""
        return self.sign * math.log(cost / self.base.cost)

    def trials(self, net: Priced) -> list[Choice]:
        """For each factor a change to cheaper and one to dearer nets, so far that it tells what the factor costs."""
        found = []
        for factor in self.factors:
            allowed = [each for each in self._changed(net.choice, factor) if self.space.allows(each)]
            there = [(self._guess(each, net) - self.progress(net.cost), each) for each in allowed]
            for sign in (-1, 1):
                side = [each for each in there if sign * each[0] > 0]
                found += [min(side, key=lambda each: abs(abs(each[0]) - _FAR))[1]] if side else []
        return found

    def single(self, net: Priced, limit: float) -> list[Choice]:
        """For each factor the farthest change that is not beyond a limit; where costs are guessed, the nearest too."""
        found = []
        for factor in self.factors:
            there = [(self._guess(choice, net), choice) for choice in self._changed(net.choice, factor)]
            there = [each for each in there if self.progress(net.cost) < each[0] <= limit]
            there = sorted((each for each in there if self.space.allows(each[1])), key=lambda each: each[0])
            found += [choice for _, choice in there[-1:]]
            if self.pricing.timing is not None:
                found += [choice for _, choice in there[:-1][:1]]
        return found

    def pairs(self, net: Priced, goal: float, slack: float) -> list[Choice]:
        """For each two factors, the mildest change of the first to less that the second makes up for, near a goal."""
        found = []
        for less, more in permutations(self.factors, 2):
            shrunk = [(self._guess(choice, net), choice) for choice in self._changed(net.choice, less)]
            shrunk = [each for each in shrunk if each[0] < self.progress(net.cost)]
            for _, smaller in sorted(shrunk, key=lambda each: -each[0]):
                if near := self._back_to(smaller, more, net, goal, slack):
                    found.append(near)
                    break
        return found

    def _back_to(self, smaller: Choice, factor: str, net: Priced, goal: float, slack: float) -> Choice | None:
        """The change of a factor that brings a smaller net nearest to a goal, if it is near."""
        there = [(abs(self._guess(choice, net) - goal), choice) for choice in self._changed(smaller, factor)]
        there = [each for each in there if each[0] <= slack and self.space.allows(each[1])]
        return min(there, key=lambda each: each[0])[1] if there else None

    def _changed(self, choice: Choice, factor: str) -> list[Choice]:
        values = self.space.decisions[factor]
        return [{**choice, factor: value} for value in values if value != choice[factor]]

    def _guess(self, choice: Choice, net: Priced) -> float:
        return self.progress(self.pricing.guess(choice, net.choice, net.cost))


def describe(before: Choice, after: Choice) -> str:
    """What a move changes, such as "depth 12 -> 14"."""
    return ", ".join(f"{name} {before[name]} -> {after[name]}" for name in after if after[name] != before[name])


def unique(choices: Sequence[Choice]) -> list[Choice]:
    """Choices without those that were there before."""
    return list({tuple(choice.items()): choice for choice in reversed(choices)}.values())[::-1]
