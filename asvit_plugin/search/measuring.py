"""Builds a net of a space, and measures it by proxies: what every search does with a choice."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from timm.models import get_model_input_config
from torch import nn

from ..costs import macs, params


def build_net(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The model of ``timm.create_model``.

    Raises:
        ValueError: It cannot be built; names the arguments and the reason.
    """
    try:
        return timm.create_model(name, **arguments)
    except (AssertionError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        reason = " ".join(str(error).split())
        raise ValueError(f"the space's model {name} cannot be built with {given}: {reason}") from error


def create_model_line(name: str, arguments: Mapping[str, Any]) -> str:
    """The Python that builds the net."""
    return ", ".join([f'timm.create_model("{name}"', *(f"{key}={value!r}" for key, value in arguments.items())]) + ")"


def count_costs(name: str, arguments: Mapping[str, Any]) -> dict[str, int]:
    """Parameters, and multiply-accumulates of one image, without memory or time for the net itself."""
    with torch.device("meta"):
        model = build_net(name, arguments)
    return {"params": params(model), "macs": macs(model, input_shape(model, arguments))}


def input_shape(model: nn.Module, arguments: Mapping[str, Any]) -> tuple[int, int, int]:
    """Channels, height and width of the model's image: those of its arguments or its own."""
    channels, height, width = get_model_input_config(model)["input_size"]
    side = arguments.get("img_size")
    return (channels, side, side) if side else (channels, height, width)


def measure_scores(
    name: str, arguments: Mapping[str, Any], proxies: Sequence[str], repeats: int, seed: int, device: str
) -> tuple[dict[str, float], dict[str, float | None]]:
    """Value of each proxy (NaN where it has none), and its spread over repeats (None where it has none)."""
    from . import PROXIES  # the package imports what imports this module

    model = build_net(name, arguments)
    side = input_shape(model, arguments)[-1]
    scores = {
        proxy: PROXIES[proxy].measure(model, img_size=side, repeats=repeats, seed=seed, device=device)
        for proxy in proxies
    }
    spread = {name: score.spread if math.isfinite(score.spread) else None for name, score in scores.items()}
    return {name: score.value for name, score in scores.items()}, spread
