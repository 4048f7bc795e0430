"""Masks that take each example of a batch through a net of its own: the first channels and heads of one large net."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..models import NetworkDef, ViTResNAS
from ..models.vit_resnas_blocks import ResidualSpatialReduction, ResNASBlock

# Leading channels that a net keeps at a place of a stage (and of a block of it, counted with the removed ones).
_KEPT: dict[str, Callable[[NetworkDef, int, int], int]] = {
    "embed": lambda net, stage, block: net.dims[stage],
    "branch": lambda net, stage, block: net.dims[stage] * net.stages[stage][block].exists,
    "heads": lambda net, stage, block: net.stages[stage][block].num_heads * net.stages[stage][block].head_dim,
    "mlp": lambda net, stage, block: net.stages[stage][block].mlp_hidden_dim,
}


class ChannelMask(nn.Module):
    """Sets the channels behind each example's first few to zero; does nothing until it is told their number.

    Args:
        place: "embed" (channels of a stage), "branch" (the same, none where the block is removed), "heads" (channels of
            concatenated heads) or "mlp" (hidden channels).
        stage: Number of the stage.
        block: Number of the block in the definition's stage.
    """

    def __init__(self, place: str, stage: int, block: int = 0) -> None:
        super().__init__()
        self.place, self.stage, self.block = place, stage, block
        self.widths: torch.Tensor | None = None  # (B,)
        self.mask: torch.Tensor | None = None  # (B, C)

    def kept(self, net: NetworkDef) -> int:
        """Channels that a net keeps here."""
        return _KEPT[self.place](net, self.stage, self.block)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, ..., C) to the same shape."""
        return x if self.mask is None else x * _like(self.mask, x).to(x.dtype)


class MaskedLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels that a mask keeps, as the net that has only these computes it.

    The variance is taken around the mean; the authors' form, E[x^2] - E[x]^2, loses digits where the mean is large.

    Args:
        norm: The norm whose parameters these are.
        channels: Mask of its channels. The input must be zero where it is.
    """

    def __init__(self, norm: nn.LayerNorm, channels: ChannelMask) -> None:
        take_over(self, norm)
        self.channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, ..., C) to the same shape, with zeros where the mask has them."""
        if self.channels.mask is None:
            return super().forward(x)
        dtype = torch.promote_types(x.dtype, torch.float32)  # as torch's own norm computes
        mask, widths = _like(self.channels.mask, x).to(dtype), _like(self.channels.widths[:, None], x)
        wide = x.to(dtype)
        centred = (wide - wide.sum(-1, keepdim=True) / widths) * mask
        scale = (centred.square().sum(-1, keepdim=True) / widths + self.eps).rsqrt()
        y = torch.addcmul(self.bias.to(dtype) * mask, centred * scale, self.weight.to(dtype))
        return y if torch.is_autocast_enabled(x.device.type) else y.to(x.dtype)


class MaskedReduction(ResidualSpatialReduction):
    """A spatial reduction whose new channels a mask keeps.

    Args:
        reduction: The reduction whose parameters these are.
        channels: Mask of the channels behind it.
    """

    def __init__(self, reduction: ResidualSpatialReduction, channels: ChannelMask) -> None:
        take_over(self, reduction)
        self.channels = channels

    def forward(
        self, prefix: torch.Tensor, x: torch.Tensor, height: int, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        prefix, x = super().forward(prefix, x, height, width)
        return self.channels(prefix), self.channels(x)


def take_over(module: nn.Module, source: nn.Module) -> None:
    """Make ``module`` of all that ``source`` has: parameters, submodules, hooks, mode and the rest."""
    nn.Module.__init__(module)
    vars(module).update(vars(source))


def install_masks(model: ViTResNAS, net: NetworkDef) -> nn.ModuleList:
    """Put masks into a net, in place; they own no weights, and no name of a weight changes.

    Args:
        model: The net.
        net: Its definition.

    Returns:
        The masks, all off.
    """
    masks = nn.ModuleList([ChannelMask("embed", stage) for stage in range(len(net.dims))])
    model.pos_drop = nn.Sequential(model.pos_drop, masks[0])
    for index, (stage, definitions) in enumerate(zip(model.stages, net.stages)):
        if index:
            stage.downsample.norm = MaskedLayerNorm(stage.downsample.norm, masks[index - 1])
            stage.downsample = MaskedReduction(stage.downsample, masks[index])
        existing = [number for number, definition in enumerate(definitions) if definition.exists]
        for block, number in zip(stage.blocks, existing):
            masks.extend(_install_in_block(block, masks[index], number))
    model.norm = MaskedLayerNorm(model.norm, masks[len(net.dims) - 1])
    return masks


def _install_in_block(block: ResNASBlock, embed: ChannelMask, number: int) -> list[ChannelMask]:
    branch, heads, mlp = (ChannelMask(place, embed.stage, number) for place in ("branch", "heads", "mlp"))
    block.norm1 = MaskedLayerNorm(block.norm1, embed)
    block.norm2 = MaskedLayerNorm(block.norm2, embed)
    block.attn.norm = heads  # timm leaves these two places empty: between the heads and proj, and before fc2
    block.mlp.norm = mlp
    block.drop_path1 = nn.Sequential(block.drop_path1, branch)
    block.drop_path2 = nn.Sequential(block.drop_path2, branch)
    return [branch, heads, mlp]


def set_masks(
    masks: nn.ModuleList, nets: Sequence[NetworkDef], largest: NetworkDef, batch_size: int, device: torch.device
) -> None:
    """Have example i of the next batch go through net i % len(nets).

    Args:
        masks: What :func:`install_masks` returned.
        nets: Definitions that nest in ``largest``.
        largest: Definition of the whole net.
        batch_size: A multiple of ``len(nets)``.
        device: Where the batch is.
    """
    sizes = [mask.kept(largest) for mask in masks]
    rows = [[mask.kept(net) for net in nets] for mask in masks]
    widths = torch.tensor(rows, device=device).repeat(1, batch_size // len(nets))  # one copy to the device for all
    channels = torch.arange(max(sizes), device=device)
    for mask, size, row, kept in zip(masks, sizes, rows, widths):
        whole = all(width == size for width in row)
        mask.widths = None if whole else kept
        mask.mask = None if whole else channels[:size] < kept[:, None]


def clear_masks(masks: nn.ModuleList) -> None:
    """Have all examples go through the whole net."""
    for mask in masks:
        mask.widths = mask.mask = None


def _like(per_example: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(B, C) as (B, 1, ..., 1, C), to go with x (B, ..., C)."""
    assert len(per_example) == len(x), f"masks are of {len(per_example)} examples, the batch has {len(x)}"
    return per_example.reshape(len(x), *[1] * (x.ndim - 2), -1)
