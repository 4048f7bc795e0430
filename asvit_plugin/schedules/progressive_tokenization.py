"""Progressive tokenization: train with few coarse tokens first, with all of them last (As-ViT, section on training)."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import torch
from torch import nn

from ..costs import macs
from .copies import with_copies
from .tokenizers import Tokenizer, find_tokenizer

# The paper's figure: epochs 0-80, 80-132 and 132-300 at 4, 2 and 1 times the base stride.
_PAPER_PHASES = ((80 / 300, 4), (132 / 300, 2), (1.0, 1))


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one tokenization.

    Attributes:
        until: Progress in (0, 1] at which the next phase begins.
        stride: Pixels per token of the stem.
        dilation: Pixels between two samples of the stem's kernel.
    """

    until: float
    stride: int
    dilation: int


class ProgressiveTokenization:
    """Maps training progress to the stride of a model's stem, and sets it in the model and its copies.

    The weights are shared by all phases; the position embedding is resampled and windows are recomputed. The schedule
    knows no trainer and holds no state: ``step`` with the same progress sets the same phase, so a resumed run lands
    where it was. Call it before training and whenever progress has changed::

        schedule = ProgressiveTokenization(model, copies=[ema.module])
        schedule.step(epoch / epochs)

    Args:
        model: As-ViT, or one of timm's plain ViTs with a convolutional patch embedding (for which dynamic image size
            is turned on); it may be wrapped (DDP, compile, feature extractor).
        phases: (until, stride) or (until, stride, dilation) for each phase, ``until`` rising to 1 and the last stride
            the model's own. Dilation is max(1, (stride - 1) // (K - 1)) for a kernel of K pixels unless given. None
            for the paper's phases: 4, 2 and 1 times the base stride until 80/300, 132/300 and the end.
        copies: A copy of the model that must follow, such as that of an EMA, or several.

    Raises:
        ValueError: for a model that it cannot drive, copies of another stride or kernel, or phases that do not ascend
            to the whole of training.
    """

    def __init__(
        self,
        model: nn.Module,
        phases: Sequence[Phase | Sequence[float]] | None = None,
        copies: nn.Module | Iterable[nn.Module] = (),
    ) -> None:
        self.model = model
        self.tokenizers = [find_tokenizer(each) for each in with_copies(model, copies)]
        tokenizer = self.tokenizers[0]
        _require_alike(self.tokenizers)
        if phases is None:
            phases = [(until, factor * tokenizer.base_stride) for until, factor in _PAPER_PHASES]
        self.phases = [_parse_phase(phase, tokenizer) for phase in phases]
        _require_ascending(self.phases, tokenizer)
        with tokenizer.kept():
            for phase in self.phases:  # what the tokenizer refuses is refused now, not in the middle of training
                tokenizer.set(phase.stride, phase.dilation)

    def phase_at(self, progress: float) -> Phase:
        """The phase of a training progress in [0, 1]; a phase ends just before its ``until``."""
        if not 0.0 <= progress <= 1.0:
            raise ValueError(f"progress is {progress}; it must be between 0 and 1")
        return next((phase for phase in self.phases if progress < phase.until), self.phases[-1])

    def step(self, progress: float) -> Phase:
        """Bring the model and its copies to the phase of a training progress in [0, 1], and return it."""
        phase = self.phase_at(progress)
        for tokenizer in self.tokenizers:
            tokenizer.set(phase.stride, phase.dilation)
        return phase

    def phase_macs(self, input: torch.Tensor | Sequence[int] | None = None) -> list[int]:
        """MACs of a forward pass in each phase, counted on meta tensors; ``input`` as for :func:`..costs.macs`."""
        tokenizer = self.tokenizers[0]
        counts = []
        with tokenizer.kept():
            for phase in self.phases:
                tokenizer.set(phase.stride, phase.dilation)
                counts.append(macs(self.model, input))
        return counts

    def saved_fraction(self, input: torch.Tensor | Sequence[int] | None = None) -> float:
        """Share of the training MACs that the schedule saves against training with all tokens throughout."""
        counts = self.phase_macs(input)
        starts = [0.0, *(phase.until for phase in self.phases)]
        lengths = [end - start for start, end in pairwise(starts)]
        return 1.0 - sum(length * count for length, count in zip(lengths, counts)) / counts[-1]


def _require_alike(tokenizers: list[Tokenizer]) -> None:
    own, *others = ((each.base_stride, each.kernel_size) for each in tokenizers)
    for stride, kernel in others:
        if (stride, kernel) != own:
            raise ValueError(
                f"copies holds a model of stride {stride} and {kernel}-pixel kernels; they must be those of the model "
                f"itself, {own[0]} and {own[1]}"
            )


def _parse_phase(phase: Phase | Sequence[Any], tokenizer: Tokenizer) -> Phase:
    if isinstance(phase, Phase):
        phase = (phase.until, phase.stride, phase.dilation)
    if not isinstance(phase, Sequence) or len(phase) not in (2, 3):
        raise ValueError(f"phases holds {phase!r}; a phase must be (until, stride) or (until, stride, dilation)")
    until, *sampling = phase
    if not isinstance(until, Real) or isinstance(until, bool) or not math.isfinite(until):
        raise ValueError(f"phase {phase!r} ends at {until!r}; it must be a number between 0 and 1")
    for name, value in zip(("stride", "dilation"), sampling):
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"phase {phase!r} has {name} {value!r}; it must be a whole number of at least 1")
    stride, *dilation = map(int, sampling)
    return Phase(float(until), stride, *(dilation or [tokenizer.default_dilation(stride)]))


def _require_ascending(phases: list[Phase], tokenizer: Tokenizer) -> None:
    ends = [0.0, *(phase.until for phase in phases)]
    if len(ends) < 2 or ends[-1] != 1.0 or any(end <= start for start, end in pairwise(ends)):
        raise ValueError(f"phases end at {ends[1:]}; the ends must rise from above 0 to exactly 1")
    if (phases[-1].stride, phases[-1].dilation) != (tokenizer.base_stride, 1):
        raise ValueError(
            f"the last phase has stride {phases[-1].stride} and dilation {phases[-1].dilation}; it must be the model's "
            f"own: {tokenizer.base_stride} and 1"
        )
