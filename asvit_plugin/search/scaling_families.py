"""What may be scaled in a plain ViT, a PiT and an As-ViT: their factors, stage by stage in pyramids."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ..checks import check_choice
from ..models.as_vit import SEED_GENOTYPE
from ..models.as_vit_genotype import MAX_DIM, NUM_STAGES, AsViTGenotype
from ..models.scaled_pit_shape import check_patches, stage_shapes

DEIT_TINY: Mapping[str, Any] = MappingProxyType(
    {"depth": 12, "num_heads": 3, "head_dim": 64, "mlp_ratio": 4, "img_size": 224, "patch_size": 16}
)
PIT_TI: Mapping[str, Any] = MappingProxyType(
    {
        "depth": (2, 6, 4),
        "num_heads": (2, 4, 8),
        "head_dim": 32,
        "mlp_ratio": 4,
        "img_size": 224,
        "patch_size": 16,
        "stride": 8,
    }
)
_PATCHES = (0.5, 0.875, 1, 1.75, 2)  # of the base's patch, where that is whole: 8, 14, 16, 28, 32 for 16


@dataclass(frozen=True)
class Factors:
    """All that may change around a base.

    Attributes:
        values: The base's value of every decision, in order. A decision is called as its factor, or FACTOR_STAGE with
            stages from 1 where each stage of a pyramid has its own.
        grids: Choices of each decision around the base's value.
        template: Arguments of ``timm.create_model`` as templates over all decisions.
        constraints: Between decisions, which stand in braces.
        fractions: Factors whose values need not be whole.
    """

    values: Mapping[str, float]
    grids: Mapping[str, Sequence[float]]
    template: Mapping[str, Any]
    constraints: tuple[str, ...] = ()
    fractions: tuple[str, ...] = ("mlp_ratio",)

    def decisions_of(self, name: str) -> list[str]:
        """The decisions that a factor stands for, or the one of this very name.

        Raises:
            ValueError: There is neither.
        """
        found = [each for each in self.values if name in (each, factor_of(each))]
        if not found:
            check_choice("factors", name, tuple(dict.fromkeys([*map(factor_of, self.values), *self.values])))
        return found

    def check(self, decision: str, value: Any) -> None:
        """Refuse a value that is no positive number, or not whole where it must be."""
        whole = factor_of(decision) not in self.fractions
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not value > 0:
            kind = "whole number of at least 1" if whole else "positive number"
            raise ValueError(f"{decision} is {value!r}; as a scaling factor it must be a {kind}")


def factor_of(decision: str) -> str:
    """A decision's name without its stage."""
    name, _, stage = decision.rpartition("_")
    return name if stage.isdecimal() else decision


def factors_of(model: str, base: Mapping[str, Any]) -> Factors:
    """The factors of a net.

    Args:
        model: "scaled_vit", "scaled_pit" or "as_vit".
        base: Its arguments; of shapes that it leaves out DeiT-Tiny's, PiT-Ti's, or the published seed of As-ViT.

    Raises:
        ValueError: for a model that cannot be scaled, and arguments that make no such net.
    """
    check_choice("the base's model", model, tuple(_FAMILIES))
    return _FAMILIES[model](base)


def _vit(base: Mapping[str, Any]) -> Factors:
    shape = {**DEIT_TINY, **base}
    values = {name: shape[name] for name in DEIT_TINY}
    template = shape | {name: f"{{{name}}}" for name in values}
    return Factors(values, _grids(values), template, ("{img_size} % {patch_size} == 0",))


