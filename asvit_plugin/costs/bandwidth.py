"""How fast a device moves memory: a copy of a tensor that no cache holds, timed as models are."""

from dataclasses import replace

import torch
from torch import nn

from .latency import LatencyProbe
from .latency_record import Latency, LatencySetting
from .runtimes import DTYPES

COPIED_BYTES = 256 * 2**20  # several times the last-level caches of today's CPUs and GPUs


class Copy(nn.Module):
    """Copies its input into memory that it has already: every byte is read once and written once."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("target", torch.zeros(shape), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.target.copy_(x)


def copy_probe(setting: LatencySetting | None = None, copied: int = COPIED_BYTES) -> LatencyProbe:
    """A copy of ``copied`` bytes on a setting's device, in eager mode, to be timed alone or in turn with models."""
    setting = replace(setting or LatencySetting(), runtime="eager")
    numbers = torch.zeros(1, copied // DTYPES[setting.dtype].itemsize)
    return LatencyProbe(Copy(*numbers.shape), numbers, setting)


def bandwidth(copy: Latency) -> float:
    """Bytes per second, read and written together, of what :func:`copy_probe` timed."""
    numbers = copy.key.batch * copy.key.input[0]
    return 2 * numbers * DTYPES[copy.key.dtype].itemsize / copy.median
