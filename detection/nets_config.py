"""Nets by file in a config: what tools/scale.py and other searches wrote as net_STEP.yaml, put in the file's place.

The config that a run leaves then says all of its net, also when the next search has written over the file.
"""

import ast
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode
from omegaconf import DictConfig, ListConfig, OmegaConf

from asvit_plugin.backbones.net_file import is_net_file, resolve_net

KWARGS = "MODEL.TIMM.KWARGS"


def settle_nets(cfg: CfgNode | DictConfig) -> None:
    """Replace files of nets, in ``MODEL.TIMM.NAME`` or as ``name`` of a LazyConfig's trunk, by what they hold.

    Raises:
        ValueError: A file is no net's, or the config has another value of an argument in it.
    """
    if not isinstance(cfg, CfgNode):
        for node in _calls(cfg.model):
            if is_net_file(node.get("name")):
                net = resolve_net(node.name, node.get("img_size"), node.get("model_kwargs") or {})
                node.name, node.img_size, node.model_kwargs = net
        return
    node = cfg.MODEL.TIMM
    if is_net_file(node.NAME):
        node.NAME, node.IMG_SIZE, kwargs = resolve_net(node.NAME, node.IMG_SIZE, node.KWARGS)
        node.KWARGS = CfgNode(kwargs, new_allowed=True)


def set_arguments(node: CfgNode, entry: str, value: str) -> None:
    """Override ``MODEL.TIMM.KWARGS`` as a whole, or one argument of it, which may be new.

    yacs takes no dictionaries from a command line, and no entries that are not there.

    Args:
        node: ``MODEL.TIMM``.
        entry: ``MODEL.TIMM.KWARGS``, or that with a point and the argument's name.
        value: In Python's notation, or any text.

    Raises:
        ValueError: The whole is given, and not by name.
    """
    name = entry.removeprefix(KWARGS).removeprefix(".")
    try:
        given = ast.literal_eval(value)
    except (SyntaxError, ValueError):
        given = value
    if name:
        node.KWARGS[name] = given
        return
    if not isinstance(given, dict) or not all(isinstance(each, str) for each in given):
        raise ValueError(f"{KWARGS} is {value!r}; it must be arguments by name, as {{'depth': 12}}")
    node.KWARGS = CfgNode(given, new_allowed=True)


def _calls(node: Any) -> Iterator[DictConfig]:
    """All calls in a LazyConfig."""
    if not isinstance(node, (DictConfig, ListConfig)):
        return
    if "_target_" in node:
        yield node
    for name in node if isinstance(node, DictConfig) else range(len(node)):
        if not OmegaConf.is_missing(node, name) and not OmegaConf.is_interpolation(node, name):
            yield from _calls(node[name])
