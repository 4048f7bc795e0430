"""As-ViT: vision transformers designed and scaled without training.

Chen, Huang, Du, Song, Wang, Zhou: "Auto-scaling Vision Transformers without Training", ICLR 2022 (arXiv 2202.11921).
Four stages of windowed attention without shifts or relative positions; the windows are a fixed fraction of the grid.
"""

import math
from typing import Any

import torch
from timm.layers import ClNormMlpClassifierHead, calculate_drop_path_rates, get_device_dtype, to_2tuple, trunc_normal_
from timm.models import generate_default_cfgs, named_apply, register_model
from timm.models.vision_transformer import get_init_weights_vit
from torch import nn

from .._timm_private import feature_take_indices, update_model_input_size
from ..checks import check_choice, check_whole
from ..layers import OverlapPatchEmbed, PatchMerging, add_pos_embed, resample_pos_embed
from ._build import build_model, check_head, check_img_size, imagenet_cfg
from ._multi_stage import WEIGHT_INITS, MultiStageModel
from .as_vit_blocks import AsViTBlock, AsViTStage
from .as_vit_genotype import AsViTGenotype
from .as_vit_weights import checkpoint_filter_fn

SEED_GENOTYPE = "8,2,3|4,1,2|4,1,4|4,1,6|32"  # topology found by the paper's search; the larger nets grow from it
WINDOW_POLICIES = ("split", "size")
GLOBAL_POOLS = ("avg", "max", "avgmax", "")  # timm's names


