"""Spaces of scaling factors: a plain ViT, and what its depth, widths, ratio, image and patch may become around it."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from types import MappingProxyType
from typing import Any

import yaml

from ..checks import check_choice
from .expressions import Expression
from .space import Choice, Space

FACTORS = ("depth", "num_heads", "head_dim", "mlp_ratio", "img_size", "patch_size")
_DEIT = {"depth": 12, "num_heads": 3, "head_dim": 64, "mlp_ratio": 4, "img_size": 224, "patch_size": 16}
BASES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "deit_tiny": MappingProxyType(_DEIT),
        "deit_small": MappingProxyType(_DEIT | {"num_heads": 6}),
        "deit_base": MappingProxyType(_DEIT | {"num_heads": 12}),
    }
)
_PATCHES = (0.5, 0.875, 1, 1.75, 2)  # of the base's patch, where that is whole: 8, 14, 16, 28, 32 for 16


def factor_space(
    base: Mapping[str, Any], factors: Mapping[str, Sequence[float] | None] | None = None, name: str = "scaling"
) -> Space:
    """The space of scaling factors around a ``scaled_vit``.

    Args:
        base: Its arguments; the factors that it leaves out are DeiT-Tiny's. What is no factor stays as it is.
        factors: Choices of each factor that may change, which the base's value joins; None instead of the choices for
            a grid around the base's value, up to twice of it. By default all six factors with their grids.
        name: Name of the space.

    Returns:
        A space with a decision for each factor that may change, of which :func:`base_choice` is a point where the
        base's image size is a multiple of its patch size.

    Raises:
        ValueError: for an unknown factor, and a value of a factor that is no positive number or not whole.
    """
    shape = {**_DEIT, **base}
    for factor in factors or {}:
        check_choice("factors", factor, FACTORS)
    chosen = dict.fromkeys(FACTORS) if factors is None else dict(factors)
    for factor in FACTORS:
        for value in (shape[factor], *(chosen.get(factor) or ())):
            _check_value(factor, value)
    decisions = {
        factor: tuple(sorted({shape[factor], *(_grid(factor, shape) if chosen[factor] is None else chosen[factor])}))
        for factor in FACTORS
        if factor in chosen
    }
    fits = " % ".join(each if each in decisions else str(shape[each]) for each in ("img_size", "patch_size"))
    tied = {"img_size", "patch_size"} & set(decisions)
    template = shape | {factor: f"{{{factor}}}" for factor in decisions}
    return Space(name, "scaled_vit", decisions, template, (f"{fits} == 0",) if tied else ())


def base_choice(space: Space, base: Mapping[str, Any]) -> Choice:
    """The point of a space of :func:`factor_space` that is its base.

    Raises:
        ValueError: The base breaks a constraint of the space.
    """
    choice = {name: {**_DEIT, **base}[name] for name in space.decisions}
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

    Decisions that no constraint ties are looked at one by one, which is exact where each alone makes nets dearer or
    cheaper whatever the others are, as scaling factors do.
    """
    pick = max if largest else min
    tied = sorted(set().union(*(Expression(each).names for each in space.constraints)))
    best = dict(start)
    for name in space.decisions:
        if name not in tied:
            best[name] = pick(space.decisions[name], key=lambda value: cost({**best, name: value}))
    points = [{**best, **dict(zip(tied, values))} for values in product(*(space.decisions[name] for name in tied))]
    return pick(filter(space.allows, points), key=cost)


def _check_value(factor: str, value: Any) -> None:
    whole = factor != "mlp_ratio"
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not value > 0:
        kind = "whole number of at least 1" if whole else "positive number"
        raise ValueError(f"{factor} is {value!r}; as a scaling factor it must be a {kind}")


def _grid(factor: str, shape: Mapping[str, Any]) -> list[float]:
    """Values around the base's: from a third of depth and heads, else from half, to twice."""
    value, patch = shape[factor], shape["patch_size"]
    if factor == "patch_size":
        return [int(each * value) for each in _PATCHES if each * value == int(each * value)]
    if factor == "img_size":
        return [side * patch for side in _steps(value // patch, max(value // patch // 14, 1), 2)]
    if factor == "mlp_ratio":
        ratios = [value * quarters / 4 for quarters in range(2, 9)]
        return [int(each) if each == int(each) else each for each in ratios]
    fineness, fraction = (8, 2) if factor == "head_dim" else (6, 3)
    return _steps(value, max(value // fineness, 1), fraction)


def _steps(value: int, step: int, fraction: int) -> list[int]:
    """Whole numbers so many steps from a value, from its fraction to twice the value."""
    down = (value - max(value / fraction, 1)) // step if value > 1 else 0
    return list(range(value - int(down) * step, 2 * value + 1, step))
