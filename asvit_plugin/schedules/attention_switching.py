"""Attention switching: softmax attention in the beginning, linear attention at the end, and the way between them."""

from collections.abc import Iterable
from dataclasses import dataclass

from timm.utils import unwrap_model
from torch import nn

from ..layers import castled_attention
from ..layers.castling import switch_modules
from ..layers.linear_angular_attention import MASK_THRESHOLD
from ..models.castled import tokens_per_block
from .copies import with_copies

# Not 0 even at the start: DDP wants every parameter to take part from the first step on.
_LEAST_BLEND = 2.0**-20


@dataclass(frozen=True)
class AttentionState:
    """State of all castled blocks.

    Attributes:
        blend: 0 (softmax attention) to 1 (linear-angular attention).
        threshold: 0 to 1, of the softmax weights that still take part in linear-angular attention.
    """

    blend: float
    threshold: float


class AttentionSwitching:
    """Maps training progress to the blend and mask threshold of a castled model, and sets them in it and its copies.

    Three stretches, of which the first two may overlap::

        0 ............ blend_until    blend rises from 0 to 1 in a line
        mask_from .... linear_from    threshold rises from ``threshold`` to 1, by equal factors
        linear_from .. 1              linear attention alone; ``finish(model)`` then changes nothing

    In the paper the mask becomes empty by itself (You et al., "Castling-ViT", CVPR 2023). Below a threshold of 1 / N it
    cannot, for the largest weight of a row is no less; here the threshold is raised until no weight can exceed it.
    The schedule knows no trainer and holds no state; see :class:`ProgressiveTokenization`, which may drive the same
    model.

    Args:
        model: A model with castled blocks, see :func:`castle`; it may be wrapped (DDP, compile, feature extractor).
        copies: A copy of the model that must follow, such as that of an EMA, or several.
        blend_until: Progress from which on softmax attention takes no part by itself; 0 starts with the paper's block.
            0.3 by default: weights that were trained with softmax meet the new operator in small steps.
        mask_from: Progress at which the threshold starts to rise.
        linear_from: Progress from which on the branch is empty. 0.8 by default: what is exported has then been trained
            as it is for a fifth of the time, while learning rates are still large enough to matter.
        threshold: Where the threshold starts. None for max(0.02, 4 / N), N the fewest tokens of a castled block: the
            released block's 0.02, or four times the weight of a token in a uniform row if that is more.

    Raises:
        ValueError: for a model without castled blocks, and for values that are out of range or order.
    """

    def __init__(
        self,
        model: nn.Module,
        copies: nn.Module | Iterable[nn.Module] = (),
        blend_until: float = 0.3,
        mask_from: float = 0.3,
        linear_from: float = 0.8,
        threshold: float | None = None,
    ) -> None:
        models = map(unwrap_model, with_copies(model, copies))
        self.models = [(each, list(castled_attention(each).values())) for each in models]
        for each, attention in self.models:
            if not attention:
                raise ValueError(f"{type(each).__name__} has no castled block: castle(model) makes them")
        if not (0 <= blend_until <= linear_from and 0 <= mask_from < linear_from < 1):
            raise ValueError(
                f"blend_until is {blend_until}, mask_from {mask_from} and linear_from {linear_from}; the first may be "
                "0 to linear_from, the second must lie from 0 to below it, and linear_from below 1"
            )
        self.threshold = starting_threshold(model) if threshold is None else threshold
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {threshold}; it must be above 0 and at most 1")
        self.blend_until, self.mask_from, self.linear_from = blend_until, mask_from, linear_from

    def state_at(self, progress: float) -> AttentionState:
        """The state of a training progress in [0, 1]."""
        if not 0.0 <= progress <= 1.0:
            raise ValueError(f"progress is {progress}; it must be between 0 and 1")
        if progress >= self.linear_from:
            return AttentionState(1.0, 1.0)
        blend = max(progress / self.blend_until, _LEAST_BLEND) if progress < self.blend_until else 1.0
        way = max(progress - self.mask_from, 0.0) / (self.linear_from - self.mask_from)
        return AttentionState(blend, self.threshold ** (1 - way))

    def step(self, progress: float) -> AttentionState:
        """Bring the model and its copies to the state of a training progress in [0, 1], and return it."""
        state = self.state_at(progress)
        for model, attention in self.models:
            switch_modules(model, attention, state.blend, state.threshold)
        return state


def starting_threshold(model: nn.Module) -> float:
    """max(0.02, 4 / N) for the fewest tokens N of a castled block at the model's own image size."""
    return min(max(MASK_THRESHOLD, 4 / min(tokens_per_block(unwrap_model(model)).values())), 1.0)
