"""Important heads, MLP units and channels first: what the smaller nets inside a net are made of."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from timm.layers import Attention, LayerScale, Mlp
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from timm.utils import unwrap_model
from torch import nn

from ..models.vit_resnas_blocks import ResNASBlock
from .vit_slices import width_kinds


class _Move(NamedTuple):
    """New order of a tensor's entries along a dimension."""

    name: str  # of the parameter
    dim: int
    order: torch.Tensor


@torch.no_grad()
def reorder(
    supernet: nn.Module, optimizer: torch.optim.Optimizer | None = None, copies: Sequence[nn.Module] = ()
) -> None:
    """Sort the heads and MLP units of every block by importance, in place; what the whole net computes stays the same.

    The importance of a unit is the sum of the absolute values of the weights that belong to it: its row of ``fc1``
    with bias and its column of ``fc2``; a head's rows of ``qkv`` with biases and its columns of ``proj``. Those of
    equal importance keep their order, so that sorting twice changes nothing.

    In a plain ViT the channels of the stream between blocks, which all share one order, are sorted in the same way: by
    the columns of ``qkv``, ``fc1`` and the head, times the gain of the norm before them, and by the rows of ``proj``
    and ``fc2`` with biases, times the gain of layer scale. Patches and positions do not count.

    Source: Liao, Karaman, Sze, arXiv 2109.00642. In the authors' code the optimizer's moments and averaged weights stay
    behind and belong to other units from then on; here they move along.

    Args:
        supernet: A ViT-ResNAS, or a plain ViT of timm's; DDP is looked through.
        optimizer: Its state is moved where it has the shape of its parameter, as moments and momentum do (the factored
            moments of Adafactor do not).
        copies: Models whose weights move in the same way: the one of an average of the weights.
    """
    model = unwrap_model(supernet)
    parameters = dict(model.named_parameters())
    others = [dict(unwrap_model(copy).named_parameters()) for copy in copies]
    moments = _moments(optimizer) if optimizer else {}
    for name, dim, order in _moves(model):
        parameter = parameters[name]
        for tensor in (parameter, *(each[name] for each in others), *moments.get(parameter, ())):
            tensor.copy_(tensor.index_select(dim, order.to(tensor.device)))


def _moments(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, list[torch.Tensor]]:
    """For each parameter, the tensors of its shape that the optimizer keeps.

    They are taken from ``state_dict``, which numbers parameters and copies nothing: ``optimizer.state`` of wrappers
    such as timm's Lookahead is empty.
    """
    state = optimizer.state_dict()["state"]
    numbered = enumerate(parameter for group in optimizer.param_groups for parameter in group["params"])
    return {
        parameter: [
            each
            for each in state.get(number, {}).values()
            if isinstance(each, torch.Tensor) and each.shape == parameter.shape
        ]
        for number, parameter in numbered
    }


def _moves(model: nn.Module) -> Iterator[_Move]:
    known = {name for name, _ in model.named_parameters()}  # some nets do without biases
    for name, module in model.named_modules():
        if isinstance(module, (ResNASBlock, Block)) and type(module.attn) is Attention and type(module.mlp) is Mlp:
            moves = [*_head_moves(f"{name}.attn", module.attn), *_unit_moves(f"{name}.mlp", module.mlp)]
            yield from (move for move in moves if move.name in known)
    if isinstance(model, VisionTransformer):
        order = _by_importance(_stream_weights(model))
        for name, parameter in model.named_parameters():
            kinds = width_kinds(name)[0][: parameter.ndim]
            if "embed" in kinds:
                yield _Move(name, kinds.index("embed"), order)


def _head_moves(name: str, attn: Attention) -> Iterator[_Move]:
    """The order of heads, for the channels of queries, keys and values, and for those that ``proj`` reads."""
    heads, head_dim = attn.num_heads, attn.head_dim
    rows = _rows(attn.qkv).unflatten(0, (3, heads, head_dim)).transpose(0, 1).flatten(1)
    columns = attn.proj.weight.T.unflatten(0, (heads, head_dim)).flatten(1)
    order = _by_importance(torch.cat([rows, columns], dim=1))
    channels = torch.arange(3 * heads * head_dim, device=order.device).view(3, heads, head_dim)[:, order]
    yield _Move(f"{name}.qkv.weight", 0, channels.flatten())
    yield _Move(f"{name}.qkv.bias", 0, channels.flatten())
    yield from (_Move(f"{name}.norm.{each}", 0, channels[0].flatten()) for each in ("weight", "bias"))
    yield _Move(f"{name}.proj.weight", 1, channels[0].flatten())


def _unit_moves(name: str, mlp: Mlp) -> Iterator[_Move]:
    """The order of the units between ``fc1`` and ``fc2``."""
    order = _by_importance(torch.cat([_rows(mlp.fc1), mlp.fc2.weight.T], dim=1))
    yield _Move(f"{name}.fc1.weight", 0, order)
    yield _Move(f"{name}.fc1.bias", 0, order)
    yield from (_Move(f"{name}.norm.{each}", 0, order) for each in ("weight", "bias"))
    yield _Move(f"{name}.fc2.weight", 1, order)


def _stream_weights(model: VisionTransformer) -> torch.Tensor:
    """What reads and writes each channel between the blocks of a plain ViT, (C, weights)."""
    last = model.norm if isinstance(model.norm, nn.LayerNorm) else model.fc_norm
    reads = [each for block in model.blocks for each in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1))]
    reads += [(last, model.head)] if isinstance(model.head, nn.Linear) else []
    weights = [layer.weight.T * norm.weight[:, None] for norm, layer in reads]
    for block in model.blocks:
        for layer, scale in ((block.attn.proj, block.ls1), (block.mlp.fc2, block.ls2)):
            rows = _rows(layer)
            weights.append(rows * scale.gamma[:, None] if isinstance(scale, LayerScale) else rows)
    return torch.cat(weights, dim=1)


def _rows(layer: nn.Linear) -> torch.Tensor:
    """The weights of each output, with its bias where there is one."""
    return layer.weight if layer.bias is None else torch.cat([layer.weight, layer.bias[:, None]], dim=1)


def _by_importance(weights: torch.Tensor) -> torch.Tensor:
    """Indices of the rows (one for each head or unit) from the largest sum of absolute values to the smallest."""
    # In double precision, and from rows that lie alike in memory: equal rows then have equal sums wherever they are.
    return weights.double().abs().sum(dim=1).argsort(descending=True, stable=True)
