"""Where scaling goes: to a budget by steps of a fixed ratio, or on at the same budget."""

import math
from typing import Protocol

from .scaling_costs import Target
from .scaling_moves import Moves, Priced
from .space import Choice

_ROUNDING = 1e-9  # of a logarithm


class Course(Protocol):
    """Which moves a step looks at, and what they are worth.

    Attributes:
        stages: Budgets on the way; the last one stays.
        must_gain: Whether only a net that is better than the one before is taken.
    """

    stages: int
    must_gain: bool

    def proposals(self, net: Priced, stage: int) -> list[Choice]:
        """Nets one move away."""

    def accepts(self, cost: float, stage: int) -> bool:
        """Whether a net of this cost may follow."""

    def gain(self, before: float, cost: float, difference: float) -> float:
        """What a net of this cost is worth whose score is so much better than one of the cost before."""

    def arrived(self, cost: float) -> bool:
        """Whether a net of this cost ends the path."""


class BudgetCourse:
    """From the base to a budget, by budgets that each are ``growth`` times the one before, or that part of it.

    Moves change one factor; at the last budget pairs of factors that meet it are looked at too. A move is worth the
    difference of the score over that of the logarithm of the cost, which counts as at least the tolerance.
    """

    def __init__(self, moves: Moves, target: Target, goal: float, growth: float) -> None:
        self._moves, self._slack = moves, target.slack + _ROUNDING
        self._goal, self._stride = moves.progress(goal), math.log(growth)
        self.stages = max(math.ceil(self._goal / self._stride - _ROUNDING), 1)
        self.must_gain = moves.sign > 0

    def proposals(self, net: Priced, stage: int) -> list[Choice]:
        """Single changes, and at the last budget pairs."""
        single = self._moves.single(net, self._limit(stage))
        return single if stage < self.stages else [*single, *self._moves.pairs(net, self._goal, self._slack)]

    def accepts(self, cost: float, stage: int) -> bool:
        """Nets up to the step's budget; measured ones may have turned out no dearer than the one before."""
        return self._moves.progress(cost) <= self._limit(stage)

    def gain(self, before: float, cost: float, difference: float) -> float:
        """Difference of the score over that of the logarithm of the cost."""
        return difference / max(self._moves.progress(cost) - self._moves.progress(before), self._slack)

    def arrived(self, cost: float) -> bool:
        """Whether the cost is the budget, within the tolerance."""
        return self._moves.progress(cost) >= self._goal - self._slack

    def _limit(self, stage: int) -> float:
        return min(stage * self._stride, self._goal) + self._slack


class EqualCourse:
    """On at the base's cost by pairs of factors, as long as the score rises."""

    stages, must_gain = 1, True

    def __init__(self, moves: Moves, target: Target) -> None:
        self._moves, self._slack = moves, target.slack + _ROUNDING

    def proposals(self, net: Priced, stage: int) -> list[Choice]:
        """Pairs of factors, of which one gives what the other takes."""
        return self._moves.pairs(net, 0.0, self._slack)

    def accepts(self, cost: float, stage: int) -> bool:
        """Nets of the base's cost, within the tolerance."""
        return abs(self._moves.progress(cost)) <= self._slack

    def gain(self, before: float, cost: float, difference: float) -> float:
        """The difference of the score alone."""
        return difference

    def arrived(self, cost: float) -> bool:
        """Never: it ends where nothing is gained."""
        return False
