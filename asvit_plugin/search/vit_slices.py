"""What the weights of a plain ViT are widths of, and a narrower net as slices of them.

Definitions of plain ViTs are those of ViT-ResNAS with one stage.
"""

import math
import re
from collections.abc import Iterator, Mapping

import torch

from ..models import NetworkDef
from ..models.vit_resnas_genotype import BlockDef
from .supernet_slices import leading, leading_qkv

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_TOKENS = (None, None, "embed")

# Kind of width of a layer's output and input channels, or of a parameter's dimensions; None is the same in all nets.
_OUTSIDE: dict[str, tuple[str | None, ...]] = {
    **dict.fromkeys(("cls_token", "reg_token", "pos_embed"), _TOKENS),
    **dict.fromkeys(("norm_pre", "norm", "fc_norm", "patch_embed.proj"), ("embed",)),
    "head": (None, "embed"),
}
_INSIDE: dict[str, tuple[str | None, ...]] = {
    **dict.fromkeys(("norm1", "norm2", "ls1", "ls2"), ("embed",)),
    "attn.qkv": ("heads", "embed"),
    **dict.fromkeys(("attn.q_norm", "attn.k_norm"), (None,)),
    "attn.norm": ("heads",),
    "attn.proj": ("embed", "heads"),
    "mlp.fc1": ("mlp", "embed"),
    "mlp.norm": ("mlp",),
    "mlp.fc2": ("embed", "mlp"),
}


def width_kinds(name: str) -> tuple[tuple[str | None, ...], int | None]:
    """The kinds of width of a parameter's dimensions, and the number of its block (None outside of blocks).

    Raises:
        ValueError: for a parameter that plain ViTs do not have.
    """
    inside = _BLOCK.fullmatch(name)
    kinds, rest = (_INSIDE, inside[2]) if inside else (_OUTSIDE, name)
    found = kinds.get(rest, kinds.get(rest.rpartition(".")[0]))
    if found is None:
        raise ValueError(f"{name} is a weight that plain ViTs do not have; it cannot be masked")
    return found, int(inside[1]) if inside else None


def slice_vit(tensors: Mapping[str, torch.Tensor], net: NetworkDef) -> dict[str, torch.Tensor]:
    """The weights of a net out of those of the largest, as views (but for ``qkv``), through which gradients flow.

    Args:
        tensors: Parameters of the largest net by name.
        net: Definition of a net that nests in it, with as many blocks; those that it removes have exists=False.

    Returns:
        Those tensors that the net has, under the names that they have in it.
    """
    numbers = {source: target for target, source in enumerate(_existing(net))}
    sliced = {}
    for name, tensor in tensors.items():
        kinds, block = width_kinds(name)
        if block is not None and block not in numbers:
            continue
        widths = tuple(_widths(kinds, net, block))
        target = name if block is None else name.replace(f"blocks.{block}.", f"blocks.{numbers[block]}.", 1)
        sliced[target] = leading_qkv(tensor, widths) if ".qkv." in name else leading(tensor, widths)
    return sliced


def count_params(shapes: Mapping[str, torch.Size], net: NetworkDef) -> int:
    """Parameters of a net.

    Args:
        shapes: Of the parameters of the largest net.
        net: Definition of a net that nests in it, which may have fewer blocks.
    """
    total, existing = 0, set(_existing(net))
    for name, shape in shapes.items():
        kinds, block = width_kinds(name)
        if block is None or block in existing:
            widths = [*_widths(kinds, net, block), *[None] * len(shape)]
            sizes = [size if width is None else width for width, size in zip(widths, shape)]
            total += math.prod(sizes) * (3 if ".qkv." in name else 1)
    return total


def _existing(net: NetworkDef) -> list[int]:
    return [number for number, block in enumerate(net.stages[0]) if block.exists]


def _widths(kinds: tuple[str | None, ...], net: NetworkDef, number: int | None) -> Iterator[int | None]:
    block: BlockDef | None = None if number is None else net.stages[0][number]
    for kind in kinds:
        if kind == "heads":
            yield block.num_heads * block.head_dim
        else:
            yield {"embed": net.dims[0], "mlp": block and block.mlp_hidden_dim, None: None}[kind]
