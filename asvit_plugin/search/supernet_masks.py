"""Masks that take each example of a batch through a net of its own, or all of them through a mixture of nets.

A net has the first channels and heads of one large net. A mixture (Wan et al., arXiv 2004.05565) weighs every channel
by how much of the nets have it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..models import NetworkDef, ViTResNAS
from ..models.vit_resnas_blocks import ResidualSpatialReduction

# Leading channels that a net keeps at a place of a stage (and of a block of it, counted with the removed ones).
_KEPT: dict[str, Callable[[NetworkDef, int, int], int]] = {
    "embed": lambda net, stage, block: net.dims[stage],
    "branch": lambda net, stage, block: net.dims[stage] * net.stages[stage][block].exists,
    "heads": lambda net, stage, block: net.stages[stage][block].num_heads * net.stages[stage][block].head_dim,
    "mlp": lambda net, stage, block: net.stages[stage][block].mlp_hidden_dim,
}


class ChannelMask(nn.Module):
    """Sets the channels behind each example's first few to zero; does nothing until it is told their number.

    Where it is given ``weights`` instead, all examples' channels are weighed by them. The stream between blocks
    ("embed") then stays as it is, and what reads it weighs it: norms and the skips of reductions.

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
        self.weights: torch.Tensor | None = None  # of a mixture: (C,), for "branch" () as all channels weigh the same

    def __getstate__(self) -> dict[str, Any]:
        """For copies: weights go along without their graph."""
        return {**vars(self), "weights": None if self.weights is None else self.weights.detach()}

    def kept(self, net: NetworkDef) -> int:
        """Channels that a net keeps here."""
        return _KEPT[self.place](net, self.stage, self.block)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, ..., C) to the same shape."""
        if self.weights is not None:
            return x if self.place == "embed" else self.weigh(x)
        return x if self.mask is None else x * _like(self.mask, x).to(x.dtype)

    def weigh(self, x: torch.Tensor) -> torch.Tensor:
        """(B, ..., C) times the weights of the mixture."""
        return x if self.weights is None else x * self.weights.to(x.dtype)


class MaskedLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels that a mask keeps, as the net that has only these computes it.

    With weights of a mixture, mean and variance are weighted ones, and the result is weighed.

    The variance is taken around the mean; the authors' form, E[x^2] - E[x]^2, loses digits where the mean is large.

    Args:
        norm: The norm whose parameters these are.
        channels: Mask of its channels.
    """

    def __init__(self, norm: nn.LayerNorm, channels: ChannelMask) -> None:
        take_over(self, norm)
        self.channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, ..., C) to the same shape, with zeros where the mask has them."""
        channels = self.channels
        dtype = torch.promote_types(x.dtype, torch.float32)  # as torch's own norm computes
        if channels.weights is not None:
            mask = channels.weights.to(dtype)
            width = mask.sum()
        elif channels.mask is not None:
            mask, width = _like(channels.mask, x).to(dtype), _like(channels.widths[:, None], x)
        else:
            return super().forward(x)
        wide = x.to(dtype)
        centred = wide - (wide * mask).sum(-1, keepdim=True) / width
        scale = ((centred.square() * mask).sum(-1, keepdim=True) / width + self.eps).rsqrt()
        gain = mask if self.weight is None else self.weight.to(dtype) * mask
        y = (
            centred * scale * gain
            if self.bias is None
            else torch.addcmul(self.bias.to(dtype) * mask, centred * scale, gain)
        )
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
        outputs = super().forward(prefix, x, height, width)
        read = self.norm.channels
        if read.weights is not None:  # the skips read the stream weighed
            pooled = F.avg_pool2d((read.weigh(x) - x).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
            changes = (read.weigh(prefix) - prefix, pooled)
            outputs = tuple(out + F.pad(change, (0, self.num_new)) for out, change in zip(outputs, changes))
        return self.channels(outputs[0]), self.channels(outputs[1])


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
            masks.extend(install_in_block(block, masks[index], number))
    model.norm = MaskedLayerNorm(model.norm, masks[len(net.dims) - 1])
    return masks


def install_in_block(block: nn.Module, embed: ChannelMask, number: int) -> list[ChannelMask]:
    """Put masks into a block with the names of timm's, and give those that it alone has."""
    branch, heads, mlp = (ChannelMask(place, embed.stage, number) for place in ("branch", "heads", "mlp"))
    block.norm1 = MaskedLayerNorm(block.norm1, embed)
    block.norm2 = MaskedLayerNorm(block.norm2, embed)
    # Between the heads and proj, and before fc2; timm mostly leaves these two places empty.
    for owner, mask in ((block.attn, heads), (block.mlp, mlp)):
        owner.norm = MaskedLayerNorm(owner.norm, mask) if isinstance(owner.norm, nn.LayerNorm) else mask
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
