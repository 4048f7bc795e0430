"""A space of nets: what may be decided, what rules points out, and which model a choice is."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from .expressions import Expression
from .growth_rule import GrowthRule
from .templates import expressions, fill

_ENUMERATED = 100_000  # points of decisions that constraints tie together, up to which they are counted one by one
_DRAWS = 10_000  # tries to meet constraints that are not enumerated

Choice = dict[str, Any]


@dataclass(frozen=True)
class Space:
    """Decisions with their choices, constraints between them, and the model that a choice stands for.

    A choice is a dict from the name of every decision to one of its values. :func:`load_space` reads one from YAML.

    Args:
        name: Name of the space.
        model: timm's name of the model.
        decisions: Choices of each decision, in order: numbers, texts, booleans or None.
        template: Arguments of ``timm.create_model``: values, or texts such as ``"{num_heads * head_dim}"``.
        constraints: Expressions over the decisions that must all hold (see :class:`Expression`).
        scoring: Arguments that differ while a net is scored by proxies.
        growth: How its nets grow; None where they cannot.
        pools: How often each choice of a decision stands in the pool that a supernet draws from; 1 each unless said.

    Raises:
        ValueError: for an empty or doubled choice, an expression that is not allowed or names no decision, and where
            no point meets the constraints.
    """

    name: str
    model: str
    decisions: Mapping[str, tuple[Any, ...]]
    template: Mapping[str, Any] = field(default_factory=dict)
    constraints: tuple[str, ...] = ()
    scoring: Mapping[str, Any] = field(default_factory=dict)
    growth: GrowthRule | None = None
    pools: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.decisions:
            raise ValueError(f"space {self.name!r} has no decisions; there must be at least one")
        for decision, choices in self.decisions.items():
            self._check_choices(decision, choices)
        self._check_names([*expressions(list(self.template.values())), *self._constraints], set(self.decisions))
        if self.growth:
            grown = set(self.growth.start)
            self._check_names(expressions(list(self.growth.template.values())), set(self.decisions) | grown)
        for decision, pool in self.pools.items():
            self._check_pool(decision, pool)
        for group in self._groups:
            group.check(self.name)

    def _check_names(self, used: Iterable[Expression], known: set[str]) -> None:
        for each in used:
            unknown = sorted(each.names - known)
            if unknown:
                raise ValueError(
                    f"{each.text!r} in space {self.name!r} names {unknown[0]!r}, which is no decision of it"
                )

    def _check_choices(self, decision: str, choices: tuple[Any, ...]) -> None:
        if not choices:
            raise ValueError(f"decision {decision!r} of space {self.name!r} has no choices; there must be at least one")
        for value in choices:
            if value is not None and not isinstance(value, (bool, int, float, str)):
                raise ValueError(f"decision {decision!r} of space {self.name!r} has {value!r}; it takes scalars only")
        if len(set(choices)) < len(choices):
            raise ValueError(f"decision {decision!r} of space {self.name!r} has a choice twice: {list(choices)}")

    def _check_pool(self, decision: str, pool: tuple[int, ...]) -> None:
        if decision not in self.decisions:
            raise ValueError(f"pools of space {self.name!r} name {decision!r}, which is no decision of it")
        choices = self.decisions[decision]
        whole = all(type(count) is int and count >= 0 for count in pool)
        if not whole or len(pool) != len(choices) or not any(pool):
            raise ValueError(
                f"pool of decision {decision!r} of space {self.name!r} is {list(pool)}; it must be a whole number of "
                f"at least 0 for each of its choices {list(choices)}, not all of them 0"
            )

    @cached_property
    def _constraints(self) -> tuple[Expression, ...]:
        return tuple(map(Expression, self.constraints))

    @cached_property
    def _groups(self) -> "tuple[_Group, ...]":
        """Decisions that constraints tie together, directly or through others; most stand alone."""
        sets: list[set[str]] = [{name} for name in self.decisions]
        for constraint in self._constraints:
            tied = [each for each in sets if each & constraint.names]
            sets = [each for each in sets if each not in tied] + ([set().union(*tied)] if tied else [])
        return tuple(
            _Group(
                {name: choices for name, choices in self.decisions.items() if name in names},
                tuple(each for each in self._constraints if each.names <= names),
            )
            for names in sorted(sets, key=lambda names: min(map(list(self.decisions).index, names)))
        )

    @property
    def size(self) -> int | None:
        """Points that meet the constraints; None where too many decisions hang together to count them."""
        sizes = [group.size for group in self._groups]
        return None if None in sizes else math.prod(sizes)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of all that makes the space what it is; its name is no part of that."""
        decisions = [[name, list(choices)] for name, choices in self.decisions.items()]
        parts = [self.model, decisions, dict(self.template), list(self.constraints), dict(self.scoring)]
        if self.pools:
            parts.append({name: list(pool) for name, pool in self.pools.items()})
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def check(self, choice: Mapping[str, Any]) -> None:
        """Refuse a choice that is no point of the space.

        Raises:
            ValueError: naming the decision and what is allowed, or the constraint that it breaks.
        """
        self.check_values(choice)
        broken = next((each for each in self._constraints if not each(choice)), None)
        if broken:
            values = ", ".join(f"{name}={choice[name]!r}" for name in self.decisions if name in broken.names)
            raise ValueError(f"choice breaks the constraint {broken.text!r} of space {self.name!r} with {values}")

    def check_values(self, choice: Mapping[str, Any]) -> None:
        """Refuse a choice that lacks a decision or has a value that none of its choices is; constraints may be broken.

        Raises:
            ValueError: naming the decision and what is allowed.
        """
        if set(choice) != set(self.decisions):
            raise ValueError(f"choice has the decisions {list(choice)}; it must have {list(self.decisions)}")
        for name, value in choice.items():
            if value not in self.decisions[name]:
                raise ValueError(f"decision {name!r} is {value!r}; it must be one of {list(self.decisions[name])}")

    def allows(self, choice: Mapping[str, Any]) -> bool:
        """Whether a choice of known values meets the constraints."""
        return all(each(choice) for each in self._constraints)

    def sample(self, rng: np.random.Generator) -> Choice:
        """A point, all with the same probability."""
        drawn: Choice = {}
        for group in self._groups:
            drawn |= group.sample(rng)
        return {name: drawn[name] for name in self.decisions}

    def arguments(self, choice: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """What ``timm.create_model`` is given for a choice: the model's name and keyword arguments.

        Raises:
            ValueError: if the choice is no point of the space.
        """
        self.check(choice)
        return self.model, {name: fill(node, choice) for name, node in self.template.items()}


@dataclass(frozen=True)
class _Group:
    """Some decisions and all constraints between them."""

    decisions: dict[str, tuple[Any, ...]]
    constraints: tuple[Expression, ...]

    @property
    def product(self) -> int:
        return math.prod(map(len, self.decisions.values()))

    @property
    def rules(self) -> str:
        return "; ".join(each.text for each in self.constraints)

    @cached_property
    def points(self) -> list[tuple[Any, ...]] | None:
        """All points, where constraints pick few enough to list them."""
        if not self.constraints or self.product > _ENUMERATED:
            return None
        return list(self._points())

    @property
    def size(self) -> int | None:
        if not self.constraints:
            return self.product
        return None if self.points is None else len(self.points)

    def check(self, space: str) -> None:
        """Refuse constraints that no point meets."""
        if not self.constraints or self.points:
            return
        if self.points is not None or self._draw(np.random.default_rng(0)) is None:
            tried = f"{self.product} points" if self.points == [] else f"{_DRAWS} random points"
            raise ValueError(f"space {space!r} contradicts itself: none of {tried} meets the constraints {self.rules}")

    def sample(self, rng: np.random.Generator) -> Choice:
        if self.points is not None:
            return dict(zip(self.decisions, self.points[rng.integers(len(self.points))]))
        drawn = self._draw(rng)
        if drawn is None:
            raise ValueError(f"none of {_DRAWS} random points meets the constraints {self.rules}; loosen them")
        return drawn

    def _draw(self, rng: np.random.Generator) -> Choice | None:
        for _ in range(_DRAWS):
            drawn = {name: choices[rng.integers(len(choices))] for name, choices in self.decisions.items()}
            if all(each(drawn) for each in self.constraints):
                return drawn
        return None

    def _points(self) -> Iterator[tuple[Any, ...]]:
        for values in product(*self.decisions.values()):
            point = dict(zip(self.decisions, values))
            if all(each(point) for each in self.constraints):
                yield values
