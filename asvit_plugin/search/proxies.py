"""All scores of nets that need no training, by name, and the two that only count."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn

from .. import costs
from .distortion import length_distortion
from .features import image_shape
from .ntk import ntk_condition
from .score import Score
from .spectrum import spectrum_entropy
from .synaptic import dss, synflow


def num_parameters(
    model: nn.Module,
    img_size: int | tuple[int, int] | None = None,
    repeats: int = 1,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Score:
    """Number of parameters, as a score of one value; all arguments but the model are there for likeness only."""
    return Score((float(costs.params(model)),))


def macs(
    model: nn.Module,
    img_size: int | tuple[int, int] | None = None,
    repeats: int = 1,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Score:
    """Multiply-accumulates of one image of ``img_size`` (None for the model's own), as a score of one value.

    The arguments behind it are there for likeness only.
    """
    return Score((float(costs.macs(model, image_shape(model, img_size))),))


@dataclass(frozen=True)
class Proxy:
    """One way to score a net without training.

    Attributes:
        measure: A function of (model, img_size=, repeats=, seed=, device=) that gives a :class:`Score`.
        maximize: Whether more is better.
    """

    measure: Callable[..., Score]
    maximize: bool


PROXIES: Mapping[str, Proxy] = MappingProxyType(
    {
        "length_distortion": Proxy(length_distortion, maximize=True),
        "ntk_condition": Proxy(ntk_condition, maximize=False),
        "spectrum_entropy": Proxy(spectrum_entropy, maximize=True),
        "dss": Proxy(dss, maximize=True),
        "synflow": Proxy(synflow, maximize=True),
        "parameters": Proxy(num_parameters, maximize=True),
        "macs": Proxy(macs, maximize=True),
    }
)
