"""A strategy applied to a net: the net of a space that a strategy leads to at a budget, without a score."""

import heapq
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise

from .scaling import Scaled
from .scaling_costs import Pricing, Target, Timing
from .scaling_families import factor_of
from .scaling_moves import describe
from .scaling_nets import Record, ScaledNet
from .scaling_reach import check_counted
from .scaling_strategy import Strategy, check_factor
from .space import Choice, Space

_LOOKED = 2000  # nets near the curve that are priced, at most
_ROUNDING = 1e-9  # of a logarithm
_PAST = 1.0001  # just beyond the last turn


def apply_strategy(
    strategy: Strategy, space: Space, base: Choice, target: Target, timing: Timing | None = None, tries: int = 8
) -> Scaled:
    """Scale a net by a strategy.

    The strategy is a curve in the logarithms of the factors, base * s ** exponents. It is followed to where its nets
    meet the budget; the net is the one nearest to that point which meets the budget too. Exponents go to the decisions
    of the space by name (see :meth:`Strategy.exponent`), and all stages of a pyramid together weigh as much as one
    factor. A latency is guessed from the most similar net that was measured, and measured, until one meets the
    budget.

    Args:
        strategy: Fitted to any budget, device and runtime.
        space: Factors of the net; all decisions are positive numbers.
        base: The point to begin with.
        target: The budget.
        timing: How latency is measured.
        tries: Nets beside the base that may be measured.

    Returns:
        The base and the net as a path, without scores. It ends by "budget", or by "missed": then no net that was looked
        at meets the budget, and this one is the nearest to it.

    Raises:
        ValueError: The target has no value, no net of the space has so few or so many MACs or parameters, or the
            strategy moves no factor of the space.
    """
    if target.value is None:
        raise ValueError("the target has no value; a strategy needs a budget to lead to")
    if type(tries) is not int or tries < 1:
        raise ValueError(f"tries is {tries!r}; it must be a whole number of at least 1")
    space.check(base)
    curve, pricing = Curve(strategy, space, base), Pricing(space, target, timing)
    if pricing.timing is None:  # what latency can reach only measurements tell
        check_counted(pricing, base)
    trials = [_measured(pricing, base, 0)]
    while not _meets(_off(trials[-1]["cost"], target), target) and len(trials) <= tries:
        near = _next(curve, pricing, target, trials)
        if near is None:
            break
        trials.append(_measured(pricing, near, len(trials)))
    best = min(trials, key=lambda each: _off(each["cost"], target))
    path = [
        _net(space, base, each, step)
        for step, each in enumerate([trials[0], *([best] if best is not trials[0] else [])])
    ]
    return Scaled(path, "budget" if _meets(_off(best["cost"], target), target) else "missed", trials)


class Curve:
    """The points base * s ** exponents, and the nets of a space around them.

    Raises:
        ValueError: The strategy moves no factor of the space, or a factor has values that are no positive numbers.
    """

    def __init__(self, strategy: Strategy, space: Space, base: Choice) -> None:
        for name, values in space.decisions.items():
            check_factor(name, values)
        self._space, self._base = space, base
        self.exponents = {name: strategy.exponent(name) or 0.0 for name in space.decisions}
        if not any(self.exponents[name] for name, values in space.decisions.items() if len(values) > 1):
            raise ValueError(
                f"the strategy moves {_moved(strategy)}, which the space {space.name!r} of {list(space.decisions)} "
                "cannot follow"
            )
        stages = [factor_of(name) for name in space.decisions]
        self._weights = {name: 1 / stages.count(factor_of(name)) for name in space.decisions}

    def between(self, one: Choice, other: Choice) -> float:
        """Squared distance of two nets, in logarithms of factors."""
        return math.fsum(weight * math.log(one[name] / other[name]) ** 2 for name, weight in self._weights.items())

    def distance(self, choice: Choice, position: float) -> float:
        """Squared distance of a net from the point s = exp(position), in logarithms of factors."""
        return math.fsum(self._part(name, choice[name], position) for name in self._space.decisions)

    def nearest(self, position: float) -> Iterator[Choice]:
        """All nets, by their distance from the point s = exp(position)."""
        names, decisions = list(self._space.decisions), self._space.decisions.items()
        ranked = [sorted((self._part(name, each, position), each) for each in values) for name, values in decisions]
        for indices in _by_sum([[part for part, _ in values] for values in ranked]):
            choice = {name: values[index][1] for name, values, index in zip(names, ranked, indices)}
            if self._space.allows(choice):
                yield choice

    def turns(self, sign: int) -> list[float]:
        """Positions of a sign, the nearest first, at which the nearest value of a factor changes."""
        found = set()
        for name, values in self._space.decisions.items():
            if exponent := self.exponents[name]:
                logs = [math.log(value / self._base[name]) for value in sorted(values)]
                found |= {(low + high) / 2 / exponent for low, high in pairwise(logs)}
        return sorted((each for each in found if each * sign > 0), key=abs)

    def _part(self, name: str, value: float, position: float) -> float:
        off = math.log(value / self._base[name]) - position * self.exponents[name]
        return self._weights[name] * off**2


