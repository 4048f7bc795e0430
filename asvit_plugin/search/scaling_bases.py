"""Nets that scaling begins with: DeiT's, PiT's and As-ViT's by name, any other of their kinds by its arguments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import timm

from ..models.as_vit import SEED_GENOTYPE
from .scaling_families import DEIT_TINY, PIT_TI
from .scaling_space import base_choice, factor_space
from .space import Choice, Space

_AS_VIT = ("as_vit_small", "as_vit_base", "as_vit_large")
_KNOWN: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "deit_tiny": ("scaled_vit", DEIT_TINY),
        "deit_small": ("scaled_vit", {**DEIT_TINY, "num_heads": 6}),
        "deit_base": ("scaled_vit", {**DEIT_TINY, "num_heads": 12}),
        "scaled_vit": ("scaled_vit", {}),
        "pit_ti": ("scaled_pit", PIT_TI),
        "pit_xs": ("scaled_pit", {**PIT_TI, "head_dim": 48}),
        "pit_s": ("scaled_pit", {**PIT_TI, "head_dim": 48, "num_heads": (3, 6, 12)}),
        "scaled_pit": ("scaled_pit", {}),
        "as_vit": ("as_vit", {"genotype": SEED_GENOTYPE}),
    }
)
BASES = (*_KNOWN, *_AS_VIT)


@dataclass(frozen=True)
class Base:
    """A net to begin with, and what it may become.

    Attributes:
        name: What it is called: one of ``BASES``, or a genotype.
        model: timm's name of the model.
        arguments: Arguments of ``timm.create_model`` that make it.
        space: The factors around it. A decision is called as its factor, or FACTOR_STAGE with stages from 1 where each
            stage of a pyramid has its own.
        choice: Its point of the space.
    """

    name: str
    model: str
    arguments: Mapping[str, Any]
    space: Space
    choice: Choice


def find_base(
    net: str = "deit_tiny",
    arguments: Mapping[str, Any] | None = None,
    factors: Mapping[str, Sequence[float] | None] | None = None,
    name: str = "scaling",
) -> Base:
    """A base by its name.

    Args:
        net: One of ``BASES``, where "scaled_vit", "scaled_pit" and "as_vit" stand for what the arguments say; or a
            genotype of As-ViT.
        arguments: Arguments of the model in the place of the net's own.
        factors: What may change; see :func:`factor_space`.
        name: Name of the space.

    Raises:
        ValueError: There is no such net, factor or value; names it and what is allowed.
    """
    model, known = _known(net)
    own = dict(arguments or {})
    if "patch_size" in own and "stride" not in own:  # the stride is a part of the patch
        known = {name: value for name, value in known.items() if name != "stride"}
    given = {**known, **own}
    space = factor_space(given, factors, name, model)
    choice = base_choice(space, given)
    return Base(net, model, space.arguments(choice)[1], space, choice)


def _known(net: str) -> tuple[str, Mapping[str, Any]]:
    if "|" in net:
        return "as_vit", {"genotype": net}
    if net in _AS_VIT:
        return "as_vit", {"genotype": timm.create_model(net, device="meta").genotype}
    if net not in _KNOWN:
        raise ValueError(f"base is {net!r}; it must be one of {', '.join(BASES)}, or a genotype of As-ViT")
    return _KNOWN[net]
