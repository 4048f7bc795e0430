"""Scaled ViTs for clips: tubelet tokens, and joint attention over space and time.

Arnab et al., "ViViT: A Video Vision Transformer" (2021, arXiv 2103.15691), sections 3.2 and 3.3 (model 1). The blocks
are timm's ViT's, as in ``scaled_vit``. Clips are not images, so the class is not in timm's registry.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed, trunc_normal_
from timm.models import checkpoint
from torch import nn

from .._timm_private import feature_take_indices
from ..checks import check_choice
from .scaled_vit import ScaledViT
from .tubelet_embed import TubeletEmbed, check_num_frames


class ScaledVideoViT(ScaledViT):
    """A scaled ViT on clips (B, C, T, H, W): all tokens of all frames attend to each other.

    A token's position is the sum of a spatial table, that of the image model, and a temporal one, ``time_embed`` of
    shape (1, T', C); both are resampled where a clip has another size. Features are NLC, prefix tokens first, then the
    T' x H' x W' tokens in raster order. Any number of frames and any image size are taken (``dynamic_img_size`` and
    ``dynamic_img_pad`` are on unless told otherwise): frames are padded with zeros on the right and at the bottom,
    clips by repeating the last frame.

    Args:
        num_frames: Nominal number of frames, a multiple of ``tubelet_size``: the length that ``time_embed`` is for.
        tubelet_size: Frames that a token spans.
        kwargs: Arguments of :class:`ScaledViT`; ``img_size`` and ``patch_size`` are those of a frame, and
            ``pos_embed="none"`` leaves out both tables.

    Raises:
        ValueError: naming the argument that is out of range.
    """

    def __init__(self, num_frames: int = 16, tubelet_size: int = 2, **kwargs: Any) -> None:
        super().__init__(embed_layer=partial(TubeletEmbed, num_frames, tubelet_size), **kwargs)
        self.add_time_embed()
        if kwargs.get("weight_init") != "skip":
            self._init_time_embed()

    def add_time_embed(self) -> None:
        """Give the model a temporal table of zeros, where it has a spatial one."""
        table = None
        if self.pos_embed is not None:
            steps = self.patch_embed.num_frames // self.patch_embed.tubelet_size
            table = nn.Parameter(self.pos_embed.new_zeros(1, steps, self.embed_dim))
        self.register_parameter("time_embed", table)

    def _init_time_embed(self) -> None:
        if self.time_embed is not None:
            trunc_normal_(self.time_embed, std=0.02)

    # Sizes and weights ----------------------------------------------------------------------------------------------

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise as timm's ViT; the temporal table as the spatial one, truncated normal (0.02)."""
        super().init_weights(mode, needs_reset)
        if "time_embed" in self._parameters:  # timm's constructor calls this before there is one
            self._init_time_embed()

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
        num_frames: int | None = None,
    ) -> None:
        """Change the nominal size of clips; both position tables are resampled to it.

        Args:
            img_size: New nominal size of a frame in pixels; None keeps it.
            patch_size: New size of a patch in pixels; None keeps it.
            num_frames: New nominal number of frames; None keeps it.

        Raises:
            ValueError: if tubelets do not fill the frames, and as :meth:`ScaledViT.set_input_size`.
        """
        if num_frames is not None:
            check_num_frames(num_frames, self.patch_embed.tubelet_size)
        super().set_input_size(img_size, patch_size)  # refuses before it changes anything
        if num_frames is not None:
            self.patch_embed.num_frames = num_frames
        if num_frames is not None and self.time_embed is not None:
            table = resample_time_embed(self.time_embed.detach(), num_frames // self.patch_embed.tubelet_size)
            self.time_embed = nn.Parameter(table, requires_grad=self.time_embed.requires_grad)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that should not decay: timm's, and the temporal table."""
        return super().no_weight_decay() | ({"time_embed"} if self.time_embed is not None else set())

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's groups of layers; the temporal table belongs to the stem."""
        groups = super().group_matcher(coarse)
        return {**groups, "stem": groups["stem"] + "|time_embed"}

    # Forward --------------------------------------------------------------------------------------------------------

    def _pos_embed(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (B, T', H', W', C) to (B, prefix + T' H' W', C) with their positions; called by timm's ViT."""
        batch, steps, height, width, dim = x.shape
        tokens = [token.expand(batch, -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        prefix = torch.cat([*tokens, x.new_empty(batch, 0, dim)], dim=1)
        if self.pos_embed is not None:
            own = 0 if self.no_embed_class else self.num_prefix_tokens  # prefix tokens that have a row in the table
            space = resample_abs_pos_embed(self.pos_embed, [height, width], list(self.patch_embed.grid_size), own)
            time = resample_time_embed(self.time_embed, steps)
            x = x + (space[:, own:].view(1, 1, height, width, dim) + time.view(1, steps, 1, 1, dim))
            prefix = prefix + space[:, :own] if own else prefix
        return self.pos_drop(torch.cat([prefix, x.flatten(1, 3)], dim=1))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCTHW",
        intermediates_only: bool = False,
        **attention: Any,
    ) -> Any:
        """Features and what the blocks gave, as timm's ViT.

        Args:
            x: Clips (B, C, T, H, W).
            indices: The last n blocks, those named, or None for all.
            return_prefix_tokens: Give pairs (tokens, prefix tokens).
            norm: Apply the final norm to each.
            stop_early: Stop behind the last block that is asked for.
            output_fmt: "NCTHW" for (B, C, T', H', W'), or "NLC".
            intermediates_only: Leave out the features.
            attention: ``attn_mask`` and ``is_causal``, passed to the blocks.

        Returns:
            (features, intermediates), or the list of intermediates alone.
        """
        check_choice("output_fmt", output_fmt, ("NCTHW", "NLC"))
        wanted, last = feature_take_indices(len(self.blocks), indices)
        x = self.patch_embed(x)
        grid = x.shape[1:4]
        x = self.norm_pre(self.patch_drop(self._pos_embed(x)))
        outputs = []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            x = checkpoint(block, x, **attention) if self.grad_checkpointing else block(x, **attention)
            if i in wanted:
                outputs.append(self.norm(x) if norm else x)
        prefixes = [y[:, : self.num_prefix_tokens] for y in outputs]
        outputs = [y[:, self.num_prefix_tokens :] for y in outputs]
        if output_fmt == "NCTHW":
            outputs = [y.transpose(1, 2).unflatten(2, grid).contiguous() for y in outputs]
        if return_prefix_tokens and self.num_prefix_tokens:
            outputs = list(zip(outputs, prefixes))
        return outputs if intermediates_only else (self.norm(x), outputs)


def resample_time_embed(table: torch.Tensor, steps: int) -> torch.Tensor:
    """A temporal table (1, T', C) to (1, steps, C), linearly; at its own length unchanged to the last bit."""
    dtype = torch.promote_types(table.dtype, torch.float32)  # no half-precision kernel on every device
    return F.interpolate(table.to(dtype).transpose(1, 2), size=steps, mode="linear").transpose(1, 2).to(table.dtype)
