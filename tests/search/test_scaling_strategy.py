"""Strategies of scaling: fitted to paths, kept in files, and applied to other nets by brute force's answers."""

import json
import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from asvit_plugin.costs import LatencySetting
from asvit_plugin.search.scaling import Scaled
from asvit_plugin.search.scaling_bases import find_base
from asvit_plugin.search.scaling_costs import Pricing, Target, Timing
from asvit_plugin.search.scaling_nets import ScaledNet
from asvit_plugin.search.scaling_oracle import Oracle
from asvit_plugin.search.scaling_strategy import Strategy, fit_strategy, purpose
from asvit_plugin.search.scaling_transfer import Curve, apply_strategy, meeting
from asvit_plugin.search.space import Choice, Space

ORACLE = Oracle("fake", lambda model, arguments: 0.0, context={"seed": 3})
TINY = find_base("deit_tiny")
TO = Target("macs", 2.5e9)


def path(costs: list[float], factors: Mapping[str, list[float]]) -> Scaled:
    """A path of made-up nets of these costs and factors."""
    choices = [dict(zip(factors, values)) for values in zip(*factors.values())]
    pairs = enumerate(zip(costs, choices))
    return Scaled([ScaledNet(i, each, "vit", {}, 1, 1, cost, 0.0) for i, (cost, each) in pairs], "budget", [])


def strategy(exponents: Mapping[str, float], budget: str = "macs", timing: Timing | None = None) -> Strategy:
    costs = [1.0, 2.0, 4.0]
    factors = {name: [cost**exponent for cost in costs] for name, exponent in exponents.items()}
    return fit_strategy(path(costs, factors), Target(budget), ORACLE, timing)


def test_exponents_of_a_power_law() -> None:
    costs = [3.0, 4.1, 7.7, 6.5, 12.0]
    laws = {"depth": 0.5, "img_size": -0.25, "mlp_ratio": 0.0, "head_dim": 1 / 3}
    found = fit_strategy(path(costs, {name: [7 * (c / 3) ** b for c in costs] for name, b in laws.items()}), TO, ORACLE)
    assert found.exponents == pytest.approx(laws, abs=1e-12)
    assert found.exponents["mlp_ratio"] == 0
    assert all(abs(each) < 1e-12 for each in [*found.offsets.values(), *found.residuals.values()])
    assert (found.ratios, found.nets, found.timing) == ((1.0, 4.0), 5, None)
    assert found.oracle == {"oracle": "fake", "maximize": True, "seed": 3}


