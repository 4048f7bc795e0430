"""Whole searches by evolution and by Optuna's samplers: answers, studies that are killed or shared, and refusals."""

import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from network_spaces import accuracy, budget_of, small
from studies import FORK, kill, moments

from asvit_plugin.search.evolution import EvolutionSettings
from asvit_plugin.search.evolving import Evolved, EvolvingSettings, evolve, pareto_front
from asvit_plugin.search.network_space import NetworkSpace, load_network_space
from asvit_plugin.search.space import Choice

NETWORKS = load_network_space("digits_vit_resnas")  # 1.8 to 7.1 million MACs at 56 px
SMALL = small("(4, {dim_1})", "(5, {dim_1}, 4)")  # 0.45 to 0.91 million; of fewer decisions, which take time to store
SETTINGS = EvolutionSettings(population=12, parents=4, mutations=3, crossovers=3, iterations=4)
SHORT = EvolutionSettings(population=6, parents=3, mutations=2, crossovers=2, iterations=3)


def settings_of(**kwargs: Any) -> EvolvingSettings:
    return EvolvingSettings(
        **{"budget": budget_of(NETWORKS, 4e6), "evolution": SETTINGS, "img_size": 56, "in_chans": 1, **kwargs}
    )


def search(
    storage: Path | None,
    steps: int | None = None,
    networks: NetworkSpace = NETWORKS,
    seconds: float = 0.0,
    **kwargs: Any,
) -> Evolved:
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)

    def measure(choice: Choice) -> dict[str, float]:
        time.sleep(seconds)
        return {**accuracy(networks, choice), "loss": 0.5, "latency": 1 / (1 + choice["dim_2"])}

    return evolve(networks, settings_of(steps=steps, **kwargs), measure, storage)


def search_small(storage: Path | None, steps: int | None = None, seconds: float = 0.0, **kwargs: Any) -> Evolved:
    """The same in the small space."""
    given = {"budget": budget_of(SMALL, 0.75e6, 0.72e6), "evolution": SHORT, **kwargs}
    return search(storage, steps, SMALL, seconds, **given)


def start(*args: Any, **kwargs: Any) -> Any:
    """That in a process of its own."""
    process = FORK.Process(target=search_small, args=args, kwargs=kwargs)
    process.start()
    return process


def drawn(found: Evolved) -> list[tuple[Choice, dict[str, float]]]:
    return [(trial["choice"], trial["values"]) for trial in found.trials]


def test_a_small_study_is_better_than_random_nets() -> None:
    settings = EvolutionSettings(population=40, parents=10, mutations=15, crossovers=15, iterations=8)
    evolved = search(None, evolution=settings)
    drawn_at_random = search(None, settings.trials, sampler="random", evolution=settings)
    assert len(evolved.trials) == len(drawn_at_random.trials) == 250
    best, other = (
        np.mean(sorted(each["values"]["top1"] for each in found.trials)[-10:]) for found in (evolved, drawn_at_random)
    )
    assert best > other + 0.5
    assert evolved.best["values"]["top1"] > drawn_at_random.best["values"]["top1"]


@pytest.mark.parametrize(
    ("sampler", "objectives"),
    [
        ("evolution", ("top1",)),
        ("nsga2", ("top1", "macs")),
        ("nsga2", ("top1", "latency", "params")),
        ("random", ("top1", "macs")),
        ("tpe", ("top1",)),
    ],
)
def test_every_trial_is_within_the_budget(sampler: str, objectives: tuple[str, ...]) -> None:
    found = search(None, 30, sampler=sampler, objectives=objectives)
    assert len(found.trials) == 30
    for trial in found.trials:
        assert 3.9e6 <= trial["macs"] <= 4e6
        assert trial["macs"] == budget_of(NETWORKS, 1).cost(trial["choice"])
        assert set(trial["values"]) == {"top1", "loss", "latency", *objectives}
    best = max(trial["values"]["top1"] for trial in found.trials)
    assert found.best["values"]["top1"] == best


def test_several_objectives_without_a_budget() -> None:
    found = search(None, 60, sampler="nsga2", objectives=("top1", "macs"), budget=None)
    costs = [net["macs"] for net in found.front]
    worths = [net["values"]["top1"] for net in found.front]
    assert len(found.front) >= 3
    assert costs == sorted(costs)
    assert worths == sorted(worths)
    assert max(trial["macs"] for trial in found.trials) > 1.5 * min(trial["macs"] for trial in found.trials)
    for trial in found.trials:
        others = [
            net
            for net in found.front
            if net["macs"] <= trial["macs"] and net["values"]["top1"] >= trial["values"]["top1"]
        ]
        assert others


def test_the_front_has_each_net_once_and_none_without_a_value() -> None:
    rows = [("a", 3.0, 30), ("b", 2.0, 20), ("c", 2.0, 25), ("a", 3.0, 30), ("d", math.nan, 1), ("e", 1.0, 10)]
    trials = [
        {"number": number, "network_def": name, "macs": macs, "values": {"top1": top1, "macs": macs}}
        for number, (name, top1, macs) in enumerate(rows)
    ]
    front = pareto_front(trials, {"top1": True, "macs": False})
    assert [net["number"] for net in front] == [5, 1, 0]


def test_equal_accuracies_go_to_the_cheaper_net() -> None:
    found = evolve(NETWORKS, settings_of(), lambda choice: {"top1": 0.5})
    assert found.best["macs"] == min(trial["macs"] for trial in found.trials)
    values = iter([math.nan, 0.25, *[math.nan] * 100])
    found = evolve(NETWORKS, settings_of(), lambda choice: {"top1": next(values)})
    assert found.best["values"]["top1"] == 0.25
    assert math.isnan(found.trials[0]["values"]["top1"])


