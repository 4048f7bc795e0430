"""A net whose widths, heads, blocks and tokens are decided by gates, trained with its weights by gradient descent.

Wan et al., "FBNetV2: Differentiable Neural Architecture Search for Spatial and Channel Dimensions", 2020 (arXiv
2004.05565), carried over to vision transformers: one set of weights is computed at full width, and masks that gates
weigh stand for all narrower nets at once.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..checks import check_choice
from ..models.vit_resnas_costs import network_macs, network_params
from .gated_costs import Cost, IdleDecisions, Nets, Table, cost_tables, size_tables
from .gated_masks import gated_masks
from .importance import reorder
from .mask_gates import Gates
from .network_space import NetworkSpace
from .scaling_space import extreme
from .space import Choice, Space
from .supernet import Output, SuperNet, make_supernet

TOKEN_STRIDE = "token_stride"  # the one decision that makes nets cheaper


class GatedNet(nn.Module):
    """A net of masks, and the gates that weigh them.

    ``gates.draw`` (or ``fix``, ``uniform``) decides which mixture the next batches go through. With one option of every
    decision, output and gradients are those of the net cut out for it. A mixture's forward pass costs what the largest
    net's costs, however many options there are; only token strides are computed one by one.

    Args:
        network: The largest net, with masks installed.
        nets: The space of its nets.
        masks: The masks.
        costs: Costs of a net by name; more can be added with :meth:`add_cost`.

    Attributes:
        network: The net; its weights have the names that they have in the plain net.
        gates: The gates.
    """

    def __init__(self, network: nn.Module, nets: Nets, masks: nn.ModuleList, costs: Mapping[str, Cost]) -> None:
        super().__init__()
        self.nets = nets
        self.network = network
        self._sizes = size_tables(nets)
        self.gates = Gates(nets.space, IdleDecisions(nets.space, self._sizes))
        self._masks = gated_masks(masks, self._sizes, nets.largest)
        self._tables: dict[str, list[Table]] = {}
        self._join(next(network.parameters()))
        for name, cost in costs.items():
            self.add_cost(name, cost)

    def _join(self, weight: torch.Tensor) -> None:
        """Take gates and masks to a weight's device, in its type or single precision; what has no data stays."""
        place = {} if weight.is_meta else {"device": weight.device}
        for module in (self.gates, self._masks):
            module.to(dtype=torch.promote_types(weight.dtype, torch.float32), **place)

    @property
    def space(self) -> Space:
        """The space of the nets."""
        return self.nets.space

    def extra_repr(self) -> str:
        return f"space={self.space.name!r}"

    # Forward --------------------------------------------------------------------------------------------------------

    def forward(self, images: torch.Tensor) -> Output:
        """What the present mixture makes of images (B, C, H, W): logits, or whatever the net gives in training.

        Features of a net without a classifier have the largest net's channels, zeros behind those of a narrower one.
        With gradient checkpointing, a batch's backward pass must come before the next forward pass.
        """
        self._set_masks()
        try:
            return self._run(images)
        finally:
            if not any(getattr(module, "grad_checkpointing", False) for module in self.network.modules()):
                for mask in self._masks:
                    mask.clear()

    def _run(self, images: torch.Tensor) -> Output:
        return self.network(images)

    def _set_masks(self) -> None:
        """Give the masks the present weights of the gates."""
        alone = self.net_alone()
        if alone is None:
            weights = self.gates.weights
            for mask in self._masks:
                mask.mix(weights)
            return
        places = {name: gate.options.index(alone[name]) for name, gate in self.gates.items()}
        for mask in self._masks:
            mask.fix(places)

    def net_alone(self) -> Choice | None:
        """The one net that is computed now, where gates want no gradient; None for a mixture."""
        if self.gates.fixed is not None:
            return self.gates.fixed
        wanted = torch.is_grad_enabled() and any(each.requires_grad for each in self.gates.weights.values())
        return None if wanted else self.gates.present()

    # Costs ----------------------------------------------------------------------------------------------------------

    @property
    def costs(self) -> tuple[str, ...]:
        """Names of the costs that can be asked for."""
        return tuple(self._tables)

    def add_cost(self, name: str, cost: Cost) -> None:
        """Tabulate another cost of nets, such as seconds on a device.

        Args:
            name: Its name.
            cost: Of a definition and a token stride; a sum of its blocks' costs and of one for the rest, which depends
                on widths of stages and the token stride alone. It is asked once for every distinct block.
        """
        self._tables[name] = self.tabulate(cost)

    def tabulate(self, cost: Cost) -> list[Table]:
        """The terms of a cost as :meth:`add_cost` takes it, which is not added."""
        return cost_tables(self.nets, self._sizes, cost)

    def cost(self, name: str = "macs", drawn: bool = False) -> torch.Tensor:
        """The expected cost, exact for gates that decide independently; gradients flow to the logits.

        At gates of one option each it is the cost of that net to the unit.

        Args:
            name: "macs" of one image, "params", or what was added.
            drawn: Of the mixture that is computed now, instead of the gates' probabilities.

        Returns:
            A scalar in double precision, on the CPU.
        """
        check_choice("cost", name, self.costs)
        weights = self.gates.weights if drawn else self.gates.probabilities()
        on_cpu = {decision: each.to("cpu", torch.float64) for decision, each in weights.items()}
        return sum(table.expected(on_cpu) for table in self._tables[name])

    def cost_of(self, name: str, choice: Mapping[str, Any]) -> float:
        """The cost of one net, which may break constraints."""
        check_choice("cost", name, self.costs)
        self.space.check_values(choice)
        places = {decision: gate.options.index(choice[decision]) for decision, gate in self.gates.items()}
        return sum(float(table.values[tuple(map(places.get, table.names))]) for table in self._tables[name])

    def reach(self, name: str = "macs") -> tuple[float, float]:
        """The costs of the cheapest and of the dearest net that meet the constraints; see :meth:`ends`."""
        cheapest, dearest = self.ends(name)
        return self.cost_of(name, cheapest), self.cost_of(name, dearest)

    def ends(self, name: str = "macs") -> tuple[Choice, Choice]:
        """The cheapest and the dearest net that meet the constraints.

        They are found decision by decision, which is exact where each makes nets dearer or cheaper whatever the others
        are, as for "macs" and "params".
        """
        start = self.space.sample(np.random.default_rng(0))  # one that meets the constraints
        cost = partial(self.cost_of, name)
        return extreme(self.space, start, cost), extreme(self.space, start, cost, largest=True)

    # Nets -----------------------------------------------------------------------------------------------------------

    def largest_choice(self) -> Choice:
        """Every decision at its largest value, the token stride at its smallest; constraints may be broken."""
        return {name: (min if name == TOKEN_STRIDE else max)(each) for name, each in self.space.decisions.items()}

    def smallest_choice(self) -> Choice:
        """Every decision at its smallest value, the token stride at its largest; constraints may be broken."""
        return {name: (max if name == TOKEN_STRIDE else min)(each) for name, each in self.space.decisions.items()}

    def extract(self, choice: Mapping[str, Any], **kwargs: Any) -> nn.Module:
        """The net of a choice by itself, with a copy of its weights: an ordinary timm model.

        Args:
            choice: A value for every decision of the space.
            kwargs: More arguments of ``timm.create_model``, such as ``drop_path_rate``.
        """
        raise NotImplementedError

    def reorder(self, optimizer: torch.optim.Optimizer | None = None, copies: Sequence[nn.Module] = ()) -> None:
        """Sort heads and MLP units by importance; see :func:`reorder`. Copies are of :attr:`network`."""
        reorder(self.network, optimizer, copies)


