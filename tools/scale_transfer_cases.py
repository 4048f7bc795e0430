"""Parts of tools/scale_transfer.py: native paths, strategies at foreign budgets, and nets timed side by side."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from step_progress import StepProgress

from asvit_plugin.costs import LatencyCache, LatencyProbe, LatencySetting
from asvit_plugin.costs.latency import measure_in_turn
from asvit_plugin.costs.latency_record import Latency, LatencyKey, speed_ratio
from asvit_plugin.search.measuring import build_net, input_shape
from asvit_plugin.search.scaling import ScalingSettings, scale
from asvit_plugin.search.scaling_bases import Base
from asvit_plugin.search.scaling_costs import Pricing, Target, Timing
from asvit_plugin.search.scaling_nets import ScaledNet
from asvit_plugin.search.scaling_oracle import Oracle, proxy_oracle
from asvit_plugin.search.scaling_strategy import Strategy, fit_strategy
from asvit_plugin.search.scaling_transfer import apply_strategy
from asvit_plugin.search.space import Choice

COUNTED = "macs"  # the cost that is no latency
_TURNS = 5  # of a net and the base
Record = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A base, what it costs in, and what chooses its path.

    Attributes:
        key: "base", or "onto" for the net that strategies are carried to.
        cost: "macs", RUNTIME or RUNTIME@DEVICE.
        oracle: Name of a proxy.
    """

    key: str
    cost: str
    oracle: str

    @property
    def name(self) -> str:
        """Of its study."""
        return f"{self.key} {self.cost} {self.oracle}"


@dataclass(frozen=True)
class Transfer:
    """A strategy's case, and the one whose budget it is applied at."""

    source: Case
    goal: Case


@dataclass(frozen=True)
class TimingBesideBase(Timing):
    """Timing of nets in turn with the base, so that a machine that is slow for a while makes no net look slow.

    A net's seconds are the base's, measured once, times the median ratio of turns. The clock may be processor time too.

    Attributes:
        base: What nets are timed with.
    """

    base: Base | None = None

    def __post_init__(self) -> None:  # Timing's own takes the wall clock only
        if type(self.batch) is not int or self.batch < 1 or not self.seconds > 0:
            raise ValueError(
                f"batch is {self.batch!r} and seconds {self.seconds!r}; they must be positive, batch whole"
            )

    def measure(self, model: str, arguments: Mapping[str, Any]) -> dict[str, float]:
        """As :meth:`Timing.measure`."""
        found = self._latency(model, arguments)
        return {"cost": found.median, "p10": found.p10, "p90": found.p90, "drift": found.drift}

    def record(self) -> dict[str, Any]:
        """As :meth:`Timing.record`, with the clock."""
        return {**super().record(), "clock": self.setting.clock}

    def probe(self, model: str, arguments: Mapping[str, Any]) -> LatencyProbe:
        """A net made ready."""
        net = build_net(model, arguments)
        return LatencyProbe(net, (self.batch, *input_shape(net, arguments)), self.setting)

    @cached_property
    def _base_probe(self) -> LatencyProbe:
        return self.probe(self.base.model, self.base.arguments)

    def _latency(self, model: str, arguments: Mapping[str, Any]) -> Latency:
        net = build_net(model, arguments)
        found = self.cache.get(LatencyKey.of(net, (self.batch, *input_shape(net, arguments)), self.setting))
        if found is None:
            found = self._measured(model, arguments)
            self.cache.put(found)
        return found

    def _measured(self, model: str, arguments: Mapping[str, Any]) -> Latency:
        if (model, arguments) == (self.base.model, self.base.arguments):
            self._base_probe.run(self.seconds)
            return self._base_probe.result()
        base = self._latency(self.base.model, self.base.arguments)
        own, beside = measure_in_turn([self.probe(model, arguments), self._base_probe], self.seconds, _TURNS)
        ratios = [mine / its for mine, its in zip(own.turns, beside.turns[-_TURNS:])]
        low, median, high = (base.median * each for each in np.quantile(ratios, [0.1, 0.5, 0.9]).tolist())
        return replace(own, median=median, p10=low, p90=high)


