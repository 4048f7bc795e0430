"""Evolution within a budget: the algorithm's pieces, by the nets that it draws, and what is refused."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from network_spaces import accuracy, budget_of

from asvit_plugin.search.budget import Affordable
from asvit_plugin.search.evolution import EvolutionSampler, EvolutionSettings
from asvit_plugin.search.network_space import NetworkSpace, load_network_space
from asvit_plugin.search.sampling import distributions
from asvit_plugin.search.space import Choice

NETWORKS = load_network_space("digits_vit_resnas")
SETTINGS = EvolutionSettings(population=12, parents=4, mutations=3, crossovers=3, iterations=4)
HIGH = 4e6  # MACs at 56 px; the space has 1.8 to 7.1 million
COST = budget_of(NETWORKS, HIGH).cost


def within(choice: Choice, high: float = HIGH) -> bool:
    return 0.975 * high <= COST(choice) <= high and NETWORKS.space.allows(choice)


def test_the_papers_numbers() -> None:
    settings = EvolutionSettings()
    assert (settings.population, settings.parents, settings.generation) == (500, 75, 150)
    assert (settings.mutate_prob, settings.iterations, settings.trials) == (0.3, 20, 3350)


@pytest.mark.parametrize("high", [1.8e6, 2e6, 3e6, 4e6, 5.5e6, 7e6])
def test_random_nets_are_within_the_budget(high: float) -> None:
    affordable, rng = Affordable(NETWORKS, budget_of(NETWORKS, high)), np.random.default_rng(0)
    nets = [affordable.sample(rng) for _ in range(20)]
    assert all(within(net, high) for net in nets)
    assert len({tuple(net.values()) for net in nets}) > (15 if 2e6 <= high <= 6e6 else 1)


def test_random_nets_vary_in_every_decision() -> None:
    affordable, rng = Affordable(NETWORKS, budget_of(NETWORKS, 3e6)), np.random.default_rng(0)
    nets = [affordable.sample(rng) for _ in range(200)]
    for name, choices in NETWORKS.space.decisions.items():
        assert {net[name] for net in nets} == set(choices), name


def test_random_nets_follow_the_pools() -> None:
    space = NETWORKS.space
    pooled = NetworkSpace(replace(space, pools={"exists_1_2": (0, 1), "dim_1": (1, 0, 0, 0)}))
    affordable, rng = Affordable(pooled, budget_of(pooled, HIGH)), np.random.default_rng(0)
    nets = [affordable.sample(rng) for _ in range(30)]
    assert {net["exists_1_2"] for net in nets} == {0}
    assert {net["dim_1"] for net in nets} == {48}


def test_random_nets_meet_the_constraints() -> None:
    equal = tuple(f"heads_{stage}_{block} == heads_{stage}_1" for stage in (1, 2, 3) for block in (2, 3))
    space = replace(NETWORKS.space, constraints=(*equal, "exists_1_2 <= exists_2_2"))
    affordable, rng = Affordable(NetworkSpace(space), budget_of(NETWORKS, HIGH)), np.random.default_rng(0)
    nets = [affordable.sample(rng) for _ in range(10)]
    assert all(within(net) and space.allows(net) for net in nets)


def test_mutants_differ_by_what_is_drawn_anew() -> None:
    sampler, rng = EvolutionSampler(NETWORKS, budget_of(NETWORKS, HIGH)), np.random.default_rng(0)
    parent = NETWORKS.largest_choice()
    mutants = [sampler.mutate(parent, rng) for _ in range(2000)]
    for name, choices in NETWORKS.space.decisions.items():
        changed = np.mean([mutant[name] != parent[name] for mutant in mutants])
        flips = NETWORKS.roles[name] == "exists"
        assert changed == pytest.approx(0.3 if flips else 0.3 * (1 - 1 / len(choices)), abs=0.035)
        assert {mutant[name] for mutant in mutants} == set(choices)


def test_crossovers_take_half_from_each_parent() -> None:
    sampler, rng = EvolutionSampler(NETWORKS, budget_of(NETWORKS, HIGH)), np.random.default_rng(0)
    mother, father = NETWORKS.largest_choice(), NETWORKS.smallest_choice()
    children = [sampler.cross(mother, father, rng) for _ in range(1000)]
    for name in mother:
        values = [child[name] for child in children]
        assert set(values) == {mother[name], father[name]}
        assert values.count(father[name]) == pytest.approx(500, abs=70)


class Spy(EvolutionSampler):
    """Keeps from which nets each one descends."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.origins: list[tuple[str, list[Choice]]] = []

    def draw(self, study: Any, trial: Any, rng: Any) -> Choice:
        self.origins.append(("random", []))
        return super().draw(study, trial, rng)

    def mutate(self, parent: Any, rng: Any) -> Choice:
        self.origins[-1] = "mutation", [dict(parent)]
        return super().mutate(parent, rng)

    def cross(self, mother: Any, father: Any, rng: Any) -> Choice:
        self.origins[-1] = "crossover", [dict(mother), dict(father)]
        return super().cross(mother, father, rng)


def test_generations_descend_from_the_best_of_all_earlier_ones() -> None:
    sampler = Spy(NETWORKS, budget_of(NETWORKS, HIGH), 3, SETTINGS)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    history: list[tuple[float, Choice]] = []
    for _ in range(SETTINGS.trials):
        trial = study.ask(distributions(NETWORKS.space))
        value = accuracy(NETWORKS, trial.params)["top1"]
        history.append((value, trial.params))
        study.tell(trial, value)
        assert within(trial.params)
    kinds = [kind for kind, _ in sampler.origins]
    assert kinds == ["random"] * 12 + (["mutation"] * 3 + ["crossover"] * 3) * 3
    for place, (kind, origins) in enumerate(sampler.origins):
        if kind != "random":
            begun = 12 + (place - 12) // 6 * 6
            best = [choice for _, choice in sorted(history[:begun], key=lambda pair: -pair[0])[:4]]
            assert all(origin in best for origin in origins)
            assert len(origins) == len({tuple(origin.values()) for origin in origins})
        if kind == "crossover":
            assert all(value in (origins[0][name], origins[1][name]) for name, value in history[place][1].items())
    assert len({tuple(choice.values()) for _, choice in history}) == len(history)  # none twice


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"high": 0}, "high 0; high must be positive"),
        ({"high": math.nan}, "high must be positive"),
        ({"high": 4, "low": 5}, "low 5 and high 4; .* low from 0 to high"),
        ({"high": 4, "low": -1}, "low -1 and high 4"),
    ],
)
def test_budgets_that_are_none(kwargs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        budget_of(NETWORKS, **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"population": 0}, "population is 0; it must be a whole number of at least 1"),
        ({"population": 10}, "parents is 75 with population=10; it must be at least 2 and at most population"),
        ({"parents": 1}, "parents is 1"),
        ({"mutations": -1}, "mutations is -1; it must be a whole number of at least 0"),
        ({"crossovers": 1.5}, "crossovers is 1.5; it must be a whole number"),
        ({"mutations": 0, "crossovers": 0}, "both 0"),
        ({"mutate_prob": 0}, "mutate_prob is 0; it must be over 0"),
        ({"mutate_prob": 1.5}, "mutate_prob is 1.5"),
        ({"iterations": 0}, "iterations is 0"),
    ],
)
def test_evolutions_that_are_none(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvolutionSettings(**kwargs)
