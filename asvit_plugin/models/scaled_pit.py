"""Pooling-based vision transformers whose shape is all parameters: the pyramid among the scaled ViTs.

At PiT's shapes they are timm's PiT, weights included (Heo et al., "Rethinking Spatial Dimensions of Vision
Transformers", 2021, arXiv 2103.16302). Depth, heads, widths and MLP ratios are free stage by stage, heads and MLP
ratios also block by block; no shape beyond PiT's own is claimed to be anyone's.
"""

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import calculate_drop_path_rates, to_2tuple, trunc_normal_
from timm.models import generate_default_cfgs, named_apply, register_model
from timm.models.pit import Pooling
from timm.models.vision_transformer import get_init_weights_vit
from torch import nn

from .._timm_private import update_model_input_size
from ..checks import check_choice
from ..layers import resample_pos_embed
from ._build import build_model, check_img_size, imagenet_cfg, require_full_cover
from ._multi_stage import WEIGHT_INITS
from ._token_pyramid import TokenPyramid, check_token_head
from .scaled_pit_blocks import PatchConv, PiTStage, make_block
from .scaled_pit_shape import check_patches, stage_shapes

DEPTH = (2, 6, 4)


class ScaledPiT(TokenPyramid):
    """PiT with every width free, and heads and MLP ratio per block. Takes images of any size.

    A side of s pixels gives ``ceil((s - patch_size) / stride) + 1`` rows or columns (one if it is shorter than a
    patch), and every pooling halves them, rounding up. ``forward_features`` gives NLC, prefix tokens first.

    Args:
        depth: Blocks of each stage.
        embed_dims: Channels of a token, one number or one per stage, each a multiple of the one before; None for
            ``num_heads * head_dim``.
        num_heads: Attention heads: one number, or for every stage one number or one per block.
        head_dim: Channels per head, one number or one per stage.
        mlp_ratio: Hidden width of the MLPs over the stage's channels: one number, or as ``num_heads``.
        img_size: Nominal image size in pixels, one number or (height, width): the grid that ``pos_embed`` is for.
        patch_size: Side of a patch in pixels.
        stride: Pixels from one patch to the next.
        in_chans: Image channels.
        num_classes: Classes; 0 removes the classifier.
        global_pool: "token" (class token), "avg", "max", "avgmax", or "" for no pooling.
        distilled: A distillation token with a head of its own. The logits are the mean of both heads; in training mode,
            with ``model.distilled_training = True``, both are returned as (class logits, distillation logits).
        drop_rate: Dropout before the classifier.
        pos_drop_rate: Dropout on the patch tokens after the position embedding.
        proj_drop_rate: Dropout after attention's projection and inside the MLPs.
        attn_drop_rate: Dropout on attention weights.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0 over all blocks.
        weight_init: "" for PiT's initialisation, "skip" for none, where weights are loaded next; or a name of timm's.
        device: Where parameters are made.
        dtype: Type of the parameters.

    Raises:
        ValueError: naming the argument that is out of range or has not one value per stage or block.
    """

    stem_pattern = r"^patch_embed|^cls_token|^pos_embed"
    stages_name = "transformers"
    downsample_name = "pool"

    def __init__(
        self,
        depth: Sequence[int] = DEPTH,
        embed_dims: int | Sequence[int] | None = None,
        num_heads: int | Sequence[int | Sequence[int]] = (2, 4, 8),
        head_dim: int | Sequence[int] = 32,
        mlp_ratio: float | Sequence[float | Sequence[float]] = 4.0,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int = 8,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        distilled: bool = False,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        weight_init: str = "",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        check_token_head(num_classes, global_pool, distilled, in_chans, drop_path_rate)
        check_choice("weight_init", weight_init, WEIGHT_INITS)
        shapes = stage_shapes(depth, embed_dims, num_heads, head_dim, mlp_ratio)
        check_patches(patch_size, stride)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.num_stages = len(shapes)
        self.num_features = self.head_hidden_size = self.embed_dim = shapes[-1].embed_dim
        self.num_prefix_tokens = 2 if distilled else 1
        self.distilled_training = False
        self.dynamic_img_size = True
        self.img_size = check_img_size("img_size", img_size)
        self.feature_info = [
            dict(num_chs=shape.embed_dim, reduction=stride * 2**i, module=f"transformers.{i}")
            for i, shape in enumerate(shapes)
        ]

        dim = shapes[0].embed_dim
        self.patch_embed = PatchConv(in_chans, dim, patch_size, stride, **dd)
        self.pos_embed = nn.Parameter(torch.empty(1, dim, *self.grid_size, **dd))
        self.cls_token = nn.Parameter(torch.empty(1, self.num_prefix_tokens, dim, **dd))
        self.pos_drop = nn.Dropout(pos_drop_rate)
        drops = dict(proj_drop=proj_drop_rate, attn_drop=attn_drop_rate)
        rates = calculate_drop_path_rates(drop_path_rate, list(depth), stagewise=True)
        self.transformers = nn.ModuleList()
        for i, shape in enumerate(shapes):
            pool = Pooling(shapes[i - 1].embed_dim, shape.embed_dim, stride=2, **dd) if i else None
            blocks = [make_block(shape, j, drop_path=rate, **drops, **dd) for j, rate in enumerate(rates[i])]
            self.transformers.append(PiTStage(pool, blocks))
        self.norm = nn.LayerNorm(self.num_features, eps=1e-6, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self.make_head(**dd)
        self.head_dist = self.make_head(**dd) if distilled else None

        self.weight_init_mode = "reset" if weight_init == "skip" else weight_init
        if weight_init != "skip":
            self.init_weights(needs_reset=False)

    # Sizes and weights ----------------------------------------------------------------------------------------------

    @property
    @torch.jit.unused
    def grid_size(self) -> tuple[int, int]:
        """Tokens (height, width) of the first stage at the nominal image size."""
        patch_size, stride = self.patch_embed.patch_size, self.patch_embed.stride
        return tuple(math.ceil(max(side - patch_size, 0) / stride) + 1 for side in self.img_size)

    @torch.jit.ignore
    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Change the nominal image size; the position embedding is resampled to its grid.

        Args:
            img_size: New nominal size in pixels; None keeps it.
            patch_size: Not resizable; only the present one is accepted.
        """
        present = self.patch_embed.patch_size
        if patch_size is not None and to_2tuple(patch_size) != to_2tuple(present):
            raise ValueError(f"patch_size is {patch_size}; this PiT keeps its patches of {present} pixels")
        if img_size is not None:
            self.img_size = check_img_size("img_size", img_size)
        if tuple(self.pos_embed.shape[2:]) != self.grid_size:
            with torch.no_grad():
                table = _resample(self.pos_embed, *self.grid_size)
            self.pos_embed = nn.Parameter(table, requires_grad=self.pos_embed.requires_grad)
        update_model_input_size(self, self.img_size)

    @torch.jit.ignore
    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise as PiT: class token and positions truncated normal (0.02), the rest as PyTorch does.

        Args:
            mode: timm's name of an initialisation; "" for the one given at construction.
            needs_reset: Also reset modules that initialised themselves when they were built.
        """
        trunc_normal_(self.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)
        mode = mode or self.weight_init_mode
        init = get_init_weights_vit(mode, needs_reset=needs_reset) if mode else partial(_reset, needs_reset=needs_reset)
        named_apply(init, self)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that should not decay."""
        return {"pos_embed", "cls_token"}

    # Forward --------------------------------------------------------------------------------------------------------

    def _tokenize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images to prefix tokens (B, T, C) and tokens (B, C, H, W) with their positions."""
        x = self.patch_embed(x)
        x = self.pos_drop(x + _resample(self.pos_embed, x.shape[2], x.shape[3]))
        return self.cls_token.expand(x.shape[0], -1, -1), x

    def run_stages(self, x: torch.Tensor, last: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Images (B, C, H, W) to prefix tokens (B, T, C_i) and tokens (B, H_i, W_i, C_i) of stages 0 to ``last``."""
        prefix, x = self._tokenize(x)
        outputs: list[tuple[torch.Tensor, torch.Tensor]] = []
        for i, stage in enumerate(self.transformers):
            if i <= last:
                prefix, x = stage(prefix, x)
                outputs.append((prefix, x.permute(0, 2, 3, 1)))
        return outputs


def _reset(module: nn.Module, name: str, needs_reset: bool) -> None:
    """PyTorch's initialisation of its layers, and their own of modules that have one."""
    if hasattr(module, "init_weights"):
        module.init_weights()
    elif needs_reset and hasattr(module, "reset_parameters"):
        module.reset_parameters()


def _resample(pos_embed: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A position table (1, C, H, W) brought to (1, C, height, width)."""
    return resample_pos_embed(pos_embed.permute(0, 2, 3, 1), height, width).permute(0, 3, 1, 2)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, torch.Tensor]:
    """Bring a checkpoint, ours, timm's or of PiT's authors, to the model's names and position grid.

    Raises:
        ValueError: if the file does not cover the model, or brings tensors that it has no place for.
    """
    state_dict = state_dict.get("model", state_dict)
    state_dict = state_dict.get("state_dict", state_dict)
    state_dict = {_own_name(name): value for name, value in state_dict.items()}
    require_full_cover(state_dict, model, resampled=("pos_embed",))
    table, channels = state_dict["pos_embed"], model.pos_embed.shape[1]
    if not isinstance(table, torch.Tensor) or table.ndim != 4 or table.shape[:2] != (1, channels):
        raise ValueError(f"the weight file's pos_embed must be a tensor of shape (1, {channels}, height, width)")
    state_dict["pos_embed"] = _resample(table, *model.pos_embed.shape[2:])
    return state_dict


def _own_name(name: str) -> str:
    """PiT's authors keep the poolings in a list between the stages."""
    return re.sub(r"^pools\.(\d+)\.", lambda match: f"transformers.{int(match[1]) + 1}.pool.", name)


default_cfgs = generate_default_cfgs(
    {"scaled_pit": imagenet_cfg(first_conv="patch_embed.conv", classifier="head", license="apache-2.0")}
)


@register_model
def scaled_pit(pretrained: bool = False, **kwargs: Any) -> ScaledPiT:
    """A PiT of any shape: ``depth, embed_dims, num_heads, head_dim, mlp_ratio, img_size, patch_size, stride``.

    The default is PiT-Ti's shape: 4,847,272 parameters, 0.70 GMACs at 224.
    """
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    if kwargs.get("distilled"):
        overlay.setdefault("classifier", ("head", "head_dist"))
    depth = kwargs.get("depth", DEPTH)
    stages = len(depth) if isinstance(depth, Sequence) else 1  # the model refuses what has no stages
    return build_model(
        ScaledPiT,
        "scaled_pit",
        pretrained,
        pretrained_cfg_overlay=overlay,
        features=tuple(range(stages)),
        pretrained_filter_fn=checkpoint_filter_fn,
        **kwargs,
    )
