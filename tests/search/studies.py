"""A small study that can be run in processes of its own, and what is compared of it."""

import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from asvit_plugin.search import ReinforceSampler, Space, open_study
from asvit_plugin.search.sampling import SAMPLERS, OptunaSampler, suggest

SPACE = Space("toy", "none", {name: tuple(range(5)) for name in "abcd"}, {}, ("a != b",))
OBJECTIVES = {"high": True, "low": False}
FORK = multiprocessing.get_context("fork")  # torch and optuna are imported already: a process starts at once


def sampler_of(name: str) -> optuna.samplers.BaseSampler:
    return ReinforceSampler(SPACE, 8) if name == "reinforce" else OptunaSampler(SPACE, 8, SAMPLERS[name])


def values_of(choice: dict[str, int]) -> list[float]:
    """A rugged function of a choice; a few have no value."""
    rng = np.random.default_rng([choice[name] for name in "abcd"])
    return [float("nan") if rng.random() < 0.05 else choice["a"] + rng.random(), choice["b"] + rng.random()]


def run(storage: Any, trials: int, sampler: str = "reinforce", seconds: float = 0.0, **kwargs: Any) -> list[dict]:
    """Works on the study until it has so many trials; the trials in order."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)

    def measure(trial: optuna.Trial, choice: dict[str, int]) -> list[float]:
        time.sleep(seconds)
        return values_of(choice)

    with open_study("toy", OBJECTIVES, {"seed": 8}, sampler_of(sampler), storage, **kwargs) as search:
        search.run(lambda trial: suggest(SPACE, trial), measure, trials)
        return [{"choice": trial.params, "values": trial.values} for trial in search.complete]


def start(storage: Path, trials: int, sampler: str = "reinforce", seconds: float = 0.0) -> Any:
    """The same in a process of its own."""
    process = FORK.Process(target=run, args=(storage, trials, sampler, seconds))
    process.start()
    return process


def kill(begin: Callable[[], Any], moments: Iterator[float], times: int) -> int:
    """Begins a search so often, each time killed at the next moment, or until one ends by itself.

    Returns:
        How many were still at work. Whoever calls sees to it that trials take long enough for that: machines differ.
    """
    hits = 0
    while hits < times:
        process = begin()
        process.join(next(moments))
        hits += process.is_alive()
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
    return hits


def moments(seed: Any, first: float, last: float) -> Iterator[float]:
    """Seconds at random, without an end."""
    rng = random.Random(seed)
    while True:
        yield rng.uniform(first, last)


def states(storage: Path) -> list[str]:
    """State of every trial, by number."""
    study = optuna.load_study(study_name="toy", storage=f"sqlite:///{storage}")
    return [trial.state.name for trial in study.trials]