class GatedResNAS(GatedNet):
    """Gates over a space of ViT-ResNAS nets.

    Where one net is computed alone and its gates want no gradient, the supernet's ``mode`` says how: "slices" computes
    no more than that net.

    Args:
        supernet: The space's supernet.
    """

    def __init__(self, supernet: SuperNet) -> None:
        networks = supernet.networks
        nets = Nets(networks.space, networks.largest, networks.network)
        super().__init__(supernet, nets, supernet.masks, _resnas_costs(supernet))

    def _set_masks(self) -> None:
        alone = self.net_alone() if self.network.mode == "slices" else None
        self.network.choose(None if alone is None else [alone])
        if alone is None:
            super()._set_masks()

    def _run(self, images: torch.Tensor) -> Output:
        try:
            return self.network(images)
        finally:
            self.network.choose(None)

    def extract(self, choice: Mapping[str, Any], **kwargs: Any) -> nn.Module:
        """As :meth:`GatedNet.extract`."""
        return self.network.extract(dict(choice), **kwargs)


def _resnas_costs(supernet: SuperNet) -> dict[str, Cost]:
    settings = supernet.img_size, supernet.in_chans, supernet.num_classes, supernet.num_prefix_tokens
    patch_head = supernet.patch_head is not None
    return {
        "macs": lambda net, stride: network_macs(net, *settings),
        "params": lambda net, stride: network_params(net, *settings, patch_head),
    }


def gate_network(space: NetworkSpace | Space | str | Path, **kwargs: Any) -> GatedResNAS:
    """Gates over the supernet of a space of ViT-ResNAS nets.

    Args:
        space: The space: read, or by name, or a YAML file.
        kwargs: As for :func:`make_supernet`.

    Raises:
        ValueError: for a space that is none of nets which share weights, or has nothing to decide.
    """
    return GatedResNAS(make_supernet(space, **kwargs))
