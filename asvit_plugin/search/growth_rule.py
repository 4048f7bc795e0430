"""As-ViT's auto-scaling (Chen et al., ICLR 2022): what a net may grow into next, and which of it is taken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .expressions import Expression
from .ranking import rank_sum
from .templates import expressions, fill

WIDTH_RATIOS = (0.05, 0.10, 0.15, 0.20)  # the authors'

Size = dict[str, int]


@dataclass(frozen=True)
class GrowthRule:
    """Which decisions grow, from where, and the model that they and the seed's other decisions stand for.

    Scores are measured on thin nets; the net that a size stands for is ``width_factor`` times as wide.

    Args:
        depths: Decisions of which each step adds 1 to one.
        width: The decision that each step multiplies by 1.05 to 1.2, rounded.
        start: Where they begin.
        width_factor: Width of the net over that of the one that is measured.
        template: Arguments of ``timm.create_model``, as a space's, over the seed's decisions, depths and width.

    Raises:
        ValueError: for a start that lacks a decision or is no whole number of at least 1.
    """

    depths: tuple[str, ...]
    width: str
    start: Mapping[str, int]
    template: Mapping[str, Any] = field(default_factory=dict)
    width_factor: int = 4

    def __post_init__(self) -> None:
        names = [*self.depths, self.width]
        if not self.depths or len(set(names)) < len(names):
            raise ValueError(f"growth has depths {list(self.depths)} and width {self.width!r}; they must all differ")
        if set(self.start) != set(names):
            raise ValueError(f"start of growth has {sorted(self.start)}; it must have {sorted(names)}")
        for name, value in {**self.start, "width_factor": self.width_factor}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} of growth is {value!r}; it must be a whole number of at least 1")

    @cached_property
    def names(self) -> frozenset[str]:
        """Decisions that the template reads."""
        return frozenset().union(*(each.names for each in self._expressions))

    @property
    def _expressions(self) -> list[Expression]:
        return list(expressions(list(self.template.values())))

    def candidates(self, size: Mapping[str, int]) -> list[Size]:
        """Sizes one step on: every depth with every width, depth-major, as the authors list them."""
        wider = widths(size[self.width])
        return [{**size, name: size[name] + 1, self.width: width} for name in self.depths for width in wider]

    def arguments(self, seed: Mapping[str, Any], size: Mapping[str, int], thin: bool = False) -> dict[str, Any]:
        """Arguments of ``timm.create_model`` for a size of a seed; ``thin`` for the net that scores are measured on."""
        width = size[self.width] * (1 if thin else self.width_factor)
        values = {**seed, **size, self.width: width}
        return {name: fill(node, values) for name, node in self.template.items()}


def widths(width: int) -> list[int]:
    """What a width may become: 5, 10, 15 and 20 % more, rounded half to even; a small one may stay.

    Equal neighbours count once.
    """
    rounded = [round(width * (1 + ratio)) for ratio in WIDTH_RATIOS]
    return [value for index, value in enumerate(rounded) if index == 0 or value != rounded[index - 1]]


def pick(scores: Mapping[str, Sequence[float]], maximize: Mapping[str, bool]) -> int:
    """Which candidate of a step is taken: the lowest sum of dense ranks over the scores.

    Of several, the one that is best by the score whose relative range over the step, (max - min) / max, is largest.
    The authors' code takes the lowest value there, also of a score where more is better, and looks at two candidates
    only.

    Args:
        scores: Values of every candidate, for each score.
        maximize: For each score, whether more is better.

    Returns:
        Index of the candidate.
    """
    ranks = rank_sum(scores, maximize)
    tied = [index for index, rank in enumerate(ranks) if rank == min(ranks)]
    if len(tied) == 1:
        return tied[0]
    decisive = max(scores, key=lambda name: _relative_range(scores[name]))
    sign = -1 if maximize[decisive] else 1
    return min(tied, key=lambda index: sign * scores[decisive][index])


def _relative_range(values: Sequence[float]) -> float:
    finite = [value for value in values if abs(value) != float("inf") and value == value]
    return (max(finite) - min(finite)) / max(finite) if finite and max(finite) > 0 else 0.0
