"""The best nets of every cost: dominance, budgets, kills, and what is refused."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from asvit_plugin.search.scaling_costs import Target, Timing
from asvit_plugin.search.scaling_families import DEIT_TINY
from asvit_plugin.search.scaling_front import Front, FrontSettings, scale_front
from asvit_plugin.search.scaling_oracle import Oracle
from asvit_plugin.search.scaling_space import base_choice, factor_space

optuna.logging.set_verbosity(optuna.logging.CRITICAL)
TINY = dict(DEIT_TINY)
SPACE = factor_space(TINY, {"depth": None, "num_heads": None, "img_size": (160, 224, 288)})
FEW, TO = FrontSettings(steps=60), Target("macs", 2.5e9)


def score(model: str, arguments: Mapping[str, Any]) -> float:
    return math.log(arguments["depth"]) + math.log(arguments["num_heads"]) - 0.001 * arguments["img_size"]


def run(target: Target = TO, settings: FrontSettings = FEW, measure: Any = score, **where: Any) -> Front:
    return scale_front(SPACE, base_choice(SPACE, TINY), target, Oracle("fake", measure), settings, **where)


def test_none_beats_a_net_of_the_front() -> None:
    found = run()
    assert len(found.trials) == 60
    assert len(found.nets) > 2
    assert all(each["cost"] <= 2.5e9 * 1.03 for each in found.trials)
    for net in found.nets:
        assert not any(each["cost"] <= net.cost and each["score"] > net.score for each in found.trials)
        assert not any(each["cost"] < net.cost and each["score"] >= net.score for each in found.trials)
    costs = [net.cost for net in found.nets]
    assert costs == sorted(costs)


@pytest.mark.parametrize("sampler", ["nsga2", "random"])
def test_goes_on_after_a_kill(sampler: str, tmp_path: Path) -> None:
    calls, settings = [], FrontSettings(sampler, 10, 3)

    def kill(model: str, arguments: Mapping[str, Any]) -> float:
        calls.append(arguments)
        if len(calls) == 6:
            raise KeyError
        return score(model, arguments)

    with pytest.raises(KeyError):
        run(settings=settings, measure=kill, storage=tmp_path / "study.db")
    resumed, whole = run(settings=settings, storage=tmp_path / "study.db"), run(settings=settings)
    assert [(each["choice"], each["score"]) for each in resumed.trials] == [
        (each["choice"], each["score"]) for each in whole.trials
    ]
    assert [net.choice for net in resumed.nets] == [net.choice for net in whole.nets]


def test_slow_nets_have_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Timing, "measure", lambda self, model, arguments: {"cost": arguments["depth"] / 1e3})
    found = run(Target("latency", 0.012), FrontSettings(steps=30))
    assert {each["choice"]["depth"] > 12 for each in found.trials} == {True, False}
    assert all((each["score"] is None) == (each["choice"]["depth"] > 12) for each in found.trials)
    assert all(net.cost <= 0.012 for net in found.nets)


def test_all_costs_without_a_budget() -> None:
    assert max(each["cost"] for each in run(Target(), FrontSettings(steps=20)).trials) > 2.5e9


def test_refuses_a_budget_below_the_smallest_net() -> None:
    with pytest.raises(
        ValueError, match=r"budget is 1e\+06 multiply-accumulates; the nets of space 'scaling' reach from"
    ):
        run(Target("macs", 1e6))


def test_refuses_where_no_net_has_a_score() -> None:
    with pytest.raises(ValueError, match="none of 3 nets has a score within the budget; raise it, or take more steps"):
        run(settings=FrontSettings(steps=3), measure=lambda *_: math.nan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(sampler="luck"), "sampler is 'luck'; it must be one of"),
        (dict(steps=0), "steps is 0; it must be a whole number of at least 1"),
        (dict(seed=-1), "seed is -1; it must be a whole number of at least 0"),
    ],
)
def test_refuses_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrontSettings(**change)
