"""Masks as gates weigh them: every channel by how much of the mixture keeps it."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ..models import NetworkDef
from .gated_costs import Size, Table
from .supernet_masks import ChannelMask


class GatedMask(nn.Module):
    """Gives a channel mask the weights of a mixture.

    All nets keep the first channels, so the weights of an option with w channels are w ones and then zeros, and those
    of a mixture are their weighted sum (Wan et al., arXiv 2004.05565): one vector, however many options there are. It
    falls in steps, from the channels that all options keep to those of the widest alone; each step is summed once.

    Args:
        mask: The mask.
        kept: Channels that it keeps for every option ("branch": whether the block is there).
        size: All channels of it; 1 for "branch".
    """

    def __init__(self, mask: ChannelMask, kept: Table, size: int) -> None:
        super().__init__()
        self.mask, self.kept, self.size = mask, kept, size
        self._channels = {place: int(value) for place, value in np.ndenumerate(kept.values.numpy())}
        options = kept.values.flatten()
        widths = options[options > 0].unique()
        keeping = (options >= widths[:, None]).to(torch.get_default_dtype())
        step_of_channel = torch.searchsorted(widths, torch.arange(size, dtype=widths.dtype), right=True)
        self.register_buffer("keeping", keeping, persistent=False)  # (steps, options)
        self.register_buffer("step_of_channel", step_of_channel, persistent=False)  # (C,)

    def mix(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take the weights of the gates, by decision, for the next batches."""
        joint = self.keeping.new_ones(1)
        for name in self.kept.names:
            joint = (joint[:, None] * weights[name].to(self.keeping)).flatten()
        steps = (joint * self.keeping).sum(1)  # not by a matrix product: autocast would round it
        channels = steps[self.step_of_channel]
        self.mask.weights = channels.squeeze(0) if self.mask.place == "branch" else channels

    def fix(self, places: Mapping[str, int]) -> None:
        """Take one net, given by the numbers of its options, for the next batches; no mask where it is whole."""
        kept = self._channels[tuple(places[name] for name in self.kept.names)]
        if kept == self.size:
            self.mask.weights = None
        elif self.mask.place == "branch":
            self.mask.weights = self.keeping.new_zeros(())
        else:
            self.mask.weights = (torch.arange(self.size, device=self.keeping.device) < kept).to(self.keeping)

    def clear(self) -> None:
        """Take no weights: the whole net is computed."""
        self.mask.weights = None


def gated_masks(masks: nn.ModuleList, tables: Mapping[Size, Table], largest: NetworkDef) -> nn.ModuleList:
    """Gated masks for those that are installed in a net.

    Args:
        masks: The masks.
        tables: Sizes of the space's nets by option.
        largest: Definition of the net.
    """
    gated = nn.ModuleList()
    for mask in masks:
        what = "exists" if mask.place == "branch" else mask.place
        kept = tables[what, mask.stage, mask.block]
        if what == "heads":
            kept = replace(kept, values=kept.values * largest.stages[mask.stage][mask.block].head_dim)
        gated.append(GatedMask(mask, kept, 1 if what == "exists" else mask.kept(largest)))
    return gated
