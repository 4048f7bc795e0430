"""Scaling by fake scores: paths to budgets, at equal cost, kills, several processes, and what is refused."""

import math
import multiprocessing
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import timm

from asvit_plugin.costs import LatencySetting, macs, params
from asvit_plugin.search.scaling import Scaled, ScalingSettings, scale
from asvit_plugin.search.scaling_costs import Target, Timing
from asvit_plugin.search.scaling_families import DEIT_TINY
from asvit_plugin.search.scaling_oracle import Oracle, proxy_oracle
from asvit_plugin.search.scaling_space import base_choice, factor_space
from asvit_plugin.search.space_schema import parse_space

optuna.logging.set_verbosity(optuna.logging.CRITICAL)
FORK = multiprocessing.get_context("fork")
TINY = dict(DEIT_TINY)
SPACE = factor_space(TINY)
ISO = ScalingSettings(iso=True)
WEIGHTS = {"depth": 1.0, "num_heads": 1.5, "head_dim": 1.5, "mlp_ratio": 0.3, "img_size": 0.8, "patch_size": -0.8}


def score(model: str, arguments: Mapping[str, Any]) -> float:
    """More of everything is better, of some things less so the more there is."""
    return sum(weight * math.log(arguments[name]) - 0.002 * arguments[name] for name, weight in WEIGHTS.items())


ORACLE = Oracle("fake", score)
TO = Target("macs", 2.5e9)


def run(target: Target = TO, settings: ScalingSettings | None = None, oracle: Oracle = ORACLE, **where: Any) -> Scaled:
    return scale(SPACE, base_choice(SPACE, TINY), target, oracle, settings, **where)


def near(cost: float, budget: float, tolerance: float = 0.03) -> bool:
    return abs(math.log(cost / budget)) <= math.log1p(tolerance) + 1e-6


@pytest.mark.parametrize("budget", [4.6e9, 2.5e9, 6e8])
def test_path_to_a_budget(budget: float) -> None:
    found = run(Target("macs", budget))
    assert found.end == "budget"
    assert (found.path[0].params, found.path[0].macs) == (5_717_416, 1_253_683_200)
    assert near(found.path[-1].macs, budget)
    sign = 1 if budget > 1.25e9 else -1
    costs = [sign * net.cost for net in found.path]
    assert costs == sorted(costs)
    for number, (before, net) in enumerate(zip(found.path, found.path[1:]), start=1):
        changed = [name for name in net.choice if net.choice[name] != before.choice[name]]
        assert len(changed) == 1 or net is found.path[-1]
        limit = math.log(budget / found.path[0].cost)
        assert sign * math.log(net.cost / found.path[0].cost) <= min(number * math.log(1.25), abs(limit)) + math.log(
            1.031
        )
        assert net.move.startswith(changed[0])


def test_nets_are_what_the_lines_build() -> None:
    net = run().path[-1]
    model = eval(net.line, {"timm": timm})
    assert (params(model), macs(model, (1, 3, net.choice["img_size"], net.choice["img_size"]))) == (
        net.params,
        net.macs,
    )


def test_takes_the_most_for_the_cost() -> None:
    found = run()
    base = found.path[0]
    first = [each for each in found.trials if each["step"] == 1]
    gains = [(each["score"] - base.score) / math.log(each["cost"] / base.cost) for each in first]
    assert len(first) > 2
    assert first[gains.index(max(gains))]["choice"] == found.path[1].choice


def test_less_may_be_better() -> None:
    turned = Oracle("loss", lambda model, arguments: -score(model, arguments), maximize=False)
    assert [net.choice for net in run(oracle=turned).path] == [net.choice for net in run().path]


def test_at_equal_cost() -> None:
    found = run(Target(), ISO)
    assert found.end == "no gain"
    assert all(near(net.cost, found.path[0].cost) for net in found.path)
    scores = [net.score for net in found.path]
    assert len(scores) > 2
    assert scores == sorted(set(scores))
    for before, net in zip(found.path, found.path[1:]):
        assert sum(net.choice[name] != before.choice[name] for name in net.choice) == 2


def test_no_gain_ends_growing() -> None:
    found = run(oracle=Oracle("flat", lambda model, arguments: 1.0))
    assert (found.end, len(found.path)) == ("no gain", 1)


def test_nets_without_a_score_are_passed_over() -> None:
    partly = Oracle("partly", lambda model, arguments: math.nan if arguments["depth"] > 12 else score(model, arguments))
    assert {net.choice["depth"] for net in run(oracle=partly).path} <= set(range(13))


def test_a_beam_is_no_worse_here_and_steps_end_it() -> None:
    assert run(settings=ScalingSettings(beam=3)).path[-1].score >= run().path[-1].score
    short = run(settings=ScalingSettings(steps=1))
    assert (short.end, len(short.path)) == ("steps", 2)


def test_parameters_as_the_budget() -> None:
    space = factor_space(TINY, dict.fromkeys(("depth", "num_heads", "head_dim", "mlp_ratio")))
    found = scale(space, base_choice(space, TINY), Target("params", 22e6), ORACLE)
    assert near(found.path[-1].params, 22e6)
    assert found.path[-1].cost == found.path[-1].params