class Workshop:
    """Makes the nets, and keeps all of them.

    Args:
        args: Options of the command.
        bases: By key.
    """

    def __init__(self, args: argparse.Namespace, bases: Mapping[str, Base]) -> None:
        self._args, self._bases = args, bases
        self._strategies: dict[str, Strategy] = {}
        self._nets: dict[str, list[ScaledNet]] = {key: [] for key in bases}
        self._score = lru_cache(maxsize=None)(self._measure_score)
        self._timing = lru_cache(maxsize=None)(self._make_timing)

    def native(self, case: Case, progress: StepProgress) -> Record:
        """The path of a case, and its strategy where the path goes anywhere."""
        base, target, oracle, timing = self._parts(case)
        settings = ScalingSettings(growth=self._args.growth)
        storage = self._args.output / "studies.db"
        found = scale(base.space, base.choice, target, oracle, settings, timing, storage, case.name, progress)
        record = {**asdict(case), "end": found.end, "budget": target.value, "path": self._keep(case.key, found.path)}
        record |= {"scores": [net.score for net in found.path], "trials": len(found.trials), "strategy": None}
        try:
            fitted = fit_strategy(found, target, oracle, timing)
        except ValueError as error:
            return {**record, "no_strategy": str(error)}
        fitted.save(self._args.output / f"{case.name.replace(' ', '-').replace('@', '-')}.json")
        self._strategies[case.name] = fitted
        return {**record, "strategy": asdict(fitted)}

    def transfer(self, each: Transfer, natives: Mapping[Case, Record]) -> Record | None:
        """A strategy applied at another case's budget; None where there is no strategy."""
        strategy, native = self._strategies.get(each.source.name), natives[each.goal]
        if strategy is None:
            return None
        base, target, oracle, timing = self._parts(each.goal)
        record = {"source": asdict(each.source), "goal": asdict(each.goal)}
        try:
            found = apply_strategy(strategy, base.space, base.choice, target, timing)
        except ValueError as error:  # it moves nothing that this base has
            return {**record, "end": str(error), "net": None, "score": None, "regret": None}
        net = found.path[-1]
        score = self._score(each.goal.key, each.goal.oracle, tuple(net.choice.items()))
        first, last, mine = (oracle.worth(value) for value in (native["scores"][0], native["scores"][-1], score))
        regret = (last - mine) / (last - first) if last > first else None
        index = self._keep(each.goal.key, [net])[0]
        return {
            **record,
            "end": found.end,
            "net": index,
            "score": score,
            "regret": regret,
            "tries": len(found.trials) - 1,
        }

    def side_by_side(self, costs: Mapping[str, Sequence[str]]) -> dict[str, list[Record]]:
        """All nets of each base with their latencies, in every runtime timed in turn."""
        found = {key: [_record(net) for net in nets] for key, nets in self._nets.items()}
        for key, records in found.items():
            for cost in costs[key]:
                if cost != COUNTED:
                    base, *_ = latencies = self._in_turn(key, cost)
                    for record, each in zip(records, latencies, strict=True):
                        spread = {name: getattr(each, name) for name in ("median", "p10", "p90")}
                        record["latency"][cost] = {**spread, "over_base": 1 / speed_ratio(each, base)[0]}
        return found

    def device(self, cost: str) -> str:
        """Where a runtime's cost is measured."""
        return cost.partition("@")[2] or "cpu"

    def _in_turn(self, key: str, cost: str) -> list[Latency]:
        timing = self._timing(key, cost)
        probes = [timing.probe(net.model, net.arguments) for net in self._nets[key]]
        return measure_in_turn(probes, self._args.seconds, self._args.rounds)

    def check(self, costs: Sequence[str]) -> None:
        """Refuse runtimes, devices and dtypes that this machine has not, before any path is begun.

        Raises:
            ValueError: naming what is missing.
        """
        for cost in costs:
            try:
                if cost != COUNTED:
                    self._setting(cost)
            except ModuleNotFoundError as error:
                raise ValueError(f"--costs has {cost!r}: {error}") from error

    def _setting(self, cost: str) -> LatencySetting:
        runtime, device = cost.partition("@")[0], self.device(cost)
        clock = self._args.clock if device == "cpu" else "wall"
        return LatencySetting(runtime, device, self._args.dtype, self._args.threads, clock)

    def _make_timing(self, key: str, cost: str) -> TimingBesideBase:
        cache = LatencyCache(self._args.output / "latency.json")  # so that a resumed run finds the same
        setting = self._setting(cost)
        return TimingBesideBase(setting, self._args.batch_size, self._args.seconds, cache, self._bases[key])

    def _parts(self, case: Case) -> tuple[Base, Target, Oracle, Timing | None]:
        args, base = self._args, self._bases[case.key]
        timing = None if case.cost == COUNTED else self._timing(case.key, case.cost)
        name = COUNTED if timing is None else "latency"
        cost = Pricing(base.space, Target(name), timing).measure(base.choice)["cost"]
        return base, Target(name, args.ratio * cost, args.tolerance), self._oracle(case.oracle), timing

    def _oracle(self, name: str) -> Oracle:
        return proxy_oracle(name, self._args.repeats, self._args.seed)

    def _measure_score(self, key: str, oracle: str, items: tuple[tuple[str, Any], ...]) -> float:
        return float(self._oracle(oracle).measure(*self._bases[key].space.arguments(dict(items))))

    def _keep(self, key: str, nets: Sequence[ScaledNet]) -> list[int]:
        """Indices of nets among all of a base; new ones join."""
        known = self._nets[key]
        for net in nets:
            if net.choice not in [each.choice for each in known]:
                known.append(net)
        choices: list[Choice] = [each.choice for each in known]
        return [choices.index(net.choice) for net in nets]


def _record(net: ScaledNet) -> Record:
    return {"choice": net.choice, "params": net.params, "macs": net.macs, "create_model": net.line, "latency": {}}
