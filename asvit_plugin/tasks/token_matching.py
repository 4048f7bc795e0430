"""Tokens of a student beside those of its teacher, after every block: which to compare, and how."""

from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from timm.task.distillation import FeatureDistillationTrainableModule
from torch import nn

# Prefix tokens (B, T, C), with T = 0 where they take no part, and the token grid (B, H, W, C)
Tokens = tuple[torch.Tensor, torch.Tensor]


class TokenStudent(FeatureDistillationTrainableModule):
    """A student that gives (logits, tokens), with linear maps to the teacher's widths: all that DDP must see at once.

    timm's class says how layers are grouped and which of them do not decay.
    """

    def __init__(self, student: nn.Module, indices: list[int], prefix: bool, projection: nn.ModuleList) -> None:
        super().__init__(student, projection)
        self.indices, self.prefix = indices, prefix

    def forward(self, images: torch.Tensor) -> tuple[Any, list[Tokens]]:
        features, tokens = forward_tokens(self.student, images, self.indices, self.prefix)
        return self.student.forward_head(features), [
            (map_to(prefix), map_to(grid)) for map_to, (prefix, grid) in zip(self.projection, tokens)
        ]


def forward_tokens(
    model: nn.Module, images: torch.Tensor, indices: list[int], prefix: bool
) -> tuple[torch.Tensor, list[Tokens]]:
    """Images (B, C, H, W) to the final features, which ``forward_head`` takes, and the tokens after some blocks."""
    options = {"return_prefix_tokens": True} if prefix else {}
    features, found = model.forward_intermediates(images, indices=indices, output_fmt="NCHW", **options)
    pairs = found if prefix else [(each, each.new_zeros(len(each), 0, each.shape[1])) for each in found]
    return features, [(tokens, grid.permute(0, 2, 3, 1)) for grid, tokens in pairs]


def compare_tokens(ours: list[Tokens], theirs: list[Tokens]) -> torch.Tensor:
    """Mean squared difference of layer-normed tokens, every block counting alike; 0 where they differ in scale only."""
    losses = []
    for (prefix, grid), (their_prefix, their_grid) in zip(ours, theirs):
        size = grid.shape[1:3]
        if their_grid.shape[1:3] != size:
            their_grid = F.interpolate(their_grid.permute(0, 3, 1, 2), size, mode="bilinear", antialias=True)
            their_grid = their_grid.permute(0, 2, 3, 1)
        pair = (torch.cat([prefix, grid.flatten(1, 2)], dim=1), torch.cat([their_prefix, their_grid.flatten(1, 2)], 1))
        losses.append(F.mse_loss(*(F.layer_norm(tokens, tokens.shape[-1:]) for tokens in pair)))
    return torch.stack(losses).mean()


def pair_depths(student: nn.Module, teacher: nn.Module) -> tuple[list[int], list[int]]:
    """Blocks to compare, of both models, at equal parts of their depths: as many as the shallower one has."""
    depths = []
    for role, model in (("student", student), ("teacher", teacher)):
        if not hasattr(model, "forward_intermediates") or not getattr(model, "feature_info", None):
            raise ValueError(f"tokens_weight is above 0; the {role} {type(model).__name__} does not offer its tokens")
        depths.append(len(model.feature_info))
    count = min(depths)
    ours, theirs = ([round((i + 1) * depth / count) - 1 for i in range(count)] for depth in depths)
    return ours, theirs


def make_projections(student: nn.Module, ours: list[int], teacher: nn.Module, theirs: list[int]) -> nn.ModuleList:
    """A linear map for every pair of blocks whose widths differ."""
    widths = [(_width(student, i), _width(teacher, j)) for i, j in zip(ours, theirs)]
    return nn.ModuleList(nn.Identity() if here == there else nn.Linear(here, there) for here, there in widths)


def _width(model: nn.Module, index: int) -> int:
    return model.feature_info[index]["num_chs"]


def share_prefix(student: nn.Module, teacher: nn.Module) -> bool:
    """Whether both have as many prefix tokens, at least one, and give them after every block (cait does not)."""
    if not all(
        "return_prefix_tokens" in signature(each.forward_intermediates).parameters for each in (student, teacher)
    ):
        return False
    counts = [getattr(model, "num_prefix_tokens", 0) for model in (student, teacher)]
    return counts[0] == counts[1] > 0