LITTLE = {"depth": 1, "num_heads": 1, "head_dim": 8, "mlp_ratio": 2, "img_size": 16, "patch_size": 8}


def test_latency_as_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(self: Timing, model: str, arguments: Mapping[str, Any]) -> dict[str, float]:
        return {"cost": 1e-3 * arguments["depth"] ** 0.5 * arguments["head_dim"], "p10": 0.0, "p90": 1.0, "drift": 1.0}

    monkeypatch.setattr(Timing, "measure", timed)
    space = factor_space(LITTLE, {"depth": range(1, 20), "head_dim": range(4, 40)})
    found = scale(space, base_choice(space, LITTLE), Target("latency", 0.02), proxy_oracle("parameters"))
    assert found.end == "budget"
    assert near(found.path[-1].cost, 0.02)
    unscored = [each for each in found.trials if each["score"] is None and each["step"]]
    assert all(each["cost"] > 0.008 * 1.25 for each in unscored)  # turned out slower than the step's budget
    reach = "the nets of space 'scaling' reach from 0.004 on, the smallest with depth=1, head_dim=4"
    with pytest.raises(ValueError, match=f"budget is 0.001 seconds; {reach}"):
        scale(space, base_choice(space, LITTLE), Target("latency", 0.001), proxy_oracle("parameters"))


def test_real_latency_and_a_real_proxy() -> None:
    space = factor_space(LITTLE, {"depth": (1, 2, 3)})
    timing = Timing(LatencySetting(threads=1), seconds=0.01)
    found = scale(space, {"depth": 1}, Target("latency", 60.0), proxy_oracle(repeats=1), timing=timing)
    assert found.end in ("no move", "no gain")
    assert found.path[0].cost > 0
    assert math.isfinite(found.path[0].score)


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("settings", "after"),
    [(ScalingSettings(), 2), (ScalingSettings(), 9), (ISO, 9), (ScalingSettings(beam=2), 12)],
)
def test_goes_on_after_a_kill(settings: ScalingSettings, after: int, tmp_path: Path) -> None:
    target, calls = Target("macs", None if settings.iso else 2.5e9), []

    def kill(model: str, arguments: Mapping[str, Any]) -> float:
        calls.append(arguments)
        if len(calls) == after:
            raise Killed
        return score(model, arguments)

    with pytest.raises(Killed):
        run(target, settings, Oracle("fake", kill), storage=tmp_path / "study.db")
    resumed, whole = run(target, settings, storage=tmp_path / "study.db"), run(target, settings)
    assert (resumed.path, resumed.end) == (whole.path, whole.end)
    assert plain(resumed) == plain(whole)


def plain(found: Scaled) -> list[Any]:
    return sorted((each["step"], list(each["choice"].items()), each["score"], each["cost"]) for each in found.trials)


def test_two_processes_share_the_nets(tmp_path: Path) -> None:
    workers = [FORK.Process(target=run, kwargs={"storage": tmp_path / "study.db"}) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(100)
    assert [worker.exitcode for worker in workers] == [0, 0]
    together = run(storage=tmp_path / "study.db", oracle=Oracle("fake", lambda *_: pytest.fail("measured again")))
    assert plain(together) == plain(run())


@pytest.mark.parametrize(("budget", "cost"), [("macs", 1e6), ("params", 1e4), ("macs", 1e15)])
def test_refuses_a_budget_out_of_reach(budget: str, cost: float) -> None:
    smallest = "the smallest with depth=4, num_heads=1, head_dim=32, mlp_ratio=2"
    with pytest.raises(
        ValueError, match=rf"budget is \S+ .*; the nets of space 'scaling' reach from \S+ to \S+, {smallest}"
    ):
        run(Target(budget, cost))


def test_refuses_a_study_of_another_run(tmp_path: Path) -> None:
    run(storage=tmp_path / "study.db")
    with pytest.raises(ValueError, match="was begun with value 2500000000.0, not 2000000000.0"):
        run(replace(TO, value=2e9), storage=tmp_path / "study.db")


def test_refuses_a_base_without_a_score() -> None:
    with pytest.raises(ValueError, match="the base has no fake; scaling needs a base that can be scored"):
        run(oracle=Oracle("fake", lambda *_: math.nan))


def test_refuses_decisions_that_are_no_numbers() -> None:
    text = "{model: scaled_vit, decisions: {global_pool: [avg, token]}, arguments: {global_pool: '{global_pool}'}}"
    with pytest.raises(
        ValueError, match="decision 'global_pool' of space 'words' has 'avg'; scaling takes numbers only"
    ):
        scale(parse_space(text, "words"), {"global_pool": "avg"}, TO, ORACLE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: run(Target()), "iso is False with no budget; at equal cost the base is the budget"),
        (lambda: run(TO, ISO), r"iso is True with a budget of 2.5e\+09; at equal cost"),
        (lambda: ScalingSettings(growth=1.0), "growth is 1.0; it must be above 1"),
        (lambda: ScalingSettings(beam=0), "beam is 0; it must be a whole number of at least 1"),
        (lambda: ScalingSettings(steps=0), "steps is 0; it must be a whole number of at least 1"),
        (lambda: proxy_oracle("luck"), "proxies is 'luck'; it must be one of"),
    ],
)
def test_refuses_settings(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
