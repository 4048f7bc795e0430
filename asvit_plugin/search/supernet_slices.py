"""A net of a supernet's space as slices of the supernet's weights: the first channels and heads of the largest net.

The rule is the authors' (Liao, Karaman, Sze, arXiv 2109.00642): every tensor gives the leading part of each of its
dimensions, and ``qkv`` that of queries, keys and values each.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from ..models import NetworkDef, ViTResNAS
from ..models.vit_resnas_genotype import BlockDef

_Widths = tuple[int | None, ...]  # leading channels kept of each dimension, from the first on; None: all


def slice_weights(tensors: Mapping[str, torch.Tensor], largest: NetworkDef, net: NetworkDef) -> dict[str, torch.Tensor]:
    """The weights of a net out of those of the largest, as views (but for ``qkv``), through which gradients flow.

    Args:
        tensors: Parameters and buffers of the largest net by name, all or some.
        largest: Its definition.
        net: Definition of a net that nests in it, with as many blocks; those that it removes have exists=False.

    Returns:
        Those tensors that the net has, under the names that they have in it.
    """
    rules = {source: (target, widths) for source, target, widths in _rules(largest, net)}
    sliced = {}
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        if name in rules:
            target, widths = rules[name]
        elif owner in rules:
            target, widths = rules[owner]
            target = f"{target}.{leaf}"
        elif owner.startswith("patch_embed"):
            target, widths = name, ()  # the inside of a stem is the same in all nets
        else:
            continue  # of a block that the net does not have
        sliced[target] = leading_qkv(tensor, widths) if owner.endswith("qkv") else leading(tensor, widths)
    return sliced


def _rules(largest: NetworkDef, net: NetworkDef) -> Iterator[tuple[str, str, _Widths]]:
    """For each module with weights, and parameters that stand alone: its name, that in the net, and what it keeps."""
    first, last = net.dims[0], net.dims[-1]
    for name in ("cls_token", "dist_token", "prefix_pos_embed"):
        yield name, name, (None, None, first)
    yield "pos_embed", "pos_embed", (None, None, None, first)
    yield "patch_embed.proj", "patch_embed.proj", (first,)
    for i, dim in enumerate(net.dims):
        if i:
            reduction, before = f"stages.{i}.downsample", net.dims[i - 1]
            yield f"{reduction}.norm", f"{reduction}.norm", (before,)
            yield f"{reduction}.conv", f"{reduction}.conv", (dim, before)
            yield f"{reduction}.token_proj", f"{reduction}.token_proj", (dim, before)
            yield f"{reduction}.pos_embed", f"{reduction}.pos_embed", (None, None, None, dim)
        for target, (source, block) in enumerate(blocks_left(largest, net, i)):
            for name, widths in _block_widths(dim, block).items():
                yield f"stages.{i}.blocks.{source}.{name}", f"stages.{i}.blocks.{target}.{name}", widths
    yield "norm", "norm", (last,)
    for name in ("head", "head_dist", "patch_head"):
        yield name, name, (None, last)


def _block_widths(dim: int, block: BlockDef) -> dict[str, _Widths]:
    """Leading output and input channels of a block's layers; of ``qkv``, those of queries, keys and values each."""
    heads = block.num_heads * block.head_dim
    return {
        "norm1": (dim,),
        "attn.qkv": (heads, dim),
        "attn.proj": (dim, heads),
        "norm2": (dim,),
        "mlp.fc1": (block.mlp_hidden_dim, dim),
        "mlp.fc2": (dim, block.mlp_hidden_dim),
    }


def blocks_left(largest: NetworkDef, net: NetworkDef, stage: int) -> list[tuple[int, BlockDef]]:
    """The net's blocks in a stage that are not removed, each with its index among those of the largest net."""
    existing = [own for own, whole in zip(net.stages[stage], largest.stages[stage]) if whole.exists]
    return [(index, block) for index, block in enumerate(existing) if block.exists]


def leading(tensor: torch.Tensor, widths: _Widths) -> torch.Tensor:
    """The first ``widths`` of the first dimensions, as many as the tensor has."""
    for dim, (width, size) in enumerate(zip(widths, tensor.shape)):
        if width is not None and width < size:
            tensor = tensor.narrow(dim, 0, width)
    return tensor


def leading_qkv(tensor: torch.Tensor, widths: _Widths) -> torch.Tensor:
    """The same for queries, keys and values, which lie one behind the other along the first dimension."""
    return leading(tensor.unflatten(0, (3, -1)), (None, *widths)).flatten(0, 1)


def sliced_net(supernet: ViTResNAS, largest: NetworkDef, net: NetworkDef) -> ViTResNAS:
    """A net for one forward pass: copies of the supernet's modules, without its stem's, around slices of its weights.

    Modules are copied and not built, which takes a tenth of the time. Rates of dropout and drop path, the mode and
    gradient checkpointing are the supernet's; gradients reach the supernet's parameters. The stem is the whole
    supernet's: callers run it once for all nets.
    """
    copied = _copy_modules(supernet, ViTResNAS)
    for index, (dim, stage) in enumerate(zip(net.dims, copied.stages)):
        if index:
            stage.downsample.num_new = dim - net.dims[index - 1]
        left = blocks_left(largest, net, index)
        stage.blocks = nn.Sequential(*(stage.blocks[source] for source, _ in left))
        for block, (_, definition) in zip(stage.blocks, left):
            block.attn.num_heads = definition.num_heads
            block.attn.attn_dim = definition.num_heads * definition.head_dim
    parameters = {name: each for name, each in supernet.named_parameters() if not name.startswith("patch_embed")}
    _put_weights(copied, slice_weights(parameters, largest, net))
    return copied


def _copy_modules(module: nn.Module, cls: type[nn.Module] | None = None) -> nn.Module:
    """New objects for all modules that own parameters, directly or below; they hold the very same ones."""
    if not module._parameters and not module._modules:
        return module
    copied = object.__new__(cls or type(module))
    vars(copied).update(vars(module))
    copied._parameters = dict(module._parameters)
    copied._modules = {
        name: child if child is None else _copy_modules(child) for name, child in module._modules.items()
    }
    return copied


def _put_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Put tensors, which are no parameters, where the model has its parameters, as torch's functional_call does."""
    for owner, module in model.named_modules():
        for leaf in module._parameters:
            name = f"{owner}.{leaf}" if owner else leaf
            module._parameters[leaf] = weights.get(name, module._parameters[leaf])
        if isinstance(module, nn.LayerNorm):
            module.normalized_shape = tuple(module.weight.shape)
