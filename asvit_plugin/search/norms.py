"""Nets without their normalisation layers, as length distortion measures them."""

import torch
import torch.nn.functional as F
from torch import nn

from ..layers import PatchMerging


def remove_norms(model: nn.Module) -> nn.Module:
    """Put the identity in the place of every norm of a model, in place; all other weights stay.

    Norms are the modules that are called so and hold no others with parameters: PyTorch's and timm's. What a fused
    one does besides (an activation) is kept.
    """
    for name, child in model.named_children():
        if isinstance(child, PatchMerging):
            setattr(model, name, UnnormedMerging(child))
        elif "Norm" in type(child).__name__ and not any(True for layer in child.children() for _ in layer.parameters()):
            setattr(model, name, getattr(child, "act", None) or nn.Identity())
        else:
            remove_norms(child)
    return model


class UnnormedMerging(nn.Module):
    """As-ViT's merge of K x K patches of tokens without its norm, which :class:`PatchMerging` has folded in."""

    def __init__(self, merging: PatchMerging) -> None:
        super().__init__()
        self.dim, self.kernel_size, self.pad = merging.dim, merging.kernel_size, merging.pad
        self.reduction = merging.reduction

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Merge (B, H, W, C) with even H and W into (B, H / 2, W / 2, out_dim)."""
        before, after = self.pad
        x = F.pad(x, (0, 0, before, after, before, after)).permute(0, 3, 1, 2)
        kernel = self.reduction.weight.unflatten(1, (self.dim, self.kernel_size, self.kernel_size))
        return F.conv2d(x, kernel, stride=2).permute(0, 2, 3, 1)
