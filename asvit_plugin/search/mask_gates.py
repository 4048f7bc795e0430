"""Gates over the decisions of a space: how much of each option is in the mixture that is computed.

The scheme is DMaskingNAS's: Wan et al., "FBNetV2: Differentiable Neural Architecture Search for Spatial and Channel
Dimensions", 2020 (arXiv 2004.05565).
"""

import heapq
import math
from bisect import bisect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .expressions import Expression
from .space import Choice, Space

_TRIES = 10_000  # draws, or choices in order of probability, for one that meets the constraints


class MaskGate(nn.Module):
    """Weights of the options of one decision.

    Args:
        options: The options, in the space's order.

    Attributes:
        logits: Parameters (K,), zeros at first: all options are as probable.
    """

    def __init__(self, options: Sequence[Any]) -> None:
        super().__init__()
        self.options = tuple(options)
        self.logits = nn.Parameter(torch.zeros(len(self.options)))
        self._fixed: int | None = None  # place of the option that is taken alone
        self._draw: tuple[torch.Tensor, float, bool] | None = None  # noise (K,), temperature, hard

    @property
    def weights(self) -> torch.Tensor:
        """The present mixture (K,), which sums to 1; each time with a graph of its own."""
        if self._fixed is not None:
            place = torch.tensor(self._fixed, device=self.logits.device)
            return F.one_hot(place, len(self.options)).to(self.logits)
        if self._draw is None:
            return torch.full_like(self.logits, 1 / len(self.options), requires_grad=False)
        noise, temperature, hard = self._draw
        soft = ((self.logits + noise.to(self.logits)) / temperature).softmax(0)
        if not hard:
            return soft
        return F.one_hot(soft.argmax(), len(self.options)).to(soft) + (soft - soft.detach())

    @property
    def probabilities(self) -> torch.Tensor:
        """Of the options (K,), in double precision; gradients flow to the logits."""
        return self.logits.double().softmax(0)

    def draw(self, temperature: float, hard: bool, generator: torch.Generator | None = None) -> None:
        """Gumbel-softmax: with ``hard`` one option, whose gradient is that of the soft weights (straight-through)."""
        # Drawn on the CPU, so that devices draw alike; -log of an exponential variable is a Gumbel variable.
        exponential = torch.empty(len(self.options)).exponential_(generator=generator)
        noise = -exponential.clamp_min(torch.finfo(exponential.dtype).tiny).log()
        self._fixed, self._draw = None, (noise, temperature, hard)

    def fix(self, option: Any) -> None:
        """Take one option alone; no gradient reaches the logits."""
        self._fixed = self.options.index(option)

    def uniform(self) -> None:
        """Mix all options evenly; no gradient reaches the logits."""
        self._fixed = self._draw = None