def test_least_squares_where_nets_are_off_the_line() -> None:
    found = fit_strategy(path([1, math.e, math.e**2], {"depth": [1, math.e, 1]}), TO, ORACLE)
    assert found.exponents["depth"] == pytest.approx(0)
    assert found.offsets["depth"] == pytest.approx(1 / 3)
    assert found.residuals["depth"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("costs", "depths", "message"),
    [
        ([1.0], [12], "the path has 1 nets whose costs differ by a factor of 1; a strategy needs two that differ by"),
        ([1.0, 1.02], [12, 14], "2 nets whose costs differ by a factor of 1.02; .* the tolerance, 0.03"),
        ([1.0, 2.0], [12, -1], "depth has -1; a factor that a strategy is of must be a positive number"),
    ],
)
def test_refuses_a_path(costs: list[float], depths: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_strategy(path(costs, {"depth": depths}), TO, ORACLE)


@pytest.mark.parametrize("budget", ["macs", "latency"])
def test_file_round_trip(budget: str, tmp_path: Path) -> None:
    first = strategy({"depth": 1.0, "num_heads": 0.1}, budget)
    first.save(tmp_path / "strategy.json")
    again = Strategy.load(tmp_path / "strategy.json")
    assert again == first
    assert again.purpose == purpose(budget, first.timing)
    assert (" in eager (float32, batch 1, 1 CPU threads)" in again.purpose) == (budget == "latency")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "is of format 2; this version reads 1"),
        ({"format": None}, "is of format None; this version reads 1"),
        ({"nets": "removed"}, "lacks field 'nets'; a strategy has arguments, budget"),
        ({"slope": 1}, "has the unknown field 'slope'; a strategy has"),
        ({"budget": "joules"}, "has budget 'joules'; it must be one of macs, params, latency"),
        ({"exponents": {"depth": "much"}}, "has exponents {'depth': 'much'}; it must be numbers by factor"),
        ({"exponents": {"depth": float("inf")}}, "has exponents {'depth': inf}; it must be numbers by factor"),
        ({"ratios": [1]}, r"has ratios \[1\]; it must be two numbers"),
        ({"timing": {"runtime": "eager"}}, "has timing {'runtime': 'eager'}; it must be null or a mapping with hardw"),
    ],
)
def test_refuses_a_file(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "strategy.json"
    strategy({"depth": 1.0}).save(file)
    table = {**json.loads(file.read_text()), **change}
    file.write_text(json.dumps({name: value for name, value in table.items() if value != "removed"}))
    with pytest.raises(ValueError, match=message):
        Strategy.load(file)


@pytest.mark.parametrize(("text", "message"), [("depth: 1", "is no strategy: it is not JSON"), ("[]", "has no format")])
def test_refuses_what_is_no_strategy(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Strategy.load(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("known", "decision", "expected"),
    [
        ({"depth": 0.6}, "depth_2", 0.6),
        ({"depth_1": 0.2, "depth_2": 0.6}, "depth", 0.4),
        ({"depth_1": 0.2, "depth_2": 0.6}, "depth_2", 0.6),
        ({"depth_1": 0.2, "depth_2": 0.6}, "depth_4", 0.4),
        ({"patch_size": 0.2}, "img_size", None),
    ],
)
def test_exponent_of_a_decision(known: dict[str, float], decision: str, expected: float | None) -> None:
    assert strategy(known).exponent(decision) == (expected and pytest.approx(expected))


def points(space: Space) -> list[Choice]:
    every = (dict(zip(space.decisions, values)) for values in product(*space.decisions.values()))
    return [choice for choice in every if space.allows(choice)]


SMALL = find_base(
    factors={"depth": None, "num_heads": None, "mlp_ratio": (2, 3, 4, 6), "img_size": None, "patch_size": (14, 16)}
)


@pytest.mark.parametrize("position", [-0.5, 0.0, 0.8])
def test_nearest_nets_come_in_order(position: float) -> None:
    space, base = SMALL.space, SMALL.choice
    curve = Curve(strategy({"depth": 0.5, "num_heads": 0.2, "img_size": -0.1}), space, base)
    every, ordered = points(space), list(curve.nearest(position))
    assert len(ordered) == len(every) == space.size
    assert sorted(map(str, ordered)) == sorted(map(str, every))
    far = [curve.distance(choice, position) for choice in ordered]
    by_hand = {"depth": 0.5, "num_heads": 0.2, "mlp_ratio": 0, "img_size": -0.1, "patch_size": 0}
    logs = [[math.log(each[name] / base[name]) - position * b for name, b in by_hand.items()] for each in ordered]
    assert far == pytest.approx([sum(x * x for x in each) for each in logs])
    assert far == sorted(far)


@pytest.mark.parametrize("budget", ["macs", "params"])
@pytest.mark.parametrize("ratio", [0.4, 1.7, 3.0])
@pytest.mark.parametrize("exponents", [{"depth": 1.0}, {"depth": 0.3, "num_heads": 0.25, "img_size": 0.1}])
def test_meets_the_budget_nearest_to_the_curve(exponents: dict[str, float], ratio: float, budget: str) -> None:
    space, base = SMALL.space, SMALL.choice
    pricing, curve = Pricing(space, Target(budget)), Curve(strategy(exponents), space, base)
    cost = {str(choice): pricing.counted(choice)[budget] for choice in points(space)}
    target, sign = Target(budget, ratio * cost[str(base)]), int(math.copysign(1, ratio - 1))
    found = apply_strategy(strategy(exponents), space, base, target)
    assert (found.end, len(found.path), found.path[0].choice) == ("budget", 2, base)
    assert found.path[1].cost == cost[str(found.path[1].choice)]
    position = meeting(curve, lambda choice: cost[str(choice)], target.value, sign)
    right = [each for each in points(space) if abs(math.log(cost[str(each)] / target.value)) <= target.slack + 1e-9]
    nearest = min(curve.distance(each, position) for each in right)
    assert curve.distance(found.path[1].choice, position) == pytest.approx(nearest)


@pytest.mark.parametrize("ratio", [0.5, 1.3, 2.5])
def test_where_a_curve_meets_a_budget(ratio: float) -> None:
    """With one value of a factor for every percent, the position is where the power law says."""
    space = Space("fine", "fine", {"width": tuple(round(100 * 1.01**step, 6) for step in range(-200, 201))})
    curve = Curve(strategy({"width": 0.5}), space, {"width": 100.0})
    position = meeting(curve, lambda choice: choice["width"] ** 3, ratio * 100**3, int(math.copysign(1, ratio - 1)))
    assert position * 0.5 * 3 == pytest.approx(math.log(ratio), abs=0.02)


def test_leads_a_path_to_its_own_end() -> None:
    space, base = TINY.space, TINY.choice
    pricing = Pricing(space, TO)
    choices = [
        base,
        {**base, "depth": 16},
        {**base, "depth": 20, "mlp_ratio": 5},
        {**base, "depth": 24, "mlp_ratio": 6},
    ]
    nets = [
        ScaledNet(i, each, "scaled_vit", {}, 1, 1, pricing.counted(each)["macs"], 0) for i, each in enumerate(choices)
    ]
    fitted = fit_strategy(Scaled(nets, "budget", []), TO, ORACLE)
    found = apply_strategy(fitted, space, base, Target("macs", nets[-1].cost, 0.01)).path[-1]
    assert {name: found.choice[name] for name in ("num_heads", "head_dim", "img_size", "patch_size")} == {
        name: base[name] for name in ("num_heads", "head_dim", "img_size", "patch_size")
    }
    assert found.choice["depth"] in (22, 24)


def test_the_base_where_it_meets_the_budget() -> None:
    found = apply_strategy(strategy({"depth": 1.0}), TINY.space, TINY.choice, Target("macs", 1.26e9))
    assert ([net.choice["depth"] for net in found.path], found.end) == ([12], "budget")


def test_the_nearest_to_a_budget_that_no_net_meets() -> None:
    base = find_base(factors={"depth": (12, 18, 24)})
    found = apply_strategy(strategy({"depth": 1.0}), base.space, base.choice, Target("macs", 2e9))
    assert ([net.choice["depth"] for net in found.path], found.end) == ([12, 18], "missed")


PYRAMID = Space(
    "pyramid",
    "pyramid",
    {f"depth_{stage}": tuple(range(1, 25)) for stage in (1, 2, 3)} | {"head_dim": (16, 24, 32, 48, 64)},
)


def pyramid_costs(model: str, arguments: Mapping[str, Any], choice: Choice) -> dict[str, int]:
    blocks = choice["depth_1"] + 2 * choice["depth_2"] + choice["depth_3"]
    return {"params": blocks * choice["head_dim"] ** 2, "macs": blocks * choice["head_dim"] ** 2}


@pytest.fixture
def pyramid_pricing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up pyramid costs a formula, for there is no such model."""
    monkeypatch.setattr(Pricing, "counted", lambda self, choice: pyramid_costs("", {}, choice))


def test_stages_follow_their_factor_together(pyramid_pricing: None) -> None:
    base = {"depth_1": 2, "depth_2": 6, "depth_3": 4, "head_dim": 32}
    cost = pyramid_costs("", {}, base)["macs"]
    found = apply_strategy(strategy({"depth": 1.0, "mlp_ratio": 0.2}), PYRAMID, base, Target("macs", 2 * cost))
    assert found.path[-1].choice == {"depth_1": 4, "depth_2": 12, "depth_3": 8, "head_dim": 32}


def test_stages_together_weigh_as_much_as_one_factor() -> None:
    base = {"depth_1": 2, "depth_2": 6, "depth_3": 4, "head_dim": 32}
    curve = Curve(strategy({"depth": 1.0}), PYRAMID, base)
    twice = {"depth_1": 4, "depth_2": 12, "depth_3": 8, "head_dim": 32}
    assert curve.distance(twice, 0.0) == pytest.approx(math.log(2) ** 2)
    assert curve.distance({**base, "head_dim": 64}, 0.0) == pytest.approx(math.log(2) ** 2)


def busy(model: str, arguments: Mapping[str, Any]) -> dict[str, float]:
    """Seconds that MACs do not tell: blocks cost something whatever their width, and images more than they should."""
    width, tokens = (
        arguments["num_heads"] * arguments["head_dim"],
        (arguments["img_size"] / arguments["patch_size"]) ** 2,
    )
    seconds = 1e-3 * arguments["depth"] * (1 + (2 + arguments["mlp_ratio"]) * width / 192 * (tokens / 196) ** 1.4)
    return {"cost": seconds, "p10": seconds, "p90": seconds, "drift": 1.0}


@pytest.mark.parametrize("ratio", [0.5, 2.2])
def test_latency_is_measured_until_it_meets_the_budget(ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Timing, "measure", lambda self, model, arguments: busy(model, arguments))
    space, base = TINY.space, TINY.choice
    target = Target("latency", ratio * busy("", TINY.arguments)["cost"])
    timing = Timing(LatencySetting(threads=1))
    found = apply_strategy(strategy({"depth": 0.4, "img_size": 0.3}), space, base, target, timing)
    assert (found.end, len(found.path)) == ("budget", 2)
    assert abs(math.log(found.path[-1].cost / target.value)) <= target.slack + 1e-9
    assert found.path[-1].cost == busy("", found.path[-1].arguments)["cost"]
    assert 1 < len(found.trials) <= 9
    few = apply_strategy(strategy({"depth": 0.4, "img_size": 0.3}), space, base, target, timing, tries=1)
    assert len(few.trials) == 2
    if few.end == "missed":
        assert few.path[-1].cost == min(
            (each["cost"] for each in few.trials), key=lambda c: abs(math.log(c / target.value))
        )


@pytest.mark.parametrize(
    ("target", "exponents", "tries", "message"),
    [
        (Target("macs"), {"depth": 1.0}, 8, "the target has no value; a strategy needs a budget"),
        (Target("macs", 10), {"depth": 1.0}, 8, "budget is 10 multiply-accumulates; the nets of space 'scaling' reach"),
        (TO, {"width": 1.0}, 8, r"the strategy moves width, which the space 'scaling' of \['depth', .* cannot follow"),
        (TO, {"depth": 0.0}, 8, "the strategy moves no factor, which the space"),
        (TO, {"depth": 1.0}, 0, "tries is 0; it must be a whole number of at least 1"),
    ],
)
def test_refuses(target: Target, exponents: dict[str, float], tries: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_strategy(strategy(exponents), TINY.space, TINY.choice, target, tries=tries)
