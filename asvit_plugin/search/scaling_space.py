"""Spaces of scaling factors: what a net's depths, widths, ratios, image and patch may become around it."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import yaml

from .expressions import Expression
from .scaling_families import Factors, factors_of
from .space import Choice, Space
from .templates import fill

_HOLE = re.compile(r"\{([^{}]*)\}")


def factor_space(
    base: Mapping[str, Any],
    factors: Mapping[str, Sequence[float] | None] | None = None,
    name: str = "scaling",
    model: str = "scaled_vit",
) -> Space:
    """The space of scaling factors around a net.

    A decision is called as its factor, or FACTOR_STAGE with stages from 1 where each stage of a pyramid has its own.

    Args:
        base: Its arguments; of shapes that it leaves out DeiT-Tiny's, PiT-Ti's, or the published seed of As-ViT. What
            is no factor stays as it is.
        factors: Choices of each factor that may change, which the base's value joins; None instead of the choices for
            a grid around the base's value, up to twice of it. A factor of a pyramid stands for all its stages. By
            default all factors with their grids.
        name: Name of the space.
        model: "scaled_vit", "scaled_pit" or "as_vit".

    Returns:
        A space with a decision for each factor that may change, of which :func:`base_choice` is a point where the
        base's image size is a multiple of its patch size.

    Raises:
        ValueError: for an unknown factor, and a value of a factor that is no positive number or not whole.
    """
    around = factors_of(model, base)
    chosen = dict.fromkeys(around.values) if factors is None else _spread(around, factors)
    for decision, value in around.values.items():
        for each in (value, *(chosen.get(decision) or ())):
            around.check(decision, each)
    grids = {each: around.grids[each] if chosen[each] is None else chosen[each] for each in chosen}
    decisions = {each: tuple(sorted({value, *grids[each]})) for each, value in around.values.items() if each in chosen}
    fixed = {each: value for each, value in around.values.items() if each not in chosen}
    template = {key: _bind(node, fixed) for key, node in around.template.items()}
    return Space(name, model, decisions, template, tuple(_rules(around, fixed)))


def base_choice(space: Space, base: Mapping[str, Any]) -> Choice:
    """The point of a space of :func:`factor_space` that is its base.

    Raises:
        ValueError: The base breaks a constraint of the space.
    """
    values = factors_of(space.model, base).values
    choice = {name: values[name] for name in space.decisions}
    space.check(choice)
    return choice


def space_yaml(space: Space) -> str:
    """A space of :func:`factor_space` as YAML that ``load_space`` reads."""
    fields = {
        "name": space.name,
        "model": space.model,
        "decisions": {name: list(choices) for name, choices in space.decisions.items()},
        "constraints": list(space.constraints),
        "arguments": dict(space.template),
    }
    return yaml.safe_dump(fields, sort_keys=False, default_flow_style=None, width=120)


def extreme(space: Space, start: Choice, cost: Callable[[Choice], float], largest: bool = False) -> Choice:
    """The cheapest point of a space, or the dearest.

    Decisions are looked at one by one, and together those that constraints tie, until none makes a difference: exact
    where each makes nets dearer or cheaper whatever the others are, as scaling factors do.
    """
    pick = max if largest else min
    best, before = dict(start), None
    while before is None or cost(best) != cost(before):
        before = best
        for names in _tied(space):
            values = product(*(space.decisions[name] for name in names))
            points = ({**best, **dict(zip(names, each))} for each in values)
            best = pick(filter(space.allows, points), key=cost)
    return best


def _tied(space: Space) -> list[list[str]]:
    """Decisions that constraints tie together, directly or through others; most stand alone."""
    groups = [{name} for name in space.decisions]
    for constraint in map(Expression, space.constraints):
        joined = [each for each in groups if each & constraint.names]
        groups = [each for each in groups if each not in joined] + [set().union(*joined)]
    return [[name for name in space.decisions if name in each] for each in groups]


def _spread(around: Factors, factors: Mapping[str, Sequence[float] | None]) -> dict[str, Sequence[float] | None]:
    """Choices by decision; what is said of a stage's own counts more than what is said of all."""
    named = [(decision, name) for name in factors for decision in around.decisions_of(name)]
    named.sort(key=lambda each: each[0] == each[1])
    return {decision: factors[name] for decision, name in named}


def _rules(around: Factors, fixed: Mapping[str, float]) -> list[str]:
    """The constraints that decisions are left in, with the others' values."""
    found = []
    for rule in around.constraints:
        names = set(_HOLE.findall(rule))
        if names - set(fixed):
            found.append(_HOLE.sub(lambda hole: str(fixed.get(hole[1], hole[1])), rule))
    return found


def _bind(node: Any, fixed: Mapping[str, float]) -> Any:
    """A template with the values of what is fixed; holes of what is not stay."""
    if isinstance(node, list):
        return [_bind(each, fixed) for each in node]
    if not isinstance(node, str):
        return node
    if _HOLE.fullmatch(node):
        return fill(node, fixed) if Expression(node[1:-1]).names <= set(fixed) else node
    return _HOLE.sub(lambda hole: str(fixed.get(hole[1], hole[0])), node)
