"""Gates that learn beside the weights they choose among: which net of a space is worth its cost, by gradient descent.

Wan et al., "FBNetV2: Differentiable Neural Architecture Search for Spatial and Channel Dimensions", 2020 (arXiv
2004.05565): weights learn from one part of the images through nets that the gates draw, and gates from another part,
with what nets cost in their loss.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.task import ClassificationTask
from torch import nn

from .budget import Budget
from .gated_net import GatedNet
from .mask_choice import most_probable

_POSITIVE = (lambda value: 0 < value < math.inf, "a number above 0")
# What settings may be, with the sentence that says so.
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("temperature", "last_temperature", "cost_weight", "gate_lr"), _POSITIVE),
    "gates_from": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "cost_ramp": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "seed": (lambda value: value >= 0, "a whole number from 0 up"),
}


@dataclass(frozen=True)
class MaskSearchSettings:
    """How gates learn.

    Attributes:
        cost: Which cost of the gated net is limited, such as "macs".
        high: The most that a net may cost, which gates are driven below.
        low: The least of the nets that are chosen in the end; None for 0.975 of ``high``.
        gates_from: Part of the search before which gates stay as they are, and weights learn by the sandwich rule.
        temperature: Of the gates' first draws that they learn from; higher ones mix the gradients of more options.
        last_temperature: Of the last ones; in between it falls by the same factor in every epoch.
        hard: Draw one option of each gate, with the gradients of the mixture (straight-through); else the mixture.
        cost_weight: Of max(0, log(expected cost / high)) beside the cross entropy.
        cost_ramp: Part of the search over which that weight rises from 0, from ``gates_from`` on.
        gate_lr: Learning rate of the gates, by Adam.
        seed: Of all draws.

    Raises:
        ValueError: naming the field that is out of range.
    """

    cost: str
    high: float
    low: float | None = None
    gates_from: float = 0.3
    temperature: float = 5.0
    last_temperature: float = 0.35
    hard: bool = True
    cost_weight: float = 2.0
    cost_ramp: float = 0.2
    gate_lr: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (allowed, sentence) in RANGES.items():
            if not allowed(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed is {sentence}")
        if self.last_temperature > self.temperature:
            raise ValueError(
                f"last_temperature is {self.last_temperature!r}; it must not be above temperature, {self.temperature!r}"
            )


class MaskSearch:
    """The gates' part of a search.

    Whoever trains calls :meth:`start_epoch`, has weights learn with a :class:`GatedTask`, and calls :meth:`step` with
    batches of other images wherever :attr:`gates_learn`. What is drawn in an epoch depends on seed and epoch alone.

    Args:
        net: The gated net.
        settings: How gates learn.
        epochs: Of the whole search.

    Attributes:
        optimizer: Of the gates.
        budget: What a chosen net may cost.

    Raises:
        ValueError: where no net is found within the budget, with what the nets cost, or no epoch is left for gates.
    """

    def __init__(self, net: GatedNet, settings: MaskSearchSettings, epochs: int) -> None:
        self.net, self.settings, self.epochs = net, settings, epochs
        self.budget = Budget(settings.cost, partial(net.cost_of, settings.cost), settings.high, settings.low)
        least, most = net.reach(settings.cost)
        if self.budget.high < least or self.budget.low > most:
            raise ValueError(
                f"budget is {self.budget}, which no net has: those of space {net.space.name!r} reach from {least:.6g} "
                f"to {most:.6g}"
            )
        self.first = math.ceil(round(settings.gates_from * epochs, 9))
        if self.first >= epochs:
            raise ValueError(f"gates_from is {settings.gates_from}; of {epochs} epochs that leaves none for gates")
        most_probable(net.gates, self.budget)  # a gap between nets is refused now, not when all is trained
        cheapest, dearest = net.ends(settings.cost)
        self._ends = [dearest, cheapest]
        self.optimizer = torch.optim.Adam(net.gates.parameters(), lr=settings.gate_lr)
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Begin the draws of an epoch, at its temperature and weight of cost."""
        self.epoch = epoch
        seeds = np.random.SeedSequence(self.settings.seed, spawn_key=(epoch,)).generate_state(2)
        self._rng, self._generator = np.random.default_rng(seeds[0]), torch.Generator().manual_seed(int(seeds[1]))

    @property
    def gates_learn(self) -> bool:
        """Whether gates learn in this epoch."""
        return self.epoch >= self.first

    @property
    def temperature(self) -> float:
        """Of this epoch's draws."""
        how, last = self.settings, self.epochs - 1
        part = (self.epoch - self.first) / (last - self.first) if last > self.first else 1.0
        return how.temperature * (how.last_temperature / how.temperature) ** max(part, 0.0)

    @property
    def cost_weight(self) -> float:
        """Of this epoch's costs in the loss of gates."""
        ramp = self.settings.cost_ramp * self.epochs
        return self.settings.cost_weight * (min((self.epoch - self.first + 1) / ramp, 1.0) if ramp else 1.0)

    def mixtures(self) -> Iterator[None]:
        """Put the gates where a batch of the weights' images wants them: each time it goes on there is one more.

        First, the largest net, the smallest and a random one, so that later no option is better for being trained
        more (the sandwich rule: Yu, Huang, ICCV 2019); then one draw of the gates. No gradient reaches the logits.
        """
        gates = self.net.gates.requires_grad_(False)
        if self.gates_learn:
            gates.draw(self.temperature, self.settings.hard, self._generator)
            yield
            return
        for choice in (*self._ends, self.net.space.sample(self._rng)):
            gates.fix(choice)
            yield

    def step(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> dict[str, float]:
        """Teach the gates a batch; the weights stay as they are, and the net is in the mode that it is in.

        Args:
            images: (B, C, H, W).
            labels: (B,).
            autocast: Context of the forward pass.

        Returns:
            `loss`, its part `task_loss`, and `cost`, expected before the step.

        Raises:
            FloatingPointError: The loss is not finite.
        """
        gates = self.net.gates.requires_grad_(True)
        gates.draw(self.temperature, self.settings.hard, self._generator)
        with autocast():
            logits = self.net(images)
        task_loss = F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)
        cost = self.net.cost(self.settings.cost)
        over = (cost / self.settings.high).log().clamp_min(0)
        loss = task_loss + self.cost_weight * over.to(task_loss)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss of the gates became {loss.item()} in epoch {self.epoch}")
        logits_of = list(gates.parameters())
        for parameter, gradient in zip(logits_of, torch.autograd.grad(loss, logits_of, allow_unused=True)):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()  # gradients of gates are no part of what weights are clipped by
        gates.requires_grad_(False)
        return {"loss": loss.item(), "task_loss": task_loss.item(), "cost": cost.item()}

    def state_dict(self) -> dict[str, Any]:
        """What gates have learned, between epochs; the weights are the net's."""
        return {"gates": self.net.gates.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a :meth:`state_dict`."""
        self.net.gates.load_state_dict(state["gates"])
        self.optimizer.load_state_dict(state["optimizer"])


class GatedTask(ClassificationTask):
    """A timm training task: weights learn a batch through the nets that a search says.

    Args:
        search: The search; its net is what is trained.
        criterion: Loss of what the net gives in training and the targets.
        device: Where the net is.
    """

    def __init__(self, search: MaskSearch, criterion: nn.Module, device: torch.device | None = None) -> None:
        super().__init__(search.net, criterion, device=device, verbose=False)
        self.search = search

    def forward(self, input: torch.Tensor, target: Any) -> dict[str, torch.Tensor]:
        """`loss`, the mean over the nets, and `output`, what the last of them made of images (B, C, H, W)."""
        losses = []
        for _ in self.search.mixtures():
            output = self.trainable_module(input)
            losses.append(self.criterion(output, target))
        return {"loss": torch.stack(losses).mean(), "output": output}

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """Weights whose gradients are clipped; without the last layer's where adaptive clipping asks for that."""
        return list(self.search.net.network.parameters())[: -2 if exclude_head else None]
