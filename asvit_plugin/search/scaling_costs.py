"""What the points of a space cost: MACs and parameters, or seconds on this device in this runtime."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import costs
from ..checks import check_choice
from ..costs import LatencyCache, LatencySetting
from ..costs.latency_record import hardware_name, versions
from ..costs.runtimes import PACKAGES
from .measuring import build_net, input_shape
from .scaling_formulas import count
from .scaling_guess import LatencyGuess
from .space import Choice, Space
from .templates import fill

UNITS = {"macs": "multiply-accumulates", "params": "parameters", "latency": "seconds"}


@dataclass(frozen=True)
class Target:
    """What a scaled net is to cost.

    Attributes:
        name: "macs" of one image, "params", or "latency", seconds for one batch.
        value: So much; None for what the base costs.
        tolerance: Part of it that a net may be off, either way.

    Raises:
        ValueError: naming the field that is out of range.
    """

    name: str = "macs"
    value: float | None = None
    tolerance: float = 0.03

    def __post_init__(self) -> None:
        check_choice("budget", self.name, tuple(UNITS))
        if self.value is not None and not 0 < self.value < math.inf:
            raise ValueError(f"budget is {self.value!r} {UNITS[self.name]}; it must be positive and finite")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance is {self.tolerance!r}; it must be between 0 and 1")

    @property
    def slack(self) -> float:
        """The tolerance as a difference of logarithms."""
        return math.log1p(self.tolerance)


@dataclass(frozen=True)
class Timing:
    """How latency is measured.

    Attributes:
        setting: Runtime, device, dtype and threads.
        batch: Images at once.
        seconds: How long each net is timed.
        cache: Where latencies are looked up first, and kept; None measures always.
    """

    setting: LatencySetting = field(default_factory=lambda: LatencySetting(threads=1))
    batch: int = 1
    seconds: float = 1.0
    cache: LatencyCache | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.batch, int) or self.batch < 1:
            raise ValueError(f"batch is {self.batch!r}; it must be a whole number of at least 1")
        if not self.seconds > 0:
            raise ValueError(f"seconds is {self.seconds!r}; it must be positive")
        if self.setting.clock != "wall":
            raise ValueError(f"clock is {self.setting.clock!r}; scaling measures by 'wall'")
        if self.setting.step != "forward":
            raise ValueError(f"step is {self.setting.step!r}; scaling measures 'forward'")

    def measure(self, model: str, arguments: Mapping[str, Any]) -> dict[str, float]:
        """Seconds for one batch: the median as "cost", with "p10", "p90" and "drift"."""
        net = build_net(model, arguments)
        shape = (self.batch, *input_shape(net, arguments))
        how = self.setting
        found = costs.measure_latency(
            net, shape, how.runtime, how.device, how.dtype, how.threads, self.seconds, cache=self.cache
        )
        return {"cost": found.median, "p10": found.p10, "p90": found.p90, "drift": found.drift}

    def record(self) -> dict[str, Any]:
        """What a latency belongs to, as JSON can hold it."""
        how = self.setting
        return {
            "hardware": hardware_name(how.device),
            **{name: getattr(how, name) for name in ("runtime", "dtype", "threads")},
            "batch": self.batch,
            "versions": list(versions(PACKAGES.get(how.runtime, ()))),
        }


class Pricing:
    """Costs of the points of a space.

    Args:
        space: The space.
        target: Says what is limited.
        timing: How latency is measured; one thread of the CPU by default. Counted costs do without.
    """

    def __init__(self, space: Space, target: Target, timing: Timing | None = None) -> None:
        self.space, self.target = space, target
        self.timing = (timing or Timing()) if target.name == "latency" else None
        self._counted: dict[tuple[Any, ...], dict[str, int]] = {}
        self._guess = LatencyGuess()

    def counted(self, choice: Choice) -> dict[str, int]:
        """MACs of one image and parameters; the point may break constraints."""
        key = tuple(choice[name] for name in self.space.decisions)
        if key not in self._counted:
            arguments = {name: fill(node, choice) for name, node in self.space.template.items()}
            self._counted[key] = count(self.space.model, arguments)
        return self._counted[key]

    def learn(self, nets: Sequence[Mapping[str, Any]]) -> None:
        """Let measured nets, with "choice", "macs" and "cost", improve what is guessed."""
        if self.timing is not None:
            self._guess.learn(nets)

    def guess(self, choice: Choice, known: Choice, cost: float) -> float:
        """What a point costs: exact where it is counted, else from another's seconds, MACs, and what was learnt.

        NaN where the point breaks a constraint without which there is no such net: widths of a PiT that do not chain.
        """
        try:
            counted = self.counted(choice)
        except ValueError:
            return math.nan
        if self.timing is None:
            return counted[self.target.name]
        macs = counted["macs"] / self.counted(known)["macs"]
        return cost * macs * self._guess.ratio(choice, known)

    def measure(self, choice: Choice) -> dict[str, float]:
        """Parameters, MACs, and "cost", what is limited."""
        model, arguments = self.space.arguments(choice)
        counted = self.counted(choice)
        timed = {"cost": counted[self.target.name]} if self.timing is None else self.timing.measure(model, arguments)
        return {**counted, **timed}

    def record(self) -> dict[str, Any]:
        """What costs depend on, as JSON can hold it."""
        return {"budget": self.target.name, **({} if self.timing is None else self.timing.record())}
