"""The net that tools/scale.py begins with, and what may change of it, as they stand on the command line."""

import argparse
from collections.abc import Sequence
from typing import Any

from arguments import key_value

from asvit_plugin.backbones.net_file import is_net_file, resolve_net
from asvit_plugin.search.scaling_bases import BASES, Base, find_base


def read_base(texts: Sequence[str], factors: Sequence[str] | None = None) -> Base:
    """The base that ``--base`` and ``--factors`` name.

    Args:
        texts: A name, a genotype or a net's YAML file, and further arguments as NAME=VALUE.
        factors: Each FACTOR or FACTOR=VALUE,VALUE,...; None for all.

    Raises:
        OSError: The file cannot be read.
        ValueError: naming what is wrong.
    """
    names = [text for text in texts if "=" not in text]
    if len(names) > 1:
        raise ValueError(f"--base has {names[0]!r} and {names[1]!r}; one net is scaled, and the rest are NAME=VALUE")
    given = dict(_pair("--base", text) for text in texts if "=" in text)
    net = names[0] if names else "deit_tiny"
    if is_net_file(net):
        net, size, known = resolve_net(net, None, {})
        known = {"stride": 8, **known} if net == "scaled_pit" else known  # the model's default, whatever the patch is
        given = {**known, **({} if size is None else {"img_size": size}), **given}
    elif net not in BASES and "|" not in net:
        kinds = f"{', '.join(BASES)}, a genotype of As-ViT, or a net_STEP.yaml"
        raise ValueError(f"--base is {net!r}; it must be one of {kinds}")
    return find_base(net, given, read_factors(factors))


def read_factors(texts: Sequence[str] | None) -> dict[str, list[float] | None] | None:
    """Choices by factor; None instead of them for its grid, and None for all factors with their grids."""
    if texts is None:
        return None
    found: dict[str, list[float] | None] = {}
    for text in texts:
        name, values = _pair("--factors", text) if "=" in text else (text, None)
        found[name] = values if values is None or isinstance(values, (list, tuple)) else [values]
    return found


def _pair(option: str, text: str) -> tuple[str, Any]:
    try:
        return key_value(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{option}: {error}") from error
