"""Spaces of scaling factors, and what their points cost."""

import itertools
from typing import Any

import pytest

from asvit_plugin.costs import LatencyCache, LatencySetting
from asvit_plugin.search.scaling_costs import Pricing, Target, Timing
from asvit_plugin.search.scaling_families import DEIT_TINY
from asvit_plugin.search.scaling_formulas import count
from asvit_plugin.search.scaling_space import base_choice, extreme, factor_space, space_yaml
from asvit_plugin.search.space_schema import parse_space

TINY = dict(DEIT_TINY)
SMALL = {"depth": 2, "num_heads": 2, "head_dim": 8, "mlp_ratio": 2, "img_size": 32, "patch_size": 8}


def test_a_grid_around_deit() -> None:
    space = factor_space(TINY)
    assert list(space.decisions) == list(TINY)
    assert space.decisions["num_heads"] == (1, 2, 3, 4, 5, 6)
    assert space.decisions["patch_size"] == (8, 14, 16, 28, 32)
    assert {224, 256, 288, 320} < set(space.decisions["img_size"])
    assert all(TINY[factor] in choices for factor, choices in space.decisions.items())
    assert space.arguments(base_choice(space, TINY)) == ("scaled_vit", TINY)


def test_chosen_factors_and_what_stays() -> None:
    space = factor_space({**TINY, "class_token": False}, {"depth": (6, 24), "mlp_ratio": None})
    assert dict(space.decisions) == {"depth": (6, 12, 24), "mlp_ratio": (2, 3, 4, 5, 6, 7, 8)}
    assert space.arguments({"depth": 6, "mlp_ratio": 5})[1] == {
        **TINY, "depth": 6, "mlp_ratio": 5, "class_token": False,
    }  # fmt: skip


def test_images_are_whole_patches() -> None:
    space = factor_space(TINY, {"img_size": (196, 256)})
    assert space.allows({"img_size": 256})
    assert not space.allows({"img_size": 196})
    with pytest.raises(ValueError, match="choice breaks the constraint 'img_size % patch_size == 0'"):
        base_choice(factor_space({**TINY, "img_size": 230}), {**TINY, "img_size": 230})


@pytest.mark.parametrize("factors", [None, {"depth": None}, {"patch_size": (16, 32)}])
def test_yaml_is_the_same_space(factors: Any) -> None:
    space = factor_space(TINY, factors)
    assert parse_space(space_yaml(space), "read").fingerprint == space.fingerprint


@pytest.mark.parametrize(
    ("base", "factors", "message"),
    [
        ({"depth": 2.5}, None, "depth is 2.5; as a scaling factor it must be a whole number of at least 1"),
        ({"num_heads": (3, 4)}, None, r"num_heads is \(3, 4\); as a scaling factor it must be a whole number"),
        ({}, {"mlp_ratio": (0,)}, "mlp_ratio is 0; as a scaling factor it must be a positive number"),
        ({}, {"width": None}, "factors is 'width'; it must be one of 'depth'"),
        ({}, {}, "space 'scaling' has no decisions"),
    ],
)
def test_refuses_spaces(base: dict[str, Any], factors: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        factor_space(base, factors)


def test_costs_of_deit_are_the_published_ones() -> None:
    assert count("scaled_vit", TINY) == {"params": 5_717_416, "macs": 1_253_683_200}
    small = count("scaled_vit", {**TINY, "num_heads": 6})
    assert (round(small["params"] / 1e6, 2), round(small["macs"] / 1e9, 2)) == (22.05, 4.6)


# From the cost model of a plain ViT by hand: times DeiT-Ti's MACs, million parameters.
MOVES = [
    ("depth", 24, 1.98, 11.1), ("num_heads", 4, 1.70, 10.0), ("num_heads", 6, 3.67, 22.1), ("head_dim", 96, 2.13, 12.6),
    ("mlp_ratio", 6, 1.28, 7.5), ("mlp_ratio", 8, 1.56, 9.3), ("img_size", 256, 1.36, 5.73),
    ("img_size", 288, 1.80, 5.74), ("img_size", 320, 2.34, 5.76), ("patch_size", 14, 1.35, 5.69),
    ("patch_size", 8, 5.61, 5.72),
]  # fmt: skip


@pytest.mark.parametrize(("factor", "value", "times", "params"), MOVES)
def test_costs_of_single_moves(factor: str, value: int, times: float, params: float) -> None:
    moved = count("scaled_vit", {**TINY, factor: value})
    assert moved["macs"] / 1_253_683_200 == pytest.approx(times, abs=0.006)
    assert moved["params"] / 1e6 == pytest.approx(params, abs=0.06)


def test_other_shapes_are_counted() -> None:
    plain, tokens = count("scaled_vit", SMALL), count("scaled_vit", {**SMALL, "reg_tokens": 4})
    assert plain == count("scaled_vit", {**SMALL, "qk_norm": False})  # counted on the model, with the same outcome
    assert tokens["params"] > plain["params"]
    assert tokens["macs"] > plain["macs"]


def test_extremes_are_those_of_all_points() -> None:
    space = factor_space(SMALL, {"depth": None, "img_size": (16, 24, 48), "patch_size": (4, 16)})
    pricing = Pricing(space, Target())
    points = (dict(zip(space.decisions, values)) for values in itertools.product(*space.decisions.values()))
    macs = [pricing.counted(point)["macs"] for point in points if space.allows(point)]
    ends = [
        pricing.counted(extreme(space, SMALL, lambda c: pricing.counted(c)["macs"], most)) for most in (False, True)
    ]
    assert [each["macs"] for each in ends] == [min(macs), max(macs)]


def test_latency_is_measured_and_kept(tmp_path: Any) -> None:
    cache = LatencyCache(tmp_path / "latency.json")
    timing = Timing(LatencySetting(threads=1), seconds=0.01, cache=cache)
    space = factor_space(SMALL, {"depth": (1, 2)})
    pricing = Pricing(space, Target("latency", 1.0), timing)
    net = pricing.measure({"depth": 2})
    assert 0 < net["p10"] <= net["cost"] <= net["p90"]
    assert len(cache.latencies()) == 1
    assert pricing.measure({"depth": 2}) == net
    assert pricing.guess({"depth": 1}, {"depth": 2}, net["cost"]) < net["cost"]
    assert pricing.record()["runtime"] == "eager"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Target("time"), "budget is 'time'; it must be one of 'macs'"),
        (lambda: Target(value=-1.0), "budget is -1.0 multiply-accumulates; it must be positive"),
        (lambda: Target(tolerance=0), "tolerance is 0; it must be between 0 and 1"),
        (lambda: Timing(batch=0), "batch is 0; it must be a whole number of at least 1"),
        (lambda: Timing(seconds=0), "seconds is 0; it must be positive"),
    ],
)
def test_refuses(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