def _next(curve: Curve, pricing: Pricing, target: Target, trials: Sequence[Record]) -> Choice | None:
    """The new net nearest to the curve whose guessed cost meets the budget, else the one nearest to the budget."""

    def guess(choice: Choice) -> float:
        known = min(trials, key=lambda each: curve.between(choice, each["choice"]))
        return pricing.guess(choice, known["choice"], known["cost"])

    pricing.learn(trials)
    seen = [each["choice"] for each in trials]
    position = meeting(curve, guess, target.value, 1 if target.value > trials[0]["cost"] else -1)
    found: list[tuple[float, Choice]] = []
    for choice in islice(curve.nearest(position), _LOOKED):
        if choice in seen:
            continue
        found.append((_off(guess(choice), target), choice))
        if _meets(found[-1][0], target):
            return choice
    return min(found, key=lambda each: each[0])[1] if found else None


def meeting(curve: Curve, cost: Callable[[Choice], float], budget: float, sign: int) -> float:
    """The position of a sign at which the nets along a curve cost a budget.

    Between positions at which a factor changes the net is the same; there the logarithm of the cost is interpolated.
    """
    turns = curve.turns(sign)
    positions = [0.0, *((near + far) / 2 for near, far in pairwise(turns)), *(each * _PAST for each in turns[-1:])]

    def beyond(position: float) -> float:
        return sign * math.log(cost(next(curve.nearest(position))) / budget)

    index = bisect_left(positions, 0.0, key=beyond)
    if index in (0, len(positions)):
        return positions[min(index, len(positions) - 1)]
    (near, far), (low, high) = positions[index - 1 : index + 1], map(beyond, positions[index - 1 : index + 1])
    return near + (far - near) * low / (low - high)


def _by_sum(columns: Sequence[Sequence[float]]) -> Iterator[tuple[int, ...]]:
    """One index into each ascending column, all combinations, by the sum of what they point at."""
    start = (0,) * len(columns)
    queue = [(math.fsum(column[0] for column in columns), start, 0)]
    while queue:
        _, indices, last = heapq.heappop(queue)
        yield indices
        for place in range(last, len(columns)):  # every combination has one order of steps, so it comes once
            if indices[place] + 1 < len(columns[place]):
                after = (*indices[:place], indices[place] + 1, *indices[place + 1 :])
                total = math.fsum(column[index] for column, index in zip(columns, after))
                heapq.heappush(queue, (total, after, place))


def _measured(pricing: Pricing, choice: Choice, number: int) -> Record:
    begin = time.perf_counter()
    costs = pricing.measure(choice)
    seconds = round(time.perf_counter() - begin, 3)
    return {"number": number, "step": min(number, 1), "choice": choice, "score": None, **costs, "seconds": seconds}


def _net(space: Space, base: Choice, record: Record, step: int) -> ScaledNet:
    model, arguments = space.arguments(record["choice"])
    costs = {name: record[name] for name in ("params", "macs", "cost")}
    move = describe(base, record["choice"])
    return ScaledNet(step, record["choice"], model, arguments, **costs, score=math.nan, move=move)


def _off(cost: float, target: Target) -> float:
    return abs(math.log(cost / target.value))


def _meets(off: float, target: Target) -> bool:
    return off <= target.slack + _ROUNDING


def _moved(strategy: Strategy) -> str:
    return ", ".join(name for name, exponent in strategy.exponents.items() if exponent) or "no factor"
