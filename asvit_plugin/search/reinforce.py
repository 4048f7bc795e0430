"""REINFORCE over the decisions of a space, as in As-ViT's seed search (Chen et al., ICLR 2022, arXiv 2202.11921)."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING

import numpy as np
import torch
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from .sampling import SpaceSampler
from .space import Choice, Space
from .study import complete_trials

if TYPE_CHECKING:
    from optuna import Study

_MOST_PROBABLE = 100_000  # points tried for the most probable one that meets the constraints


@dataclass(frozen=True)
class ReinforceSettings:
    """The paper's settings.

    Attributes:
        lr: Adam's learning rate.
        momentum: Of the baseline, a bias-corrected moving average of the rewards.
        buffer: Values whose range a change is measured by.
        init_std: Standard deviation of the first logits.
    """

    lr: float = 0.08
    momentum: float = 0.9
    buffer: int = 20
    init_std: float = 1e-3

    def __post_init__(self) -> None:
        for name, allowed in (("lr", self.lr > 0), ("momentum", 0 <= self.momentum < 1), ("buffer", self.buffer >= 1)):
            if not allowed:
                bounds = {"lr": "positive", "momentum": "from 0 to below 1", "buffer": "at least 1"}[name]
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {bounds}")


class RelativeReward:
    """How much better a net is than the one before it, by each objective's recent range; between -1 and 1 for each.

    Args:
        maximize: For each objective, whether more is better.
        buffer: Values that the range is taken over, the current one included.
    """

    def __init__(self, maximize: Sequence[bool], buffer: int) -> None:
        self._signs = [1 if each else -1 for each in maximize]
        self._buffers = [deque[float](maxlen=buffer) for _ in maximize]

    def __call__(self, values: Sequence[float]) -> float:
        """The reward of the next net; each value that is not finite counts -1, the worst, and is then forgotten."""
        return sum(map(self._term, values, self._signs, self._buffers))

    @staticmethod
    def _term(value: float, sign: int, buffer: deque[float]) -> float:
        if not math.isfinite(value):
            return -1.0
        before = buffer[-1] if buffer else value
        buffer.append(value)
        return sign * (value - before) / (max(buffer) - min(buffer) + 1e-6)


class Policy:
    """Independent categorical distributions over the decisions, and the rewards that made them what they are.

    Args:
        space: Whose decisions.
        maximize: For each objective, whether more is better.
        seed: Of the first logits.
        settings: The paper's by default.

    Attributes:
        rewards: Reward of each net so far.
        entropies: Sum of the decisions' entropies after each net, in nats.
    """

    def __init__(
        self, space: Space, maximize: Sequence[bool], seed: int, settings: ReinforceSettings | None = None
    ) -> None:
        self.settings = settings or ReinforceSettings()
        self.space = space
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
        self._sizes = [len(choices) for choices in space.decisions.values()]
        self.logits = torch.tensor(self.settings.init_std * rng.standard_normal(sum(self._sizes)))
        self._adam = torch.optim.Adam([self.logits], lr=self.settings.lr)
        self._reward = RelativeReward(maximize, self.settings.buffer)
        self._average = 0.0
        self.rewards: list[float] = []
        self.entropies: list[float] = []

    def learn(self, choice: Choice, values: Sequence[float]) -> None:
        """One step of REINFORCE on a net's raw objectives."""
        reward = self._reward(values)
        self.rewards.append(reward)
        momentum = self.settings.momentum
        self._average = momentum * self._average + (1 - momentum) * reward
        baseline = self._average / (1 - momentum ** len(self.rewards))  # the current reward is in it, as published
        picked = [choices.index(choice[name]) for name, choices in self.space.decisions.items()]
        chosen = torch.cat([torch.eye(size, dtype=self.logits.dtype)[i] for size, i in zip(self._sizes, picked)])
        probabilities = torch.cat([each.exp() for each in self._log_probabilities()])
        # Of -log_prob * (reward - baseline), written out: autograd's threads would not survive a fork.
        self.logits.grad = (reward - baseline) * (probabilities - chosen)
        self._adam.step()
        self.entropies.append(self.entropy)

    def sample(self, rng: np.random.Generator) -> Choice:
        """A choice drawn from the policy; it may break constraints."""
        return {
            name: choices[rng.choice(len(choices), p=each)]
            for (name, choices), each in zip(self.space.decisions.items(), self.probabilities)
        }

    @property
    def probabilities(self) -> list[np.ndarray]:
        """Of every decision's choices."""
        return [each.exp().numpy() for each in self._log_probabilities()]

    @property
    def entropy(self) -> float:
        """Sum of the decisions' entropies in nats."""
        return float(-sum((each.exp() * each).sum() for each in self._log_probabilities()))

    def most_probable(self) -> Choice:
        """The argmax of every decision; where constraints forbid that, the most probable point that meets them.

        Raises:
            ValueError: if none of the 100,000 most probable points does.
        """
        for choice in self._by_probability():
            if self.space.allows(choice):
                return choice
        raise ValueError(
            f"none of the {_MOST_PROBABLE:,} most probable points of space {self.space.name!r} meets its constraints"
        )

    def _log_probabilities(self) -> list[torch.Tensor]:
        return [each.log_softmax(0) for each in self.logits.split(self._sizes)]

    def _by_probability(self) -> Iterator[Choice]:
        """Points from the most probable down."""
        orders = [np.argsort(-each, kind="stable") for each in self.probabilities]
        logs = [each.numpy() for each in self._log_probabilities()]
        first = (0,) * len(orders)
        heap, seen = [(0.0, first)], {first}
        for _ in range(_MOST_PROBABLE):
            if not heap:
                return
            _, ranks = heappop(heap)
            picked = [order[rank] for order, rank in zip(orders, ranks)]
            yield {name: choices[i] for (name, choices), i in zip(self.space.decisions.items(), picked)}
            for place, rank in enumerate(ranks):
                after = (*ranks[:place], rank + 1, *ranks[place + 1 :])
                if rank + 1 < len(orders[place]) and after not in seen:
                    seen.add(after)
                    cost = -sum(log[order[r]] for log, order, r in zip(logs, orders, after))
                    heappush(heap, (float(cost), after))


class ReinforceSampler(SpaceSampler):
    """As-ViT's seed search as an Optuna sampler. What it knows is replayed from the COMPLETE trials, in their order.

    Args:
        space: What it samples.
        seed: Of the first logits and of all draws.
        settings: The paper's by default.
    """

    def __init__(self, space: Space, seed: int, settings: ReinforceSettings | None = None) -> None:
        super().__init__(space, seed)
        self.settings = settings or ReinforceSettings()
        self._policy: Policy | None = None
        self._learnt: list[int] = []

    def draw(self, study: "Study", trial: FrozenTrial, rng: np.random.Generator) -> Choice:
        """A draw from the policy as the COMPLETE trials have made it."""
        return self.policy(study).sample(rng)

    def policy(self, study: "Study") -> Policy:
        """The policy after all COMPLETE trials of a study."""
        trials = complete_trials(study)
        numbers = [trial.number for trial in trials]
        if self._policy is None or numbers[: len(self._learnt)] != self._learnt:  # an older trial ended late
            maximize = [direction is StudyDirection.MAXIMIZE for direction in study.directions]
            self._policy, self._learnt = Policy(self.space, maximize, self.seed, self.settings), []
        for trial in trials[len(self._learnt) :]:
            self._policy.learn(trial.params, trial.values)
        self._learnt = numbers
        return self._policy
