"""ViT-ResNAS: multi-stage vision transformers with residual spatial reduction, found by weight-sharing search.

Liao, Karaman, Sze: "Searching for Efficient Multi-Stage Vision Transformers", 2021 (arXiv 2109.00642).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import calculate_drop_path_rates, get_device_dtype, to_2tuple, trunc_normal_
from timm.models import generate_default_cfgs, named_apply, register_model
from timm.models.vision_transformer import get_init_weights_vit
from torch import nn

from .._timm_private import update_model_input_size
from ..checks import check_choice
from ..layers import add_pos_embed, resample_pos_embed
from ._build import build_model, check_img_size, imagenet_cfg
from ._multi_stage import WEIGHT_INITS
from ._token_pyramid import TokenPyramid, check_token_head
from .vit_resnas_blocks import ConvStem, FirstStageEntry, LinearStem, ResidualSpatialReduction, ResNASBlock, ResNASStage
from .vit_resnas_genotype import PATCH_SIZE, NetworkDef
from .vit_resnas_weights import checkpoint_filter_fn, read_network_def

# Published nets: channels, head_dim and blocks (heads / MLP width; in brackets: removed by the search) of each stage.
NETWORKS = {
    "vit_resnas_tiny": NetworkDef.from_table(
        (176, 352, 704),
        (32, 48, 64),
        (
            "3/704 3/576 3/640 4/576 4/704",
            "10/1408 8/1408 8/1280 8/1408 10/1280 10/1024",
            "10/2560 10/1792 10/2816 8/2816 8/2560",
        ),
    ),
    "vit_resnas_small": NetworkDef.from_table(
        (220, 440, 880),
        (32, 48, 64),
        (
            "5/880 5/880 7/800 5/720 5/720 5/720",
            "10/1760 10/1440 10/1920 10/1600 12/1600 12/1440",
            "16/3200 12/3200 16/2880 12/2240 14/2560",
        ),
    ),
    "vit_resnas_medium": NetworkDef.from_table(
        (240, 640, 880),
        (32, 48, 64),
        (
            "7/960 6/960 7/800 8/960 7/880 8/880 6/800",
            "10/1120 14/1760 14/1920 16/1760 14/1440 16/1760 16/1920",
            "16/3200 10/3840 16/3840 (12/3840) 12/3200 16/3520 14/3520",
        ),
    ),
    "vit_res_tiny": NetworkDef.from_table(
        (192, 384, 768),
        (64, 64, 64),
        (" ".join(["3/768"] * 4), " ".join(["6/1536"] * 4), " ".join(["12/3072"] * 4)),
    ),
}


class ViTResNAS(TokenPyramid):
    """ViT-ResNAS backbone and classifier.

    Any image size works: the image is padded once, right and bottom, to a multiple of 56 px (for three stages);
    features and positions cover the tokens that the image touches. ``forward_features`` gives NLC, prefix tokens first.

    Args:
        network_def: The net, in the authors' notation (see :class:`NetworkDef`).
        img_size: Nominal image size in pixels: the grids that the position embeddings are stored for.
        in_chans: Image channels.
        num_classes: Classes; 0 removes the classifier. It wins over the number in ``network_def``.
        global_pool: "token" (class token), "avg", "max", "avgmax", or "" for no pooling.
        distilled: A distillation token with a head of its own. The logits are the mean of both heads; in training mode,
            with ``model.distilled_training = True``, both are returned as (class logits, distillation logits).
        patch_head: A second head that classifies every patch in training mode, which then returns (logits,
            patch logits (B, N, num_classes)). It takes no part in inference.
        drop_rate: Dropout before the classifier.
        pos_drop_rate: Dropout after the first position embedding.
        proj_drop_rate: Dropout after attention's projection and inside the MLPs.
        attn_drop_rate: Dropout on attention weights.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0 over all blocks, also removed ones.
        weight_init: "" for the authors' initialisation, "skip" for none, where weights are loaded next.
        device: Where parameters are made.
        dtype: Type of the parameters.

    Raises:
        ValueError: for a definition, size or combination of heads that is not allowed.
    """

    stem_pattern = r"^patch_embed|^cls_token|^dist_token|^prefix_pos_embed|^pos_embed"

    def __init__(
        self,
        network_def: str | NetworkDef = str(NETWORKS["vit_resnas_tiny"]),
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        distilled: bool = False,
        patch_head: bool = False,
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
        if distilled and patch_head:
            raise ValueError("patch_head is True with distilled=True; a net has one or the other")
        check_token_head(num_classes, global_pool, distilled, in_chans, drop_path_rate)
        check_choice("weight_init", weight_init, WEIGHT_INITS)
        net = NetworkDef.parse(network_def)
        self.network_def = str(net)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.embed_dim = net.dims[0]
        self.num_features = self.head_hidden_size = net.dims[-1]
        self.num_prefix_tokens = 2 if distilled else 1
        self.distilled_training = False
        self.dynamic_img_size = True
        self.img_size = check_img_size("img_size", img_size)
        self.num_stages = len(net.dims)
        self.strides = tuple(PATCH_SIZE * 2**i for i in range(len(net.dims)))
        self.feature_info = [
            dict(num_chs=dim, reduction=stride, module=f"stages.{i}")
            for i, (dim, stride) in enumerate(zip(net.dims, self.strides))
        ]

        if net.stem_width:
            self.patch_embed = ConvStem(in_chans, net.stem_width, net.dims[0], **dd)
        else:
            self.patch_embed = LinearStem(in_chans, net.dims[0], **dd)
            self._traits = {"first_conv": "patch_embed.proj"}  # pretrained_cfg names the convolutional stem's
        self.cls_token = nn.Parameter(torch.empty(1, 1, net.dims[0], **dd))
        self.dist_token = nn.Parameter(torch.empty(1, 1, net.dims[0], **dd)) if distilled else None
        self.prefix_pos_embed = nn.Parameter(torch.empty(1, self.num_prefix_tokens, net.dims[0], **dd))
        self.pos_embed = nn.Parameter(torch.empty(1, *self._grid_size(0), net.dims[0], **dd))
        self.pos_drop = nn.Dropout(pos_drop_rate)

        rates = calculate_drop_path_rates(drop_path_rate, [len(stage) for stage in net.stages], stagewise=True)
        self.stages = nn.ModuleList()
        for i, (dim, stage) in enumerate(zip(net.dims, net.stages)):
            if i:
                entry = ResidualSpatialReduction(net.dims[i - 1], dim, self.strides[i], self._grid_size(i), **dd)
            else:
                entry = FirstStageEntry()
            blocks = [
                ResNASBlock(dim, block, proj_drop_rate, attn_drop_rate, rate, **dd)
                for block, rate in zip(stage, rates[i])
                if block.exists
            ]
            self.stages.append(ResNASStage(entry, blocks))
        self.norm = nn.LayerNorm(self.num_features, eps=1e-6, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self.make_head(**dd)
        self.head_dist = self.make_head(**dd) if distilled else None
        self.patch_head = self.make_head(**dd) if patch_head else None

        self.weight_init_mode = "reset" if weight_init == "skip" else weight_init
        if weight_init != "skip":
            self.init_weights(needs_reset=False)

    def _grid_size(self, stage: int) -> tuple[int, int]:
        """Tokens (height, width) of a stage that an image of nominal size touches."""
        return tuple(math.ceil(side / self.strides[stage]) for side in self.img_size)

    # Sizes and weights ----------------------------------------------------------------------------------------------

    @torch.jit.ignore
    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Change the nominal image size; all position embeddings are resampled to its grids.

        Args:
            img_size: New nominal size in pixels; None keeps it.
            patch_size: Not resizable; only 14 is accepted.
        """
        if patch_size is not None and to_2tuple(patch_size) != to_2tuple(PATCH_SIZE):
            raise ValueError(f"patch_size is {patch_size}; ViT-ResNAS keeps its patches of {PATCH_SIZE} pixels")
        if img_size is not None:
            self.img_size = check_img_size("img_size", img_size)
        for i, owner in enumerate([self, *(stage.downsample for stage in self.stages[1:])]):
            table = owner.pos_embed
            if tuple(table.shape[1:3]) != self._grid_size(i):
                with torch.no_grad():
                    resampled = resample_pos_embed(table, *self._grid_size(i))
                owner.pos_embed = nn.Parameter(resampled, requires_grad=table.requires_grad)
        update_model_input_size(self, self.img_size)

    @torch.jit.ignore
    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise as the authors: linear weights, tokens and positions truncated normal (0.02), the rest by default.

        Args:
            mode: timm's name of an initialisation; "" for the one given at construction.
            needs_reset: Also reset modules that initialised themselves when they were built.
        """
        for parameter in (self.cls_token, self.dist_token, self.prefix_pos_embed, self.pos_embed):
            if parameter is not None:
                trunc_normal_(parameter, std=0.02)
        named_apply(get_init_weights_vit(mode or self.weight_init_mode, needs_reset=needs_reset), self)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that should not decay; the authors let positions decay."""
        return {"cls_token"} if self.dist_token is None else {"cls_token", "dist_token"}

    # Heads ----------------------------------------------------------------------------------------------------------

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier (all of them, where a net has several).

        Args:
            num_classes: Classes of the new one; 0 removes it, and the patch head with it.
            global_pool: New pooling; None keeps the present one.
        """
        super().reset_classifier(num_classes, global_pool)
        if self.patch_head is not None:
            self.patch_head = self.make_head(**get_device_dtype(self)).train(self.training) if num_classes else None

    # Forward --------------------------------------------------------------------------------------------------------

    def _tokenize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images to prefix tokens (B, T, C) and tokens (B, H, W, C) with their positions."""
        height, width = x.shape[2], x.shape[3]
        patch, multiple = self.strides[0], self.strides[-1]
        x = F.pad(x, (0, (multiple - width % multiple) % multiple, 0, (multiple - height % multiple) % multiple))
        x = self.patch_embed(x).permute(0, 2, 3, 1)
        x = add_pos_embed(x, self.pos_embed, (height + patch - 1) // patch, (width + patch - 1) // patch)
        prefix = self.cls_token
        if self.dist_token is not None:
            prefix = torch.cat([prefix, self.dist_token], dim=1)
        prefix = (prefix + self.prefix_pos_embed).expand(x.shape[0], -1, -1)
        return self.pos_drop(prefix), self.pos_drop(x)

    def crop(self, x: torch.Tensor, height: int, width: int, stage: int) -> torch.Tensor:
        """Those of a stage's tokens (B, H_i, W_i, C_i) that an image of height x width pixels touches."""
        stride = self.strides[0] << stage
        return x[:, : (height + stride - 1) // stride, : (width + stride - 1) // stride]

    def run_stages(self, x: torch.Tensor, last: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Images (B, C, H, W) to prefix tokens (B, T, C_i) and tokens (B, H_i, W_i, C_i) of stages 0 to ``last``."""
        height, width = x.shape[2], x.shape[3]
        prefix, x = self._tokenize(x)
        outputs: list[tuple[torch.Tensor, torch.Tensor]] = []
        for i, stage in enumerate(self.stages):
            if i <= last:
                prefix, x = stage(prefix, x, height, width)
                outputs.append((prefix, x))
        return outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.forward_features(x)
        logits = self.forward_head(x)
        if self.patch_head is not None and self.training and not torch.jit.is_scripting():
            return logits, self.patch_head(x[:, self.num_prefix_tokens :])
        return logits


_CFG = imagenet_cfg(
    crop_pct=0.875,
    first_conv="patch_embed.conv1.conv",
    classifier="head",
    paper_ids="arXiv:2109.00642",
    paper_name="Searching for Efficient Multi-Stage Vision Transformers",
    origin_url="https://github.com/yilunliao/vit-search",
)

# The authors' weights (CC-BY-NC-4.0) are in a shared folder without stable addresses; load the files by path.
default_cfgs = generate_default_cfgs({name: dict(_CFG) for name in ("vit_resnas", *NETWORKS)})


def _create_vit_resnas(variant: str, pretrained: bool = False, **kwargs: Any) -> ViTResNAS:
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    second = {"distilled": "head_dist", "patch_head": "patch_head"}
    heads = ["head", *(name for argument, name in second.items() if kwargs.get(argument))]
    if len(heads) > 1:
        overlay.setdefault("classifier", heads)
    return build_model(
        ViTResNAS,
        variant,
        pretrained,
        pretrained_cfg_overlay=overlay,
        features=(0, 1, 2),
        pretrained_filter_fn=checkpoint_filter_fn,
        **kwargs,
    )


@register_model
def vit_resnas(pretrained: bool = False, **kwargs: Any) -> ViTResNAS:
    """Any net in the authors' notation: pass ``network_def=``.

    Without it, the definition is read from the training checkpoint that
    ``pretrained_cfg_overlay=dict(file=...)`` names; with no file it is that of ``vit_resnas_tiny``.
    """
    source = (kwargs.get("pretrained_cfg_overlay") or {}).get("file")
    if pretrained and source and kwargs.get("network_def") is None:
        kwargs["network_def"] = read_network_def(source)
    return _create_vit_resnas("vit_resnas", pretrained=pretrained, **kwargs)


@register_model
def vit_resnas_tiny(pretrained: bool = False, **kwargs: Any) -> ViTResNAS:
    """ViT-ResNAS-Tiny: 40,793,552 parameters, 1.78 GMACs at 224."""
    return _create_network("vit_resnas_tiny", pretrained, **kwargs)


@register_model
def vit_resnas_small(pretrained: bool = False, **kwargs: Any) -> ViTResNAS:
    """ViT-ResNAS-Small: 63,724,108 parameters, 2.85 GMACs at 224."""
    return _create_network("vit_resnas_small", pretrained, **kwargs)


@register_model
def vit_resnas_medium(pretrained: bool = False, **kwargs: Any) -> ViTResNAS:
    """ViT-ResNAS-Medium: 96,442,672 parameters, 4.51 GMACs at 224."""
    return _create_network("vit_resnas_medium", pretrained, **kwargs)


@register_model
def vit_res_tiny(pretrained: bool = False, **kwargs: Any) -> ViTResNAS:
    """ViT-Res-Tiny, designed by hand: 42,012,736 parameters, 1.79 GMACs at 224; the search's MAC budget."""
    return _create_network("vit_res_tiny", pretrained, **kwargs)


def _create_network(name: str, pretrained: bool, **kwargs: Any) -> ViTResNAS:
    return _create_vit_resnas(name, pretrained=pretrained, **{"network_def": str(NETWORKS[name]), **kwargs})
