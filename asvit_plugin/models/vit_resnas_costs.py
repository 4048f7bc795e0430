"""The cost of a ViT-ResNAS net as a formula of its definition, exact at every image size (the authors' rule is not)."""

from itertools import pairwise

from timm.layers import to_2tuple

from ..costs.analytic import block_macs, block_params
from .vit_resnas_genotype import PATCH_SIZE, NetworkDef


def network_macs(
    net: NetworkDef,
    img_size: int | tuple[int, int] = 224,
    in_chans: int = 3,
    num_classes: int | None = None,
    num_prefix_tokens: int = 1,
) -> int:
    """Multiply-accumulates of one image in eval mode, equal to ``asvit_plugin.costs.macs`` of the built net.

    Args:
        net: The net; blocks that are removed cost nothing.
        img_size: Side of the image in pixels, or (height, width); as the net does, it is padded to a multiple of the
            largest stride.
        in_chans: Image channels.
        num_classes: Classes; None for the definition's own number.
        num_prefix_tokens: 2 for a distilled net, whose two heads both count.
    """
    classes = net.num_classes if num_classes is None else num_classes
    multiple = PATCH_SIZE << (len(net.dims) - 1)
    height, width = (-(-side // multiple) * multiple for side in to_2tuple(img_size))
    tokens = [(height // stride) * (width // stride) for stride in _strides(net)]
    total = _stem_weights(net, in_chans, height * width // 4, tokens[0]) + num_prefix_tokens * net.dims[-1] * classes
    for (before, after), count in zip(pairwise(net.dims), tokens[1:]):
        total += (9 * count + num_prefix_tokens) * before * after
    for dim, stage, count in zip(net.dims, net.stages, tokens):
        for block in stage:
            if block.exists:
                attn_dim = block.num_heads * block.head_dim
                total += block_macs(count + num_prefix_tokens, dim, attn_dim, block.mlp_hidden_dim)
    return total


def network_params(
    net: NetworkDef,
    img_size: int | tuple[int, int] = 224,
    in_chans: int = 3,
    num_classes: int | None = None,
    num_prefix_tokens: int = 1,
    patch_head: bool = False,
) -> int:
    """Parameters, equal to ``asvit_plugin.costs.params`` of the built net.

    Args:
        net: The net; blocks that are removed have none.
        img_size: Nominal image size in pixels, or (height, width): positions are stored for its grids.
        in_chans: Image channels.
        num_classes: Classes; None for the definition's own number.
        num_prefix_tokens: 2 for a distilled net, which has two heads.
        patch_head: With the second head that training classifies every patch by.
    """
    classes = net.num_classes if num_classes is None else num_classes
    height, width = to_2tuple(img_size)
    positions = [-(-height // stride) * -(-width // stride) for stride in _strides(net)]
    heads = num_prefix_tokens + patch_head if classes else 0
    total = _stem_weights(net, in_chans, 1, 1) + 6 * net.stem_width + net.dims[0]  # with norms and the last bias
    total += 2 * num_prefix_tokens * net.dims[0]  # prefix tokens and their positions
    total += sum(count * dim for count, dim in zip(positions, net.dims))
    total += sum(2 * before + 10 * before * after + 2 * after for before, after in pairwise(net.dims))  # reductions
    total += 2 * net.dims[-1] + heads * (net.dims[-1] + 1) * classes
    return total + sum(
        block_params(dim, block.num_heads * block.head_dim, block.mlp_hidden_dim)
        for dim, stage in zip(net.dims, net.stages)
        for block in stage
        if block.exists
    )


def _strides(net: NetworkDef) -> list[int]:
    return [PATCH_SIZE << stage for stage in range(len(net.dims))]


def _stem_weights(net: NetworkDef, in_chans: int, pixels: int, tokens: int) -> int:
    """Weights of the stem, each as often as it is used: at pixels of half the image's size, and once per token."""
    if not net.stem_width:
        return in_chans * PATCH_SIZE**2 * net.dims[0] * tokens
    inner = 9 * net.stem_width * (in_chans + 2 * net.stem_width)
    return inner * pixels + net.stem_width * (PATCH_SIZE // 2) ** 2 * net.dims[0] * tokens
