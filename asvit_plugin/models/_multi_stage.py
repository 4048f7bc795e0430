"""What backbones of several stages share of timm's interface."""

from typing import Any

import torch
from torch import nn

from .._timm_private import feature_take_indices

WEIGHT_INITS = ("", "jax", "jax_nlhb", "moco", "reset", "skip")  # timm's names


class MultiStageModel(nn.Module):
    """A model with ``stages`` (each with ``blocks`` and ``downsample``), ``norm``, and ``feature_info`` by stage.

    A subclass that keeps the names of published weights says what it calls its stages and what enters them.
    """

    stem_pattern: str  # regular expression for the parameters before the first stage
    stages_name = "stages"
    downsample_name = "downsample"

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups from the stem up, for layer-wise learning rates."""
        stage = rf"^{self.stages_name}\.(\d+)"
        return dict(
            stem=self.stem_pattern,
            blocks=stage
            if coarse
            else [
                (rf"{stage}\.{self.downsample_name}", (0,)),
                (rf"{stage}\.blocks\.(\d+)", None),
                (r"^norm", (99999,)),
            ],
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass."""
        for stage in self.get_submodule(self.stages_name):
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the features at ``indices`` do not need; those features stay the same at every image size.

        Args:
            indices: Stages to keep as features: the last n, or a list.
            prune_norm: Also drop the final norm.
            prune_head: Also drop the head; it goes anyway when stages go.

        Returns:
            The indices as non-negative numbers.
        """
        stages = self.get_submodule(self.stages_name)
        take_indices, max_index = feature_take_indices(len(stages), indices)
        prune_end = max_index < len(stages) - 1
        if prune_norm or prune_end:
            self.norm = nn.Identity()
        if prune_end:
            setattr(self, self.stages_name, stages[: max_index + 1])
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        if prune_head or prune_end:
            self.reset_classifier(0, "")
        return take_indices
