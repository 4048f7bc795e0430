"""Small supernets, nets of their spaces, and gradients of such nets put where they belong in the supernet's."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from asvit_plugin import NetworkDef
from asvit_plugin.search.network_space import NetworkSpace
from asvit_plugin.search.space import Choice, Space
from asvit_plugin.search.supernet import SuperNet, make_supernet

_BLOCK = "(1, ({{dim_{0}}}, {{heads_{1}}}, {2}), ({{dim_{0}}}, {{mlp_{1}}}), {3})"


def block(stage: int, name: str, head_dim: int, exists: str = "1") -> str:
    return _BLOCK.format(stage, name, head_dim, exists)


def space(definition: list[str], **decisions: tuple[int, ...]) -> NetworkSpace:
    """A space of the definition's entries; heads and MLPs that it names have choices of their own."""
    text = f"({', '.join(definition)})"
    for name in ("a", "b", "c", "d"):
        if f"heads_{name}" in text:
            decisions |= {f"heads_{name}": (3, 2, 1), f"mlp_{name}": (20, 12, 7)}
    return NetworkSpace(Space("small", "vit_resnas", decisions, {"network_def": text}))


_STAGES = [
    block(1, "a", 4),
    block(1, "b", 6, "{exists_b}"),
    "(3, {dim_1}, {dim_2})",
    block(2, "c", 8, "{exists_c}"),  # all blocks of a stage may be removed
    block(2, "d", 4, "{exists_d}"),
    "(2, {dim_2}, 5)",
]
_DIMS = dict(dim_1=(16, 12, 9), dim_2=(24, 20, 16), exists_b=(1, 0), exists_c=(1, 0), exists_d=(1, 0))
TWO_STAGES = space(["(5, {dim_1}, 6)", *_STAGES], **_DIMS)
LINEAR_STEM = space(["(0, {dim_1})", *_STAGES], **_DIMS)
ONE_STAGE = space(
    ["(4, {dim_1})", block(1, "a", 4), block(1, "b", 6, "{exists_b}"), "(2, {dim_1}, 5)"],
    **{name: _DIMS[name] for name in ("dim_1", "exists_b")},
)


def supernet(networks: NetworkSpace = TWO_STAGES, **kwargs: Any) -> SuperNet:
    """A supernet whose weights are large enough that nothing hides behind them, in eval mode."""
    model = make_supernet(networks, **{"img_size": 56, **kwargs})
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def choices(networks: NetworkSpace, count: int, seed: int = 0) -> list[Choice]:
    """Random nets; the second without any block that may be removed, the third without every other of them."""
    rng = np.random.default_rng(seed)
    drawn = [networks.space.sample(rng) for _ in range(count)]
    removable = [name for name, role in networks.roles.items() if role == "exists"]
    for choice, exists in zip(drawn[1:], ([0], [1, 0])):
        choice |= dict(zip(removable, exists * len(removable)))
    return drawn


def add_to_whole(whole: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], net: NetworkDef) -> None:
    """Add a net's tensors to the leading parts of the supernet's, which are found by shape alone."""
    for name, tensor in own.items():
        target = whole[_in_whole(name, net)]
        if ".qkv." in name:
            target, tensor = target.unflatten(0, (3, -1)), tensor.unflatten(0, (3, -1))
        target[tuple(slice(size) for size in tensor.shape)] += tensor


def _in_whole(name: str, net: NetworkDef) -> str:
    """A weight's name in a supernet that lacks no block."""
    parts = name.split(".")
    if "blocks" in parts:
        blocks = [index for index, each in enumerate(net.stages[int(parts[1])]) if each.exists]
        parts[3] = str(blocks[int(parts[3])])
    return ".".join(parts)
