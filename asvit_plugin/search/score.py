"""What a proxy says of a net: one value per repeat."""

import math
import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """Values of a proxy over its repeats, each with weights (and inputs) of its own.

    Attributes:
        values: One number per repeat; NaN where the repeat has none.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("values is (); a score needs the value of at least one repeat")

    @property
    def value(self) -> float:
        """Mean over the repeats; NaN as soon as one of them is not finite."""
        return statistics.fmean(self.values) if self._valid else math.nan

    @property
    def spread(self) -> float:
        """Sample standard deviation over the repeats: 0.0 of a single one, NaN as soon as one is not finite."""
        if not self._valid:
            return math.nan
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    @property
    def _valid(self) -> bool:
        return all(math.isfinite(value) for value in self.values)
