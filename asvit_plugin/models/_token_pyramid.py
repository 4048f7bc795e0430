"""What pyramids with prefix tokens share: class and distillation heads, and features of every stage."""

import torch
from timm.layers import get_device_dtype, global_pool_nlc
from torch import nn

from .._timm_private import feature_take_indices
from ..checks import check_choice
from ._build import check_head
from ._multi_stage import MultiStageModel

GLOBAL_POOLS = ("token", "avg", "max", "avgmax", "")  # timm's names


class TokenPyramid(MultiStageModel):
    """A net of several stages in which prefix tokens go along with the token grid.

    Subclasses have ``norm``, ``head_drop``, ``head``, ``head_dist`` (or None), ``distilled_training``,
    ``num_prefix_tokens``, ``global_pool`` and ``num_stages``. They say how stages run (:meth:`run_stages`) and, where
    the grid is larger than the image, which tokens count (:meth:`crop`).
    """

    def run_stages(self, x: torch.Tensor, last: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Images (B, C, H, W) to prefix tokens (B, T, C_i) and tokens (B, H_i, W_i, C_i) of stages 0 to ``last``."""
        raise NotImplementedError

    def crop(self, x: torch.Tensor, height: int, width: int, stage: int) -> torch.Tensor:
        """Those of a stage's tokens (B, H_i, W_i, C_i) that an image of height x width pixels touches."""
        return x

    # Heads ----------------------------------------------------------------------------------------------------------

    @torch.jit.ignore
    def make_head(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> nn.Module:
        """A new classifier of the final features; the identity where there are no classes."""
        if self.num_classes == 0:
            return nn.Identity()
        return nn.Linear(self.num_features, self.num_classes, device=device, dtype=dtype)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The classifier, or both of a distilled net."""
        return self.head if self.head_dist is None else (self.head, self.head_dist)

    @torch.jit.ignore
    def set_distilled_training(self, enable: bool = True) -> None:
        """Have a distilled net return the logits of both heads in training mode, as timm's distillation expects."""
        self.distilled_training = enable

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier (both, where a net has two).

        Args:
            num_classes: Classes of the new one; 0 removes it.
            global_pool: New pooling; None keeps the present one.

        Raises:
            ValueError: for a number of classes that there is not, or a pooling, also for a distilled net.
        """
        global_pool = self.global_pool if global_pool is None else global_pool
        check_token_head(num_classes, global_pool, self.head_dist is not None)
        self.num_classes = num_classes
        self.global_pool = global_pool
        dd = get_device_dtype(self)
        self.head = self.make_head(**dd).train(self.training)
        if self.head_dist is not None:
            self.head_dist = self.make_head(**dd).train(self.training)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Tokens to logits (B, num_classes), or to the pooled feature; the mean of both tokens' where distilled."""
        if self.head_dist is not None and self.global_pool == "token":
            first, second = self.head_drop(x[:, 0]), self.head_drop(x[:, 1])
            if pre_logits:
                return (first + second) / 2
            first, second = self.head(first), self.head_dist(second)
            if self.distilled_training and self.training and not torch.jit.is_scripting():
                return first, second
            return (first + second) / 2
        pooled = self.head_drop(global_pool_nlc(x, self.global_pool, num_prefix_tokens=self.num_prefix_tokens))
        return pooled if pre_logits else self.head(pooled)

    @torch.jit.ignore
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As :meth:`MultiStageModel.prune_intermediate_layers`."""
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        self.num_stages = len(self.get_submodule(self.stages_name))
        return taken

    # Features -------------------------------------------------------------------------------------------------------

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to the last stage's normed tokens, (B, T + positions, num_features), prefix first."""
        prefix, x = self.run_stages(x, self.num_stages - 1)[-1]
        return self.norm(torch.cat([prefix, x.flatten(1, 2)], dim=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """The feature pyramid: each stage's output before the next reduction.

        Args:
            x: Images, (B, C, H, W).
            indices: Stages to return: the last n, a list, or None for all.
            return_prefix_tokens: Return (feature, prefix tokens) for each stage.
            norm: Apply the final norm to the last stage's feature.
            stop_early: Do not run stages behind the last one asked for.
            output_fmt: "NCHW".
            intermediates_only: Leave the final feature out.

        Returns:
            The features, (B, C_i, H_i, W_i) over the tokens that the image covers, or (``forward_features(x)``,
            features).
        """
        if not torch.jit.is_scripting():
            check_choice("output_fmt", output_fmt, ("NCHW",))
        height, width = x.shape[2], x.shape[3]
        take_indices, max_index = feature_take_indices(self.num_stages, indices)
        last = max_index if stop_early else self.num_stages - 1
        outputs = self.run_stages(x, last)
        features: list[torch.Tensor] = []
        prefixes: list[torch.Tensor] = []
        for i, (prefix, tokens) in enumerate(outputs):
            if i in take_indices:
                feature = self.crop(tokens, height, width, i)
                normed = norm and i == self.num_stages - 1
                features.append((self.norm(feature) if normed else feature).permute(0, 3, 1, 2).contiguous())
                prefixes.append(self.norm(prefix) if normed else prefix)
        intermediates = features
        if not torch.jit.is_scripting() and return_prefix_tokens:
            intermediates = list(zip(features, prefixes))
        if intermediates_only:
            return intermediates
        prefix, tokens = outputs[-1]
        x = torch.cat([prefix, tokens.flatten(1, 2)], dim=1)
        return (self.norm(x) if last == self.num_stages - 1 else x), intermediates


def check_token_head(
    num_classes: int, global_pool: str, distilled: bool, in_chans: int = 3, drop_path_rate: float = 0.0
) -> None:
    """As :func:`check_head`; and the two heads of a distilled net read its two tokens."""
    check_head(num_classes, global_pool, GLOBAL_POOLS, in_chans, drop_path_rate)
    if distilled and global_pool not in ("token", ""):
        raise ValueError(f"global_pool is {global_pool!r} with distilled=True; it must be 'token' or '' there")
