"""Important heads and MLP units first: what the smaller nets of a supernet are made of."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from timm.layers import Attention, Mlp
from timm.utils import unwrap_model
from torch import nn

from ..models.vit_resnas_blocks import ResNASBlock


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

    Source: Liao, Karaman, Sze, arXiv 2109.00642. In the authors' code the optimizer's moments and averaged weights stay
    behind and belong to other units from then on; here they move along.

    Args:
        supernet: A ViT-ResNAS; DDP is looked through.
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
    for name, module in model.named_modules():
        if isinstance(module, ResNASBlock):
            yield from _head_moves(f"{name}.attn", module.attn)
            yield from _unit_moves(f"{name}.mlp", module.mlp)


def _head_moves(name: str, attn: Attention) -> Iterator[_Move]:
    """The order of heads, for the channels of queries, keys and values, and for those that ``proj`` reads."""
    heads, head_dim = attn.num_heads, attn.head_dim
    weight = attn.qkv.weight.unflatten(0, (3, heads, head_dim))
    bias = attn.qkv.bias.view(3, heads, head_dim, 1)
    rows = torch.cat([weight, bias], dim=3).transpose(0, 1).flatten(1)
    columns = attn.proj.weight.T.unflatten(0, (heads, head_dim)).flatten(1)
    order = _by_importance(torch.cat([rows, columns], dim=1))
    channels = torch.arange(3 * heads * head_dim, device=order.device).view(3, heads, head_dim)[:, order]
    yield _Move(f"{name}.qkv.weight", 0, channels.flatten())
    yield _Move(f"{name}.qkv.bias", 0, channels.flatten())
    yield _Move(f"{name}.proj.weight", 1, channels[0].flatten())


def _unit_moves(name: str, mlp: Mlp) -> Iterator[_Move]:
    """The order of the units between ``fc1`` and ``fc2``."""
    order = _by_importance(torch.cat([mlp.fc1.weight, mlp.fc1.bias[:, None], mlp.fc2.weight.T], dim=1))
    yield _Move(f"{name}.fc1.weight", 0, order)
    yield _Move(f"{name}.fc1.bias", 0, order)
    yield _Move(f"{name}.fc2.weight", 1, order)


def _by_importance(weights: torch.Tensor) -> torch.Tensor:
    """Indices of the rows (one for each head or unit) from the largest sum of absolute values to the smallest."""
    # In double precision, and from rows that lie alike in memory: equal rows then have equal sums wherever they are.
    return weights.double().abs().sum(dim=1).argsort(descending=True, stable=True)