class Gates(nn.ModuleDict):
    """A gate for every decision of a space that has more than one option.

    At first all mix their options evenly. Constraints of the space bind what :meth:`argmax` and :meth:`sample_choice`
    give; mixtures that are drawn know nothing of them.

    Args:
        space: The space.
        idle: Decisions that change nothing of a choice's net, such as the heads of a block that it has not.

    Raises:
        ValueError: where no decision has two options.
    """

    def __init__(self, space: Space, idle: Callable[[Mapping[str, Any]], Collection[str]] | None = None) -> None:
        open_ones = {name: MaskGate(choices) for name, choices in space.decisions.items() if len(choices) > 1}
        if not open_ones:
            raise ValueError(
                f"space {space.name!r} has no decision of at least two options; gates choose between options"
            )
        super().__init__(open_ones)
        self.space = space
        self.idle = idle
        self.fixed: Choice | None = None

    # The present mixture ----------------------------------------------------------------------------------------------

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Of all options (K,), by decision."""
        return {name: gate.weights for name, gate in self.items()}

    def draw(self, temperature: float = 1.0, hard: bool = True, generator: torch.Generator | None = None) -> None:
        """Draw a mixture for the next batch by Gumbel-softmax; see :meth:`MaskGate.draw`.

        Args:
            temperature: The smaller, the nearer soft weights are to a single option.
            hard: Take one option of each decision, with the gradient of the soft weights.
            generator: Of random numbers, on the CPU; None for torch's own.

        Raises:
            ValueError: The temperature is not positive.
        """
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature!r}; it must be positive and finite")
        self.fixed = None
        for gate in self.values():
            gate.draw(temperature, hard, generator)

    def fix(self, choice: Mapping[str, Any]) -> None:
        """Take one net alone until the next draw; its gates get no gradients, and constraints may be broken.

        Raises:
            ValueError: where the choice lacks a decision or has a value that is no option of it.
        """
        self.space.check_values(choice)
        self.fixed = dict(choice)
        for name, gate in self.items():
            gate.fix(choice[name])

    def uniform(self) -> None:
        """Mix all options of a decision evenly until the next draw; no gate gets a gradient."""
        self.fixed = None
        for gate in self.values():
            gate.uniform()

    def present(self) -> Choice | None:
        """The net that is computed now; None for a mixture of several."""
        weights = {name: weight.detach() for name, weight in self.weights.items()}
        if not all(weight.max() == 1 for weight in weights.values()):
            return None
        return self._complete({name: self[name].options[int(weight.argmax())] for name, weight in weights.items()})

    # What the gates have learned --------------------------------------------------------------------------------------

    def probabilities(self) -> dict[str, torch.Tensor]:
        """Of all options (K,), by decision, in double precision; gradients flow to the logits."""
        return {name: gate.probabilities for name, gate in self.items()}

    def argmax(self) -> Choice:
        """The most probable option of every decision, or the nearest to that which meets the constraints.

        Raises:
            ValueError: where none of the first 10,000 does.
        """
        best = {name: gate.options[int(gate.logits.detach().argmax())] for name, gate in self.items()}
        best = self._complete(best)
        if self.space.allows(best):
            return best
        tied = set().union(*(Expression(each).names for each in self.space.constraints)) & set(self)
        for _, values in zip(range(_TRIES), self.by_probability(sorted(tied))):
            if self.space.allows(best | values):
                return best | values
        raise ValueError(f"none of the {_TRIES} most probable nets meets the constraints of space {self.space.name!r}")

    def sample_choice(self, rng: np.random.Generator) -> Choice:
        """A net that meets the constraints, drawn by the probabilities of the options.

        Raises:
            ValueError: where none of 10,000 draws does.
        """
        edges = {name: each.detach().cumsum(0)[:-1].tolist() for name, each in self.probabilities().items()}
        for _ in range(_TRIES):
            places = {name: bisect(edge, value) for (name, edge), value in zip(edges.items(), rng.random(len(edges)))}
            choice = self._complete({name: self[name].options[place] for name, place in places.items()})
            if self.space.allows(choice):
                return choice
        raise ValueError(f"none of {_TRIES} drawn nets meets the constraints of space {self.space.name!r}")

    def net_of(self, choice: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
        """What tells a choice's net from others: the options of all decisions that change something."""
        idle = self.idle(choice) if self.idle else ()
        return tuple((name, choice[name]) for name in self if name not in idle)

    def log_probability(self, choice: Mapping[str, Any]) -> float:
        """Natural logarithm of the probability that a choice's net is drawn, by whichever choice."""
        logs = self.log_probabilities()
        return sum(logs[name][option] for name, option in self.net_of(choice))

    def log_probabilities(self) -> dict[str, dict[Any, float]]:
        """Natural logarithm of the probability of every option, by decision."""
        return {
            name: dict(zip(gate.options, gate.logits.detach().double().log_softmax(0).tolist()))
            for name, gate in self.items()
        }

    def _complete(self, options: Mapping[str, Any]) -> Choice:
        """In the space's order, with the decisions that have a single option."""
        return {name: options.get(name, choices[0]) for name, choices in self.space.decisions.items()}

    def by_probability(self, names: Sequence[str]) -> Iterator[Choice]:
        """Values of some decisions, the most probable ones first."""
        sorts = [
            self[name].logits.detach().double().log_softmax(0).sort(descending=True, stable=True) for name in names
        ]
        logs = [values.tolist() for values, _ in sorts]
        options = [[self[name].options[place] for place in order] for name, (_, order) in zip(names, sorts)]
        start = (0,) * len(names)
        heap, seen = [(-sum(values[0] for values in logs), start)], {start}
        while heap:
            cost, ranks = heapq.heappop(heap)
            yield {name: values[rank] for name, values, rank in zip(names, options, ranks)}
            for place, values in enumerate(logs):
                after = (*ranks[:place], ranks[place] + 1, *ranks[place + 1 :])
                if after[place] < len(values) and after not in seen:
                    seen.add(after)
                    heapq.heappush(heap, (cost + values[ranks[place]] - values[after[place]], after))
