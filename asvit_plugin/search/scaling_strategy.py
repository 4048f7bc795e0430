"""Strategies of scaling: how each factor follows the cost along a path, fitted, kept in a file, and read again.

The fit and what a strategy means for another net are ours. Two strategies of different devices or runtimes say which
factors each of them likes to see grow.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..atomic import write_atomically
from .scaling import Scaled
from .scaling_costs import UNITS, Target, Timing
from .scaling_families import factor_of
from .scaling_nets import ScaledNet
from .scaling_oracle import Oracle

FORMAT = 1  # of the file; to be raised when what is in it changes


@dataclass(frozen=True)
class Strategy:
    """How factors follow the cost: log(factor / the base's) = offset + exponent * log(cost / the base's).

    Attributes:
        budget: What the cost is: "macs", "params" or "latency".
        exponents: By decision of the space that it was fitted in; 0 where the path left a factor alone.
        offsets: Of the fitted lines; far from 0 where a line does not pass through the base.
        residuals: Largest distance of a net from each line, in the logarithm of the factor.
        ratios: Lowest and highest cost on the path, over the base's.
        nets: Nets on the path, with the base.
        timing: Hardware, runtime, dtype, threads, batch and versions that a latency belongs to; None for counted costs.
        oracle: What chose the path.
        model: timm's name of the base.
        arguments: The base's arguments of ``timm.create_model``.
    """

    budget: str
    exponents: Mapping[str, float]
    offsets: Mapping[str, float]
    residuals: Mapping[str, float]
    ratios: tuple[float, float]
    nets: int
    timing: Mapping[str, Any] | None
    oracle: Mapping[str, Any]
    model: str
    arguments: Mapping[str, Any]

    def exponent(self, decision: str) -> float | None:
        """The exponent of a decision of any space; None where the strategy says nothing of it.

        Stages of a pyramid that it does not know by name take the factor's, and a factor that it knows by stages the
        mean of theirs.
        """
        factor = factor_of(decision)
        if decision in self.exponents or factor in self.exponents:
            return self.exponents.get(decision, self.exponents.get(factor))
        stages = [value for name, value in self.exponents.items() if factor_of(name) == factor]
        return math.fsum(stages) / len(stages) if stages else None

    @property
    def purpose(self) -> str:
        """What it was fitted for, in a few words."""
        return purpose(self.budget, self.timing)

    def save(self, path: Path | str) -> None:
        """Write it as JSON."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1, allow_nan=False) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))

    @classmethod
    def load(cls, path: Path | str) -> "Strategy":
        """Read what :meth:`save` wrote.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is no such file, or one of another format.
        """
        try:
            table = json.loads(Path(path).read_text())
        except ValueError as error:
            raise ValueError(f"{path} is no strategy: it is not JSON ({error})") from error
        return cls(**_checked(path, table))


def purpose(budget: str, timing: Mapping[str, Any] | None) -> str:
    """A budget, and of a latency what it belongs to (as :meth:`Timing.record` has it), in a few words."""
    if timing is None:
        return budget
    runs = f"{timing['dtype']}, batch {timing['batch']}, {timing['threads']} CPU threads"
    return f"{budget} on {timing['hardware']} in {timing['runtime']} ({runs})"


def fit_strategy(found: Scaled, target: Target, oracle: Oracle, timing: Timing | None = None) -> Strategy:
    """The strategy of a path, by least squares over its nets.

    Args:
        found: What :func:`scale` found.
        target: The budget that it went to; its tolerance is also how far costs must be apart to count as different.
        oracle: What it was scored by.
        timing: How its latency was measured, as given to :func:`scale`.

    Raises:
        ValueError: All nets of the path cost the same, or a factor is no positive number.
    """
    base, *_ = found.path
    ratios = [net.cost / base.cost for net in found.path]
    if math.log(max(ratios) / min(ratios)) <= target.slack:
        raise ValueError(
            f"the path has {len(ratios)} nets whose costs differ by a factor of {max(ratios) / min(ratios):.3g}; a "
            f"strategy needs two that differ by more than the tolerance, {target.tolerance:g}"
        )
    lines = {name: _line(ratios, _log_factors(name, found.path)) for name in base.choice}
    timing = (timing or Timing()) if target.name == "latency" else None
    return Strategy(
        target.name,
        *({name: line[index] for name, line in lines.items()} for index in range(3)),
        (min(ratios), max(ratios)),
        len(ratios),
        timing and timing.record(),
        oracle.record(),
        base.model,
        base.arguments,
    )


def _log_factors(name: str, path: Sequence[ScaledNet]) -> list[float]:
    values = [net.choice[name] for net in path]
    check_factor(name, values)
    return [math.log(value / values[0]) for value in values]


def check_factor(name: str, values: Sequence[Any]) -> None:
    """Refuse values of a factor that have no logarithm."""
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ValueError(f"{name} has {value!r}; a factor that a strategy is of must be a positive number")


def _line(ratios: Sequence[float], logs: Sequence[float]) -> tuple[float, float, float]:
    """Exponent, offset and largest residual."""
    x = [math.log(ratio) for ratio in ratios]
    middle, height = math.fsum(x) / len(x), math.fsum(logs) / len(x)
    spread = math.fsum((each - middle) ** 2 for each in x)
    slope = math.fsum((each - middle) * (y - height) for each, y in zip(x, logs)) / spread
    offset = height - slope * middle
    return slope, offset, max(abs(y - offset - slope * each) for each, y in zip(x, logs))


def _checked(path: Path | str, table: Any) -> dict[str, Any]:
    """The fields of a file, or one sentence about what is wrong with it."""
    if not isinstance(table, dict) or "format" not in table:
        raise ValueError(f"{path} is no strategy: it has no format")
    if table["format"] != FORMAT:
        raise ValueError(f"{path} is of format {table['format']!r}; this version reads {FORMAT}")
    known, given = {each.name for each in fields(Strategy)}, set(table) - {"format"}
    for what, names in (("lacks", known - given), ("has the unknown", given - known)):
        if names:
            raise ValueError(f"{path} {what} field {sorted(names)[0]!r}; a strategy has {', '.join(sorted(known))}")
    found = {name: table[name] for name in known}
    for name, right, kind in _FIELDS:
        if not right(found[name]):
            raise ValueError(f"{path} has {name} {found[name]!r}; it must be {kind}")
    return {**found, "ratios": tuple(found["ratios"])}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_is_number, value.values()))


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_timing(value: Any) -> bool:
    return isinstance(value, dict) and set(_TIMED) <= set(value)


_TIMED = ("hardware", "runtime", "dtype", "threads", "batch", "versions")
_FIELDS = (
    ("budget", lambda value: value in tuple(UNITS), f"one of {', '.join(UNITS)}"),
    *((name, _are_numbers, "numbers by factor") for name in ("exponents", "offsets", "residuals")),
    (
        "ratios",
        lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)),
        "two numbers",
    ),
    ("nets", lambda value: type(value) is int and value > 1, "a whole number above 1"),
    ("timing", lambda value: value is None or _is_timing(value), f"null or a mapping with {', '.join(_TIMED)}"),
    *((name, _is_mapping, "a mapping") for name in ("oracle", "arguments")),
    ("model", lambda value: isinstance(value, str), "a text"),
)
