"""Builds a net of a space, and measures it by proxies: what every search does with a choice."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from timm.models import get_model_input_config
from torch import nn

from .. import costs
from ..checks import check_choice
from ..costs import macs, params
from .proxies import PROXIES


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


def check_measurement(proxies: Sequence[str], seed: int, repeats: int, img_size: int | None) -> None:
    """Refuse settings of a search that nets cannot be measured by.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """
    for name, value, smallest in (("seed", seed, 0), ("repeats", repeats, 1)):
        if not isinstance(value, int) or value < smallest:
            raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {smallest}")
    if img_size is not None and (not isinstance(img_size, int) or img_size < 1):
        raise ValueError(f"img_size is {img_size!r}; it must be a whole number of at least 1, or None")
    if isinstance(proxies, str):
        raise ValueError(f"proxies is {proxies!r}; it must be a list of names, such as [{proxies!r}]")
    if not proxies or len(set(proxies)) < len(proxies):
        raise ValueError(f"proxies are {list(proxies)}; there must be at least one, and none twice")
    for proxy in proxies:
        check_choice("proxies", proxy, tuple(PROXIES))


def directions(proxies: Sequence[str]) -> dict[str, bool]:
    """For each proxy, whether more is better."""
    return {name: PROXIES[name].maximize for name in proxies}


def with_img_size(space: str, arguments: Mapping[str, Any], img_size: int | None) -> dict[str, Any]:
    """A net's arguments with the image size of a search's settings.

    Raises:
        ValueError: The space decides the size itself.
    """
    if img_size is None:
        return dict(arguments)
    if "img_size" in arguments:
        raise ValueError(f"img_size is {img_size}, but space {space!r} decides it; leave it out")
    return {**arguments, "img_size": img_size}


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
    model = build_net(name, arguments)
    side = input_shape(model, arguments)[-1]
    scores = {
        proxy: PROXIES[proxy].measure(model, img_size=side, repeats=repeats, seed=seed, device=device)
        for proxy in proxies
    }
    spread = {name: score.spread if math.isfinite(score.spread) else None for name, score in scores.items()}
    return {name: score.value for name, score in scores.items()}, spread


def measure_latency(model: nn.Module, shape: Sequence[int], device: str) -> float:
    """Median seconds for one image (C, H, W) in eval mode on one thread, over a second of runs."""
    return costs.measure_latency(model, (1, *shape), device=device, threads=1).median
