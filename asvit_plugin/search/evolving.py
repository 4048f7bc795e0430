"""Searching a space of ViT-ResNAS nets by measuring them: evolution within a budget, or Optuna's samplers."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import check_choice
from ..models.vit_resnas_costs import network_macs, network_params
from .budget import Affordable, Budget
from .evolution import EvolutionSampler, EvolutionSettings
from .network_space import NetworkSpace
from .ranking import unbeaten
from .sampling import SAMPLERS, OptunaSampler, SpaceSampler, suggest
from .space import Choice
from .study import SearchStudy, open_study

OBJECTIVES = {"top1": True, "macs": False, "params": False, "latency": False}  # and whether more is better
SAMPLER_NAMES = ("evolution", *SAMPLERS)
NET = "net"  # user attribute of a trial: network_def, params, macs, seconds, and what else was measured

Record = dict[str, Any]


@dataclass(frozen=True)
class EvolvingSettings:
    """What a search of nets depends on, beside its space. The defaults are the paper's.

    Attributes:
        budget: What every net may cost; None for anything, which "evolution" does not take.
        objectives: "top1", and with Optuna's samplers any of "macs", "params" and "latency".
        sampler: "evolution", or one of Optuna's: "random", "tpe", "nsga2".
        steps: Nets to measure; None for as many as ``evolution`` has. A study may be continued with more.
        seed: Of all draws.
        img_size: Side of the images in pixels, or (height, width), for which MACs and parameters are counted.
        in_chans: Their channels.
        num_classes: Classes of the nets; None for the number that their definitions name.
        evolution: Settings of "evolution".
        context: Whatever else the values depend on, as JSON can hold it (the checkpoint's fingerprint, the held-out
            images): a study that was begun with another is refused.
    """

    budget: Budget | None = None
    objectives: tuple[str, ...] = ("top1",)
    sampler: str = "evolution"
    steps: int | None = None
    seed: int = 0
    img_size: int | tuple[int, int] = 224
    in_chans: int = 3
    num_classes: int | None = None
    evolution: EvolutionSettings = field(default_factory=EvolutionSettings)
    context: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("sampler", self.sampler, SAMPLER_NAMES)
        if isinstance(self.objectives, str):
            raise ValueError(f"objectives is {self.objectives!r}; it must be a list of names, such as ['top1']")
        for objective in self.objectives:
            check_choice("objectives", objective, tuple(OBJECTIVES))
        if "top1" not in self.objectives or len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives are {list(self.objectives)}; 'top1' must be among them, and none twice")
        if self.sampler == "evolution" and (self.budget is None or len(self.objectives) > 1):
            raise ValueError(
                f"sampler is 'evolution' with budget {self.budget} and objectives {list(self.objectives)}; it takes a "
                "budget and 'top1' alone, several objectives are for 'nsga2'"
            )
        for name, value, smallest in (("steps", self.trials, 1), ("seed", self.seed, 0)):
            if type(value) is not int or value < smallest:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {smallest}")

    @property
    def trials(self) -> int:
        """Nets to measure."""
        return self.evolution.trials if self.steps is None else self.steps

    @property
    def maximize(self) -> dict[str, bool]:
        """For each objective, whether more is better."""
        return {name: OBJECTIVES[name] for name in self.objectives}


@dataclass(frozen=True)
class Evolved:
    """The outcome of a search, in records of a net's number, choice, values, network_def, macs, params and seconds.

    Attributes:
        best: The net of the highest top-1 accuracy; of several, the one of the fewest MACs.
        front: The nets that no other one beats in every objective, from few MACs to many.
        trials: Every COMPLETE trial.
    """

    best: Record
    front: list[Record]
    trials: list[Record]


def evolve(
    networks: NetworkSpace,
    settings: EvolvingSettings,
    measure: Callable[[Choice], Mapping[str, float]],
    storage: Path | str | None = None,
    study_name: str | None = None,
    on_trial: Callable[[list[Record]], None] | None = None,
) -> Evolved:
    """Search a space of nets; several processes may do so together, and a killed search goes on where it was.

    Args:
        networks: What to search.
        settings: What the search depends on.
        measure: Gives a net's objectives, but for MACs and parameters, and whatever else is to be kept. A net that
            was measured before is not measured again; widths of removed blocks make no other net.
        storage: An SQLite file or a URL of Optuna; None keeps everything in memory.
        study_name: Name in the storage; by default the space's, with "-evolution".
        on_trial: Called at the start, and after each trial of this process, with the records of all COMPLETE trials.

    Raises:
        ValueError: if the budget holds no net (names what nets cost), the study was begun with other settings, or
            ``measure`` lacks an objective.
        RuntimeError: if the database is locked, broken or out of reach.
    """
    sampler = make_sampler(networks, settings)
    sampler.points.sample(np.random.default_rng(settings.seed))  # refuses a budget without nets before a study is made
    name, watch = study_name or f"{networks.space.name}-evolution", on_trial or (lambda trials: None)
    evaluate = _Evaluation(networks, settings, measure)
    with open_study(name, settings.maximize, study_settings(networks, settings), sampler, storage) as search:
        watch(records(search, settings))
        search.run(
            lambda trial: suggest(networks.space, trial),
            lambda trial, choice: evaluate.trial(search, trial, choice),
            settings.trials,
            lambda study, trial: watch(records(search, settings)),
        )
        trials = records(search, settings)
    return Evolved(best_of(trials), pareto_front(trials, settings.maximize), trials)


def make_sampler(networks: NetworkSpace, settings: EvolvingSettings) -> SpaceSampler:
    """The sampler that the settings name; each gives nets within the budget only."""
    if settings.sampler == "evolution":
        return EvolutionSampler(networks, settings.budget, settings.seed, settings.evolution)
    affordable = None if settings.budget is None else Affordable(networks, settings.budget)
    return OptunaSampler(networks.space, settings.seed, SAMPLERS[settings.sampler], affordable)


def study_settings(networks: NetworkSpace, settings: EvolvingSettings) -> dict[str, Any]:
    """All that a trial depends on: what a study must have been begun with."""
    names = ("objectives", "sampler", "seed", "img_size", "in_chans", "num_classes")
    chosen = {name: getattr(settings, name) for name in names}
    evolution = {name: value for name, value in asdict(settings.evolution).items() if name != "iterations"}
    extra = {"evolution": evolution} if settings.sampler == "evolution" else {}
    limit = settings.budget
    budget = None if limit is None else {"name": limit.name, "low": limit.low, "high": limit.high}
    space = f"{networks.space.name} ({networks.space.fingerprint})"
    return {**settings.context, "space": space, "budget": budget, **chosen, **extra}


def records(search: SearchStudy, settings: EvolvingSettings) -> list[Record]:
    """The COMPLETE trials as plain data; a value that was not finite is NaN."""
    return [
        {
            "number": trial.number,
            "choice": trial.params,
            **trial.user_attrs[NET],
            "values": {
                **trial.user_attrs[NET]["values"],
                **{
                    name: each if math.isfinite(each) else math.nan
                    for name, each in zip(settings.objectives, trial.values)
                },
            },
        }
        for trial in search.complete
    ]


def best_of(trials: Sequence[Record]) -> Record:
    """The first record of the highest top-1 accuracy; of several, the one of the fewest MACs."""
    worth = {trial["number"]: trial["values"]["top1"] for trial in trials}
    return min(trials, key=lambda trial: (-np.nan_to_num(worth[trial["number"]], nan=-math.inf), trial["macs"]))


def pareto_front(trials: Sequence[Record], maximize: Mapping[str, bool]) -> list[Record]:
    """The nets that no other one beats, each once, from few MACs to many; those without a value have no part in it."""
    nets = list({trial["network_def"]: trial for trial in reversed(trials)}.values())
    front = unbeaten({name: [net["values"][name] for net in nets] for name in maximize}, maximize)
    return sorted((nets[index] for index in front), key=lambda net: net["macs"])


class _Evaluation:
    """Measures the nets of a space."""

    def __init__(
        self, networks: NetworkSpace, settings: EvolvingSettings, measure: Callable[[Choice], Mapping[str, float]]
    ) -> None:
        self.networks, self.settings, self.measure = networks, settings, measure

    def trial(self, search: SearchStudy, trial: Any, choice: Choice) -> list[float]:
        """The objectives of a trial's choice; a net that was measured before is not measured again."""
        definition = str(self.networks.distinct_network(choice))
        before = (other for other in search.complete if other.user_attrs[NET]["network_def"] == definition)
        same = next(before, None)
        if same is not None:
            trial.set_user_attr(NET, same.user_attrs[NET] | {"seconds": 0.0})
            return list(same.values)
        net = {"network_def": definition, **self.costs(choice)}
        begin = time.perf_counter()
        measured = dict(self.measure(choice))
        net["seconds"] = round(time.perf_counter() - begin, 3)
        found = {**measured, "macs": net["macs"], "params": net["params"]}
        missing = [name for name in self.settings.objectives if name not in found]
        if missing:
            raise ValueError(f"measure gave {list(measured)}; it must give {missing[0]!r}, which is an objective")
        net["values"] = {name: value for name, value in measured.items() if name not in self.settings.objectives}
        trial.set_user_attr(NET, net)
        return [found[name] for name in self.settings.objectives]

    def costs(self, choice: Choice) -> dict[str, int]:
        """MACs of one image and parameters of a net."""
        net, settings = self.networks.network(choice), self.settings
        given = (settings.img_size, settings.in_chans, settings.num_classes)
        return {"macs": network_macs(net, *given), "params": network_params(net, *given)}