def test_a_net_is_measured_once() -> None:
    measured: list[str] = []

    def measure(choice: Choice) -> dict[str, float]:
        measured.append(str(NETWORKS.distinct_network(choice)))
        return accuracy(NETWORKS, choice)

    reported: list[int] = []
    settings = settings_of(steps=60, budget=budget_of(NETWORKS, 1.85e6), evolution=EvolutionSettings(10, 4, 5, 5))
    found = evolve(NETWORKS, settings, measure, on_trial=lambda trials: reported.append(len(trials)))
    definitions = [trial["network_def"] for trial in found.trials]
    assert len(measured) == len(set(measured)) == len(set(definitions)) < len(definitions)
    assert measured == list(dict.fromkeys(definitions))
    assert reported == list(range(61))
    values = {trial["network_def"]: trial["values"] for trial in found.trials}
    assert all(trial["values"] == values[trial["network_def"]] for trial in found.trials)


# Studies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["evolution", "nsga2"])
def test_killed_at_any_moment_it_ends_as_if_undisturbed(sampler: str, tmp_path: Path) -> None:
    settings = {"sampler": sampler, "steps": SHORT.trials}
    expected, file = drawn(search_small(None, **settings)), tmp_path / "study.db"
    begin = partial(start, file, seconds=0.1, **settings)  # 0.9 s, the first three moments, are not enough
    assert kill(begin, moments(1, 0.1, 0.3), 4) >= 3
    assert drawn(search_small(file, **settings)) == expected


def test_two_processes_share_a_study(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    processes = [start(file, seconds=0.05) for _ in range(2)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    found = search_small(file)
    assert len(found.trials) == SHORT.trials
    first = [tuple(trial["choice"].values()) for trial in found.trials[: SHORT.population]]
    assert len(set(first)) == len(first)  # those begun with the same knowledge are drawn apart
    assert all(0.72e6 <= trial["macs"] <= 0.75e6 for trial in found.trials)
    study = optuna.load_study(study_name="small-evolution", storage=f"sqlite:///{file}")
    workers = [trial.user_attrs["worker"] for trial in study.trials]
    assert min(workers.count(worker) for worker in set(workers)) >= 3
    assert len(set(workers)) == 2


def test_more_steps_continue_a_study(tmp_path: Path) -> None:
    search_small(tmp_path / "a.db", 7)
    assert drawn(search_small(tmp_path / "a.db", 12)) == drawn(search_small(None, 12))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"budget": budget_of(SMALL, 0.7e6)}, "was begun with budget"),
        ({"context": {"checkpoint": "b"}}, "was begun with checkpoint 'a', not 'b'"),
        ({"seed": 1}, "was begun with seed 0, not 1"),
        ({"evolution": EvolutionSettings(6, 3, 2, 1, iterations=3)}, "was begun with evolution"),
        ({"sampler": "random"}, "was begun with sampler"),
        ({"img_size": 112, "context": {"checkpoint": "a"}}, "was begun with img_size 56, not 112"),
    ],
)
def test_a_study_of_other_settings_is_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    search_small(tmp_path / "a.db", 1, context={"checkpoint": "a"})
    with pytest.raises(ValueError, match=message):
        search_small(tmp_path / "a.db", 2, **{"context": {"checkpoint": "a"}, **changed})


def test_a_study_of_another_space_is_refused(tmp_path: Path) -> None:
    other = NetworkSpace(replace(SMALL.space, pools={"exists_1_2": (2, 1)}))
    search_small(tmp_path / "a.db", 1)
    with pytest.raises(ValueError, match=r"was begun with space 'small \("):
        search(tmp_path / "a.db", 2, other, budget=budget_of(SMALL, 0.75e6, 0.72e6), evolution=SHORT)


@pytest.mark.parametrize(
    ("high", "low", "message"),
    [
        (1e6, None, "975000 to 1000000 macs, which no net has: .* reach from 1.752e\\+06 to 7.052e\\+06"),
        (9e6, None, "which no net has: .* reach from 1.752e\\+06 to 7.052e\\+06"),
        (4e6 + 1, 4e6 + 1, "none of 600 drawn nets has: the nearest has .*, and .* reach from"),
    ],
)
@pytest.mark.parametrize("sampler", ["evolution", "nsga2"])
def test_a_budget_without_nets(sampler: str, high: float, low: float | None, message: str, tmp_path: Path) -> None:
    begin, file = time.monotonic(), tmp_path / "study.db"
    with pytest.raises(ValueError, match=message):
        search(file, 5, sampler=sampler, budget=budget_of(NETWORKS, high, low))
    assert time.monotonic() - begin < 60
    assert not file.exists()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sampler": "annealing"}, "sampler is 'annealing'; it must be one of 'evolution'"),
        ({"objectives": "top1"}, "objectives is 'top1'; it must be a list of names"),
        ({"objectives": ("top5",)}, "objectives is 'top5'; it must be one of 'top1'"),
        ({"objectives": ("macs",), "sampler": "nsga2"}, "'top1' must be among them"),
        ({"objectives": ("top1", "top1"), "sampler": "nsga2"}, "none twice"),
        ({"objectives": ("top1", "macs")}, "it takes a budget and 'top1' alone"),
        ({"budget": None}, "it takes a budget and 'top1' alone"),
        ({"steps": 0}, "steps is 0; it must be a whole number of at least 1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_are_none(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_of(**kwargs)


def test_an_objective_that_is_not_measured() -> None:
    settings = settings_of(sampler="nsga2", objectives=("top1", "latency"), steps=1)
    with pytest.raises(ValueError, match=r"measure gave \['top1'\]; it must give 'latency'"):
        evolve(NETWORKS, settings, lambda choice: accuracy(NETWORKS, choice))
