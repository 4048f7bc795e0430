"""Latencies guessed from nets that were measured, and what that spares."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
import pytest

from asvit_plugin.search.scaling import Scaled, ScalingSettings, scale
from asvit_plugin.search.scaling_bases import find_base
from asvit_plugin.search.scaling_costs import Pricing, Target, Timing
from asvit_plugin.search.scaling_formulas import count
from asvit_plugin.search.scaling_guess import LatencyGuess
from asvit_plugin.search.scaling_oracle import Oracle

optuna.logging.set_verbosity(optuna.logging.CRITICAL)
POWERS = {"num_heads": -0.5, "head_dim": -0.4, "img_size": -0.9, "patch_size": 1.1}
BASE = find_base("deit_tiny", {"img_size": 96, "patch_size": 8})


def seconds(model: str, arguments: Mapping[str, Any]) -> float:
    """A device on which wide nets are faster than their MACs say."""
    slow = math.prod(arguments[name] ** power for name, power in POWERS.items())
    return 1e-12 * count(model, arguments)["macs"] * slow


def measured(choice: Mapping[str, Any]) -> dict[str, Any]:
    model, arguments = BASE.space.arguments(choice)
    return {"choice": choice, "macs": count(model, arguments)["macs"], "cost": seconds(model, arguments)}


def test_learns_the_powers_of_a_device() -> None:
    rng, guess = np.random.default_rng(0), LatencyGuess()
    nets = [measured(BASE.space.sample(rng)) for _ in range(60)]
    assert guess.ratio(nets[0]["choice"], nets[1]["choice"]) == 1.0  # nothing is known
    guess.learn(nets[:40])
    for net in nets[40:]:
        right = (net["cost"] / net["macs"]) / (nets[0]["cost"] / nets[0]["macs"])
        assert guess.ratio(net["choice"], nets[0]["choice"]) == pytest.approx(right, rel=0.01)


def test_what_was_hardly_moved_counts_little() -> None:
    guess, other = LatencyGuess(), {**BASE.choice, "head_dim": 65}
    first = {"choice": BASE.choice, "macs": 100, "cost": 1.0}
    guess.learn([first, {"choice": other, "macs": 101, "cost": 1.06}])  # noise, not a power of 3
    assert 1.0 < guess.ratio({**BASE.choice, "head_dim": 128}, BASE.choice) < 1.3


def test_decisions_that_may_be_zero_are_left_out() -> None:
    guess = LatencyGuess()
    guess.learn([{"choice": {"tokens": n, "depth": n + 1}, "macs": n + 1, "cost": (n + 1.0) ** 2} for n in range(9)])
    assert guess.ratio({"tokens": 5, "depth": 2}, {"tokens": 0, "depth": 1}) == pytest.approx(2.0, rel=0.01)


def at_equal_latency(monkeypatch: pytest.MonkeyPatch) -> Scaled:
    """Reshaped at the latency of the base by a score that each factor has a part in."""
    timed = {"p10": 0.0, "p90": 1.0, "drift": 1.0}
    monkeypatch.setattr(Timing, "measure", lambda self, *net: {"cost": seconds(*net), **timed})
    score = Oracle("fake", lambda model, arguments: sum(math.log(arguments[name]) for name in ("depth", "head_dim")))
    return scale(BASE.space, BASE.choice, Target("latency"), score, ScalingSettings(iso=True, steps=2))


def test_pairs_at_equal_latency_are_hits(monkeypatch: pytest.MonkeyPatch) -> None:
    def hits(found: Scaled) -> float:
        tried = [each["cost"] for each in found.trials if each["step"]]
        assert len(tried) > 10
        return sum(abs(math.log(cost / found.path[0].cost)) <= math.log1p(0.03) for cost in tried) / len(tried)

    learnt = at_equal_latency(monkeypatch)
    assert all(each["score"] is None for each in learnt.trials if each["choice"] != BASE.choice and not each["step"])
    monkeypatch.setattr(Pricing, "learn", lambda *_: None)
    by_macs = at_equal_latency(monkeypatch)
    assert hits(learnt) == 1.0
    assert hits(by_macs) < 0.6


def test_shrinking_by_noisy_latencies_does_not_go_round_in_circles(monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(self: Timing, model: str, arguments: Mapping[str, Any]) -> dict[str, float]:
        luck = np.random.default_rng(list(arguments.values())).normal(0, 0.3)
        return {"cost": seconds(model, arguments) * math.exp(luck), "p10": 0.0, "p90": 1.0, "drift": 1.0}

    monkeypatch.setattr(Timing, "measure", noisy)
    base = find_base("deit_tiny", {"img_size": 96}, {"depth": (8, 9, 10, 11), "head_dim": (56, 60), "mlp_ratio": (3,)})
    cost = noisy(None, *base.space.arguments(base.choice))["cost"]
    score = Oracle("fake", lambda model, arguments: float(arguments["depth"]))
    found = scale(base.space, base.choice, Target("latency", 0.6 * cost), score)
    nets = [net.choice for net in found.path]
    assert len(nets) > 2
    assert all(nets.count(net) == 1 for net in nets)