class AsViT(MultiStageModel):
    """As-ViT backbone and classifier.

    Any image size works: the image is padded once, right and bottom, to the multiple that the stem, the merges and
    the windows need; features, pooling and the position embedding cover the tokens that the image touches. At sizes
    that need no padding the net is exactly the authors'.

    ``forward_features`` gives NHWC. The head is ``Linear, Tanh, Linear`` on the pooled feature: ``num_classes=0`` and
    ``forward_head(..., pre_logits=True)`` both give the (B, C) output of the Tanh. With ``num_classes=0`` and
    ``global_pool=""`` the whole head is gone and the output is that of ``forward_features``.

    Args:
        genotype: The net, in the authors' notation (see :class:`AsViTGenotype`).
        img_size: Nominal image size in pixels: the grid that the position embedding is stored for.
        in_chans: Image channels.
        num_classes: Classes; 0 removes the classifier.
        global_pool: "avg", "max", "avgmax", or "" for no pooling.
        pos_embed: Learned absolute position embedding; the published parameter counts have it.
        stem_stride: Pixels per token of the first stage.
        window_policy: "split": each axis of the grid is cut into the genotype's number of windows, as in
            classification. "size": the image is tiled by regions of about ``pretrain_img_size``, and each is cut so;
            windows keep the size that they had in pretraining while the image grows, as detection needs it.
        pretrain_img_size: Image size in pixels whose windows the "size" policy keeps. Regions are stretched a little
            where this lets them tile ``img_size`` (224 to 256 for an image of 1024).
        drop_rate: Dropout before the classifier.
        pos_drop_rate: Dropout after the position embedding.
        proj_drop_rate: Dropout after attention's projection and inside the MLPs.
        attn_drop_rate: Dropout on attention weights.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0 over all blocks.
        weight_init: "" for the authors' initialisation, "skip" for none, where weights are loaded next.
        device: Where parameters are made.
        dtype: Type of the parameters.

    Raises:
        ValueError: for a genotype, size or policy outside what is allowed.
    """

    stem_pattern = r"^patch_embed|^pos_embed"

    def __init__(
        self,
        genotype: str | AsViTGenotype = SEED_GENOTYPE,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        pos_embed: bool = True,
        stem_stride: int = 4,
        window_policy: str = "split",
        pretrain_img_size: int | tuple[int, int] = 224,
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
        check_choice("window_policy", window_policy, WINDOW_POLICIES)
        check_choice("weight_init", weight_init, WEIGHT_INITS)
        check_head(num_classes, global_pool, GLOBAL_POOLS, in_chans, drop_path_rate)
        check_whole("stem_stride", stem_stride)
        gene = AsViTGenotype.parse(genotype)
        self.genotype = str(gene)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.drop_rate = drop_rate
        self.num_features = self.head_hidden_size = gene.dims[-1]
        self.embed_dim = gene.embed_dim
        self.num_prefix_tokens = 0
        self.output_fmt = "NHWC"
        self.dynamic_img_size = True
        self.splits = gene.splits
        self.stem_stride = stem_stride
        self.window_policy = window_policy
        self.pretrain_img_size = check_img_size("pretrain_img_size", pretrain_img_size)
        self.img_size = check_img_size("img_size", img_size)
        self._check_splits(self.img_size)

        self.patch_embed = OverlapPatchEmbed(in_chans, gene.dims[0], gene.kernel_sizes[0], stem_stride, **dd)
        self.pos_embed = nn.Parameter(torch.empty(1, *self.grid_size, gene.dims[0], **dd)) if pos_embed else None
        self.pos_drop = nn.Dropout(pos_drop_rate)
        drop_path = calculate_drop_path_rates(drop_path_rate, list(gene.depths), stagewise=True)
        stages = []
        for i, (dim, heads, depth) in enumerate(zip(gene.dims, gene.heads, gene.depths)):
            merge = PatchMerging(gene.dims[i - 1], dim, gene.kernel_sizes[i], **dd) if i else nn.Identity()
            blocks = [
                AsViTBlock(dim, heads, gene.mlp_ratios[i], proj_drop_rate, attn_drop_rate, drop_path[i][j], **dd)
                for j in range(depth)
            ]
            stages.append(AsViTStage(merge, blocks))
        self.stages = nn.Sequential(*stages)
        self.feature_info = [
            dict(num_chs=dim, reduction=stem_stride * 2**i, module=f"stages.{i}") for i, dim in enumerate(gene.dims)
        ]
        self.norm = nn.LayerNorm(self.num_features, eps=1e-5, **dd)
        self.head = self._make_head(**dd)
        self.set_tokenization()

        self.weight_init_mode = "reset" if weight_init == "skip" else weight_init
        if weight_init != "skip":
            self.init_weights(needs_reset=False)

    # Sizes, windows, tokenization -------------------------------------------------------------------------------

    @property
    @torch.jit.unused
    def grid_size(self) -> tuple[int, int]:
        """Tokens (height, width) of the first stage at the nominal image size."""
        return tuple(math.ceil(side / self.stem_stride) for side in self.img_size)

    @torch.jit.ignore
    def set_tokenization(self, stride: int | None = None, dilation: int = 1) -> None:
        """Sample the image more coarsely (As-ViT's progressive tokenization), or finely again.

        Weights stay as they are; windows, padding and the resampling of the position embedding follow.

        Args:
            stride: Pixels per token of the first stage; None for the model's own.
            dilation: Pixels between two samples of the stem's kernel.
        """
        stride = self.stem_stride if stride is None else stride
        check_whole("stride", stride)
        check_whole("dilation", dilation)
        # In pixels: stage i has a token every stride * 2^i, and each axis of its grid must split evenly.
        unit = math.lcm(*(stride * 2**i * split for i, split in enumerate(self.splits)))
        region = (unit, unit) if self.window_policy == "split" else self._region(unit)
        self.patch_embed.set_tokenization(stride, dilation, region)
        for i, (stage, split) in enumerate(zip(self.stages, self.splits)):
            for block in stage.blocks:
                if self.window_policy == "split":
                    block.num_windows, block.window_size = (split, split), (-1, -1)
                else:
                    block.num_windows = (-1, -1)
                    block.window_size = tuple(side // (stride * 2**i * split) for side in region)

    def _region(self, unit: int) -> tuple[int, int]:
        """Pixels (height, width) of the regions that tile the image under the "size" policy."""
        counts = [max(1, side // kept) for side, kept in zip(self.img_size, self.pretrain_img_size)]
        return tuple(math.ceil(side / (n * unit)) * unit for side, n in zip(self.img_size, counts))

    def _check_splits(self, img_size: tuple[int, int]) -> None:
        for i, split in enumerate(self.splits):
            grid = min(img_size) // (self.stem_stride * 2**i)
            if split > max(grid, 1):
                raise ValueError(
                    f"genotype field S{i + 1} (window split) is {split}; at img_size {img_size} stage {i + 1} has "
                    f"{grid} tokens per side, so it must be between 1 and {max(grid, 1)}"
                )

    @torch.jit.ignore
    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | None = None,
        window_policy: str | None = None,
    ) -> None:
        """Change the nominal image size; the position embedding is resampled to its grid, windows are recomputed.

        Args:
            img_size: New nominal size in pixels; None keeps it.
            patch_size: Not resizable; only the present stem stride is accepted.
            window_policy: New window policy; None keeps it.
        """
        if patch_size is not None and to_2tuple(patch_size) != to_2tuple(self.stem_stride):
            raise ValueError(f"patch_size is {patch_size}; As-ViT's stem keeps its stride of {self.stem_stride} pixels")
        check_choice("window_policy", window_policy or self.window_policy, WINDOW_POLICIES)
        if img_size is not None:
            img_size = check_img_size("img_size", img_size)
            self._check_splits(img_size)
            self.img_size = img_size
        self.window_policy = window_policy or self.window_policy
        if self.pos_embed is not None and tuple(self.pos_embed.shape[1:3]) != self.grid_size:
            with torch.no_grad():
                table = resample_pos_embed(self.pos_embed, *self.grid_size)
            self.pos_embed = nn.Parameter(table, requires_grad=self.pos_embed.requires_grad)
        self.set_tokenization(self.patch_embed.stride, self.patch_embed.proj.dilation[0])  # a schedule's phase stays
        update_model_input_size(self, self.img_size, window_policy=window_policy)

    # Weights ------------------------------------------------------------------------------------------------------

    @torch.jit.ignore
    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise as the authors: linear weights and positions truncated normal (0.02), the stem PyTorch's default.

        Args:
            mode: timm's name of an initialisation; "" for the one given at construction.
            needs_reset: Also reset modules that initialised themselves when they were built.
        """
        if self.pos_embed is not None:
            trunc_normal_(self.pos_embed, std=0.02)
        named_apply(get_init_weights_vit(mode or self.weight_init_mode, needs_reset=needs_reset), self)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that should not decay."""
        return {"pos_embed"}

    # Head ---------------------------------------------------------------------------------------------------------

    def _make_head(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> nn.Module:
        bare = self.num_classes == 0 and not self.global_pool
        return ClNormMlpClassifierHead(
            self.num_features,
            self.num_classes,
            hidden_size=None if bare else self.num_features,
            pool_type=self.global_pool,
            drop_rate=self.drop_rate,
            norm_layer=nn.Identity,  # As-ViT normalises tokens, then pools
            act_layer="tanh",
            device=device,
            dtype=dtype,
        )

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head.fc

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; the layer before it (Linear, Tanh) is kept unless everything goes.

        Args:
            num_classes: Classes of the new one; 0 removes it.
            global_pool: New pooling; None keeps the present one, "" with no classes removes the whole head.

        Raises:
            ValueError: for a number of classes or a pooling that there is not.
        """
        global_pool = self.global_pool if global_pool is None else global_pool
        check_head(num_classes, global_pool, GLOBAL_POOLS)
        self.num_classes = num_classes
        self.global_pool = global_pool
        bare = num_classes == 0 and not self.global_pool
        if bare == isinstance(self.head.pre_logits, nn.Identity):
            self.head.reset(num_classes, pool_type=global_pool)
        else:
            self.head = self._make_head(**get_device_dtype(self)).train(self.training)

    # Forward ------------------------------------------------------------------------------------------------------

    def _tokenize(self, x: torch.Tensor) -> torch.Tensor:
        """Images to the tokens of the first stage, positions added where the image is."""
        stride = self.patch_embed.stride
        height, width = (x.shape[2] + stride - 1) // stride, (x.shape[3] + stride - 1) // stride
        x = self.patch_embed(x)
        if self.pos_embed is not None:
            x = add_pos_embed(x, self.pos_embed, height, width)
        return self.pos_drop(x)

    def _crop(self, x: torch.Tensor, stage: int, height: int, width: int) -> torch.Tensor:
        """Drop the tokens that lie wholly in the padding of an image of height x width pixels."""
        stride = self.patch_embed.stride << stage  # TorchScript makes 2**stage a float
        return x[:, : (height + stride - 1) // stride, : (width + stride - 1) // stride]

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to normed tokens of the last stage, (B, H / 32, W / 32, num_features), rounded up."""
        height, width = x.shape[2], x.shape[3]
        x = self.stages(self._tokenize(x))
        return self.norm(self._crop(x, len(self.stages) - 1, height, width))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Tokens to logits (B, num_classes), or to the output of the Tanh before the classifier."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """The feature pyramid: each stage's output before the next merge, at strides 4, 8, 16 and 32.

        Args:
            x: Images, (B, C, H, W).
            indices: Stages to return: the last n, a list, or None for all.
            norm: Apply the final norm to the last stage's feature.
            stop_early: Do not run stages behind the last one asked for.
            output_fmt: "NCHW".
            intermediates_only: Leave the final feature out.

        Returns:
            The features, (B, C_i, ceil(H / stride_i), ceil(W / stride_i)), or (``forward_features(x)``, features).
        """
        if not torch.jit.is_scripting():
            check_choice("output_fmt", output_fmt, ("NCHW",))
        height, width = x.shape[2], x.shape[3]
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        x = self._tokenize(x)
        if torch.jit.is_scripting() or not stop_early:  # TorchScript cannot slice a Sequential
            stages = self.stages
        else:
            stages = self.stages[: max_index + 1]
        intermediates = []
        last = 0
        for i, stage in enumerate(stages):
            x = stage(x)
            last = i
            if i in take_indices:
                feature = self._crop(x, i, height, width)
                if norm and i == len(self.splits) - 1:
                    feature = self.norm(feature)
                intermediates.append(feature.permute(0, 3, 1, 2).contiguous())
        if intermediates_only:
            return intermediates
        x = self._crop(x, last, height, width)
        if last == len(self.splits) - 1:
            x = self.norm(x)
        return x, intermediates


_CFG = imagenet_cfg(
    pool_size=(7, 7),
    first_conv="patch_embed.proj",
    classifier="head.fc",
    license="apache-2.0",
    paper_ids="arXiv:2202.11921",
    paper_name="Auto-scaling Vision Transformers without Training",
    origin_url="https://github.com/VITA-Group/AsViT",
)

# No weights have been published for any of them.
default_cfgs = generate_default_cfgs(
    {name: dict(_CFG) for name in ("as_vit", "as_vit_small", "as_vit_base", "as_vit_large")}
)


def _create_as_vit(variant: str, pretrained: bool = False, **kwargs: Any) -> AsViT:
    return build_model(
        AsViT,
        variant,
        pretrained,
        features=(0, 1, 2, 3),
        pretrained_filter_fn=checkpoint_filter_fn,
        **kwargs,
    )


@register_model
def as_vit(pretrained: bool = False, **kwargs: Any) -> AsViT:
    """Any net of the As-ViT space: pass ``genotype=``. The default is the seed topology of the paper's search."""
    return _create_as_vit("as_vit", pretrained=pretrained, **kwargs)


@register_model
def as_vit_small(pretrained: bool = False, **kwargs: Any) -> AsViT:
    """As-ViT Small: 29,051,296 parameters, 5.13 GMACs at 224.

    The paper's genotype string is not public; this one is reconstructed from the published counts (29.0 M, 5.3 G).
    """
    model_args = dict(genotype="8,2,3,3|4,1,2,1|4,1,4,4|4,1,6,2|32,88")
    return _create_as_vit("as_vit_small", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def as_vit_base(pretrained: bool = False, **kwargs: Any) -> AsViT:
    """As-ViT Base: 52,622,428 parameters, 8.75 GMACs at 224.

    The paper's genotype string is not public; this one is reconstructed from the published counts (52.6 M, 8.9 G).
    """
    model_args = dict(genotype="8,2,3,3|4,1,2,1|4,1,4,5|4,1,6,2|32,116")
    return _create_as_vit("as_vit_base", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def as_vit_large(pretrained: bool = False, **kwargs: Any) -> AsViT:
    """As-ViT Large: 88,145,300 parameters, 22.36 GMACs at 224; the genotype is the authors' (repository README)."""
    model_args = dict(genotype="8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180")
    return _create_as_vit("as_vit_large", pretrained=pretrained, **dict(model_args, **kwargs))
