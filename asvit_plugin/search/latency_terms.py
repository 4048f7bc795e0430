"""Latency as a cost of gated nets: the sum of measured blocks and of what is measured around them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import timm
import torch
from timm.models import get_model_args
from timm.models.vision_transformer import Block
from torch import nn

from ..costs import BlockTable, LatencyCache, LatencySetting
from ..costs.block_latency import PartKey
from ..costs.counted import run_on_meta
from ..costs.fingerprint import fingerprint
from ..models import NetworkDef
from ..models.vit_resnas_blocks import ResNASBlock
from ..models.vit_resnas_genotype import BlockDef
from .gated_net import GatedNet, GatedResNAS

LATENCY = "latency (s)"  # name of the cost
Build = Callable[[NetworkDef, int], nn.Module]


def add_latency(
    net: GatedNet,
    input_size: Sequence[int],
    setting: LatencySetting | None = None,
    seconds: float = 0.1,
    cache: LatencyCache | None = None,
) -> None:
    """Give a gated net the cost "latency (s)", in seconds for one image.

    Every distinct block of its nets is measured, in turn with all others, and for every combination of stages' widths
    the net without blocks. A net's latency is taken for the sum of these.

    Args:
        net: The gated net.
        input_size: Of an image (C, H, W).
        setting: Runtime, device, dtype and threads.
        seconds: How long each part is timed.
        cache: Where parts are looked up first, and kept.
    """
    terms = _Terms(_builder(net), (1, *input_size))
    net.tabulate(terms)  # asks for all parts that there are
    table = BlockTable.timed(setting, seconds, cache=cache)
    keys = list(terms.parts)
    inputs = [torch.randn(shape) for _, shape in keys]
    terms.seconds = dict(zip(keys, table.measure([terms.parts[key] for key in keys], inputs)))
    terms.parts = {}
    net.add_cost(LATENCY, terms)


class _Terms:
    """Seconds of a net's parts, zeros as long as they are not measured."""

    def __init__(self, build: Build, shape: tuple[int, ...]) -> None:
        self.build, self.shape = build, shape
        self.seconds: dict[PartKey, float] = {}
        self.parts: dict[PartKey, nn.Module] = {}
        self._keys: dict[tuple[NetworkDef, int], list[PartKey]] = {}

    def __call__(self, net: NetworkDef, stride: int) -> float:
        if (net, stride) not in self._keys:
            parts = _split(self.build(net, stride), self.shape)
            self.parts |= parts
            self._keys[net, stride] = list(parts)
        return sum(self.seconds.get(key, 0.0) for key in self._keys[net, stride])


def _split(model: nn.Module, shape: tuple[int, ...]) -> dict[PartKey, nn.Module]:
    """The blocks of a net, and the net without them; no two blocks are alike."""
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, (Block, ResNASBlock))}
    shapes: dict[nn.Module, tuple[int, ...]] = {}
    watch = [
        block.register_forward_pre_hook(lambda module, args: shapes.update({module: tuple(args[0].shape)}))
        for block in blocks.values()
    ]
    run_on_meta(model, shape)
    for hook in watch:
        hook.remove()
    for name in {name.rpartition(".")[0] for name in blocks}:
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, type(model.get_submodule(name))())
    parts = {block: shapes[block] for block in blocks.values()} | {model: shape}
    return {(fingerprint(module), each): module for module, each in parts.items()}


def _builder(net: GatedNet) -> Build:
    """Builds the nets whose parts are measured: of one block, or of none."""
    if isinstance(net, GatedResNAS):
        return partial(_build_resnas, get_model_args(net.network), net.nets.largest.stages[0][0])
    largest = {name: max(choices) for name, choices in net.space.decisions.items()}
    name, arguments = net.space.arguments(largest)

    def build(each: NetworkDef, stride: int) -> nn.Module:
        model = timm.create_model(name, **arguments | _shape(each, stride, arguments))
        if not each.stages[0]:
            model.blocks = nn.Sequential()
        return model

    return build


def _build_resnas(arguments: dict[str, Any], block: BlockDef, net: NetworkDef, stride: int) -> nn.Module:
    """A definition has at least one block; one of no use stands in for it, and is taken out again."""
    bare = not any(net.stages)
    net = replace(net, stages=((replace(block, exists=True),), *net.stages[1:])) if bare else net
    model = timm.create_model("vit_resnas", **{**arguments, "network_def": str(net)})
    if bare:
        model.stages[0].blocks = type(model.stages[0].blocks)()
    return model


def _shape(net: NetworkDef, stride: int, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``scaled_vit`` for a net of one block, or of none, whose block is taken out later."""
    heads, hidden = (1, 1)
    if net.stages[0]:
        (block,) = net.stages[0]
        heads, hidden = block.num_heads, block.mlp_hidden_dim
    ratio = (hidden + 0.5) / net.dims[0]
    shape = {"depth": 1, "embed_dim": net.dims[0], "num_heads": [heads], "mlp_ratio": [ratio]}
    return shape | ({"token_stride": stride} if stride > 1 else {"token_stride": None})
