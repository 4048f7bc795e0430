"""Searching a space for the best topology without training: objectives are proxies, the record is an Optuna study."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..checks import check_choice
from .measuring import (
    check_measurement,
    count_costs,
    create_model_line,
    directions,
    measure_scores,
    with_img_size,
)
from .ranking import rank_sum
from .reinforce import Policy, ReinforceSampler, ReinforceSettings
from .sampling import SAMPLERS, OptunaSampler, SpaceSampler, suggest
from .space import Choice, Space
from .study import SearchStudy, open_study

SAMPLER_NAMES = ("reinforce", *SAMPLERS)
NET = "net"  # user attribute of a trial: params, macs, spread of the proxies, seconds


@dataclass(frozen=True)
class TopologySettings:
    """What a seed search depends on, beside its space. The defaults are As-ViT's.

    Attributes:
        steps: Nets to measure; a study may be continued with more.
        sampler: "reinforce", or one of Optuna's: "random", "tpe", "nsga2".
        proxies: Names of the objectives, of ``asvit_plugin.search.PROXIES``.
        seed: Of the policy, the draws and all proxies: every net is measured by the same random numbers.
        repeats: Draws of weights per net and proxy.
        img_size: Image side in pixels, where the space does not decide it; None for the model's own.
        device: Where proxies are measured. No part of what a study is refused for.
        reinforce: Settings of REINFORCE.
    """

    steps: int = 500
    sampler: str = "reinforce"
    proxies: tuple[str, ...] = ("length_distortion", "ntk_condition")
    seed: int = 8
    repeats: int = 5
    img_size: int | None = None
    device: str = "cpu"
    reinforce: ReinforceSettings = field(default_factory=ReinforceSettings)

    def __post_init__(self) -> None:
        check_choice("sampler", self.sampler, SAMPLER_NAMES)
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps is {self.steps!r}; it must be a whole number of at least 1")
        check_measurement(self.proxies, self.seed, self.repeats, self.img_size)

    @property
    def maximize(self) -> dict[str, bool]:
        """For each proxy, whether more is better."""
        return directions(self.proxies)


@dataclass(frozen=True)
class Answer:
    """A net that the search gives, with its raw objectives.

    Attributes:
        choice: The point of the space.
        model: timm's name of the model.
        arguments: Further arguments of ``timm.create_model``.
        values: Value of each proxy; NaN where a net gave none.
        params: Parameters.
        macs: Multiply-accumulates of one image at the search's size.
    """

    choice: Choice
    model: str
    arguments: dict[str, Any]
    values: dict[str, float]
    params: int
    macs: int

    @property
    def line(self) -> str:
        """The call of ``timm.create_model`` that makes the net."""
        return create_model_line(self.model, self.arguments)


@dataclass(frozen=True)
class Topology:
    """The outcome of a search.

    Attributes:
        best: Of all nets measured, the one with the lowest sum of ranks.
        argmax: The policy's most probable net, the published answer; None for Optuna's samplers.
        policy: The policy, with its rewards and entropies; None for Optuna's samplers.
        trials: Every COMPLETE trial: number, choice, values, spread of the values over repeats, params, macs, seconds.
    """

    best: Answer
    argmax: Answer | None
    policy: Policy | None
    trials: list[dict[str, Any]]


def search_topology(
    space: Space,
    settings: TopologySettings | None = None,
    storage: Path | str | None = None,
    study_name: str | None = None,
    on_trial: Callable[[list[dict[str, Any]]], None] | None = None,
) -> Topology:
    """Search a space; several processes may do so together, and a killed search goes on where it was.

    Args:
        space: What to search.
        settings: The paper's by default.
        storage: An SQLite file or a URL of Optuna; None keeps everything in memory.
        study_name: Name in the storage; by default the space's.
        on_trial: Called at the start, and after each trial of this process, with all COMPLETE trials.

    Raises:
        ValueError: if the study of that name is of another space or other settings, or a net cannot be built.
        RuntimeError: if the database is locked, broken or out of reach.
    """
    settings = settings or TopologySettings()
    sampler = make_sampler(space, settings)
    name, record = study_name or space.name, study_settings(space, settings)
    evaluate = _Evaluation(space, settings)
    watch = on_trial or (lambda trials: None)
    with open_study(name, settings.maximize, record, sampler, storage) as search:
        watch(records(search, settings))
        search.run(
            lambda trial: suggest(space, trial),
            lambda trial, choice: evaluate.trial(search, trial, choice),
            settings.steps,
            lambda study, trial: watch(records(search, settings)),
        )
        policy = sampler.policy(search.study) if isinstance(sampler, ReinforceSampler) else None
        trials = records(search, settings)
    best = best_by_rank_sum(trials, settings.maximize)
    argmax = evaluate.answer(policy.most_probable(), trials) if policy else None
    return Topology(evaluate.answer(best["choice"], trials), argmax, policy, trials)


def make_sampler(space: Space, settings: TopologySettings) -> SpaceSampler:
    """The sampler that the settings name."""
    if settings.sampler == "reinforce":
        return ReinforceSampler(space, settings.seed, settings.reinforce)
    return OptunaSampler(space, settings.seed, SAMPLERS[settings.sampler])


def study_settings(space: Space, settings: TopologySettings) -> dict[str, Any]:
    """All that a trial depends on: what a study must have been begun with."""
    names = ("sampler", "proxies", "seed", "repeats", "img_size")
    chosen = {name: getattr(settings, name) for name in names}
    extra = {"reinforce": asdict(settings.reinforce)} if settings.sampler == "reinforce" else {}
    return {"space": f"{space.name} ({space.fingerprint})", **chosen, **extra}


def records(search: SearchStudy, settings: TopologySettings) -> list[dict[str, Any]]:
    """The COMPLETE trials as plain data; a value that was not finite is NaN."""
    return [
        {
            "number": trial.number,
            "choice": trial.params,
            "values": {
                name: value if math.isfinite(value) else math.nan for name, value in zip(settings.proxies, trial.values)
            },
            **trial.user_attrs[NET],
        }
        for trial in search.complete
    ]


def best_by_rank_sum(trials: Sequence[Mapping[str, Any]], maximize: Mapping[str, bool]) -> dict[str, Any]:
    """Of some records, the first with the lowest sum of dense ranks; a net counts once however often it was drawn."""
    nets = list({tuple(trial["choice"].values()): trial for trial in reversed(trials)}.values())[::-1]
    ranks = rank_sum({name: [net["values"][name] for net in nets] for name in maximize}, maximize)
    return nets[min(range(len(nets)), key=ranks.__getitem__)]


class _Evaluation:
    """Builds nets of a space and measures them."""

    def __init__(self, space: Space, settings: TopologySettings) -> None:
        self.space, self.settings = space, settings

    def trial(self, search: SearchStudy, trial: Any, choice: Choice) -> list[float]:
        """The objectives of a trial's choice; a net that was measured before is not measured again."""
        name, arguments = self.arguments(choice)
        before = next((other for other in search.complete if other.params == choice), None)
        if before is not None:
            values, net = list(before.values), before.user_attrs[NET] | {"seconds": 0.0}
        else:
            values, net = self.measure(name, arguments)
        trial.set_user_attr(NET, net)
        return values

    def arguments(self, choice: Choice) -> tuple[str, dict[str, Any]]:
        """Model and arguments of a choice, with the image size of the settings."""
        name, arguments = self.space.arguments(choice)
        return name, with_img_size(self.space.name, arguments, self.settings.img_size)

    def measure(self, name: str, arguments: Mapping[str, Any]) -> tuple[list[float], dict[str, Any]]:
        """Value of each proxy, and what else is kept of a net."""
        begin, settings = time.perf_counter(), self.settings
        scored = {**arguments, **self.space.scoring}
        values, spread = measure_scores(
            name, scored, settings.proxies, settings.repeats, settings.seed, settings.device
        )
        net = {**count_costs(name, arguments), "spread": spread, "seconds": round(time.perf_counter() - begin, 3)}
        return [values[proxy] for proxy in settings.proxies], net

    def answer(self, choice: Choice, trials: Sequence[Mapping[str, Any]]) -> Answer:
        """A choice as an answer; one that no trial drew is measured now."""
        name, arguments = self.arguments(choice)
        for trial in trials:
            if trial["choice"] == choice:
                return Answer(choice, name, arguments, trial["values"], trial["params"], trial["macs"])
        values, net = self.measure(name, arguments)
        named = dict(zip(self.settings.proxies, values))
        return Answer(choice, name, arguments, named, net["params"], net["macs"])