def _pit(base: Mapping[str, Any]) -> Factors:
    shape = {**PIT_TI, **base}
    if "patch_size" in base and "stride" not in base and isinstance(base["patch_size"], int):
        shape["stride"] = max(base["patch_size"] // 2, 1)  # as PiT's own
    patch, stride = shape["patch_size"], shape["stride"]
    stages = len(stage_shapes(*(shape.get(name) for name in _PIT_SHAPE)))
    check_patches(patch, stride)
    values = {
        f"{name}_{i + 1}": shape[name][i] if isinstance(shape[name], (list, tuple)) else shape[name]
        for name in ("depth", "num_heads", "mlp_ratio")
        for i in range(stages)
    } | {name: shape[name] for name in ("head_dim", "img_size", "patch_size")}
    listed = {name: [f"{{{name}_{i + 1}}}" for i in range(stages)] for name in ("depth", "num_heads", "mlp_ratio")}
    single = {name: f"{{{name}}}" for name in ("head_dim", "img_size", "patch_size")}
    part, whole = stride // math.gcd(stride, patch), patch // math.gcd(stride, patch)
    tied = {"stride": f"{{patch_size * {part} // {whole}}}"}
    heads = " and ".join(f"{{num_heads_{i + 1}}} % {{num_heads_{i}}} == 0" for i in range(1, stages))
    rules = ("{img_size} % {patch_size} == 0",)
    rules += (f"{{patch_size}} % {whole} == 0",) if whole > 1 else ()
    rules += (heads,) if heads and shape.get("embed_dims") is None else ()  # widths follow from heads
    return Factors(values, _grids(values), shape | listed | single | tied, rules)


def _as_vit(base: Mapping[str, Any]) -> Factors:
    net = AsViTGenotype.parse(base.get("genotype", SEED_GENOTYPE))
    stages, stride = range(1, NUM_STAGES + 1), base.get("stem_stride", 4)
    if type(stride) is not int or stride < 1:
        raise ValueError(f"stem_stride is {stride!r}; it must be a whole number of pixels of at least 1")
    values = {f"depth_{i}": depth for i, depth in zip(stages, net.depths)}
    values |= {f"mlp_ratio_{i}": ratio for i, ratio in zip(stages, net.mlp_ratios)}
    values |= {"num_heads": net.num_heads, "width": net.embed_dim, "img_size": base.get("img_size", 224)}
    tiles = [stride * 2**i * split for i, split in enumerate(net.splits)]  # pixels that each stage's windows divide
    units = {"num_heads": 8, "width": 4 if net.embed_dim % 4 == 0 else 1, "img_size": math.lcm(*tiles)}
    kept = zip(net.kernel_sizes, net.splits)
    parts = [f"{kernel},{split},{{mlp_ratio_{i}}},{{depth_{i}}}" for i, (kernel, split) in zip(stages, kept)]
    template = {**base, "genotype": "|".join([*parts, "{num_heads},{width}"]), "img_size": "{img_size}"}
    rules = (f"8 <= {{num_heads}} <= min({MAX_DIM}, {{width}} * 8)", f"{{img_size}} >= {max(tiles)}")
    return Factors(values, _grids(values, units), template, rules, fractions=())


_PIT_SHAPE = ("depth", "embed_dims", "num_heads", "head_dim", "mlp_ratio")
_FAMILIES: Mapping[str, Callable[[Mapping[str, Any]], Factors]] = MappingProxyType(
    {"scaled_vit": _vit, "scaled_pit": _pit, "as_vit": _as_vit}
)


def _grids(values: Mapping[str, Any], units: Mapping[str, int] = MappingProxyType({})) -> dict[str, list[float]]:
    """Choices of each decision; those with a unit are multiples of it, and images of whole patches where there are."""
    units = {**({"img_size": values["patch_size"]} if "patch_size" in values else {}), **units}
    units = {name: unit for name, unit in units.items() if type(unit) is int and unit > 0}  # others are refused later
    whole_ratios = "patch_size" not in values  # As-ViT's
    return {name: _grid(factor_of(name), value, units.get(name, 1), whole_ratios) for name, value in values.items()}


def _grid(factor: str, value: Any, unit: int, whole_ratios: bool) -> list[float]:
    """Values around the base's: from a third of depth and heads, else from half, to twice."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        return []  # the base is refused for it
    if factor == "patch_size":
        return [int(each * value) for each in _PATCHES if each * value == int(each * value)]
    if factor == "mlp_ratio" and not whole_ratios:
        ratios = [value * quarters / 4 for quarters in range(2, 9)]
        return [int(each) if each == int(each) else each for each in ratios]
    count = max(int(value) // unit, 1)
    fineness, fraction = {"depth": (6, 3), "num_heads": (6, 3), "img_size": (14, 2)}.get(factor, (8, 2))
    return [unit * each for each in _steps(count, max(count // fineness, 1), fraction)]


def _steps(value: int, step: int, fraction: int) -> list[int]:
    """Whole numbers so many steps from a value, from its fraction to twice the value."""
    down = (value - max(value / fraction, 1)) // step if value > 1 else 0
    return list(range(value - int(down) * step, 2 * value + 1, step))
