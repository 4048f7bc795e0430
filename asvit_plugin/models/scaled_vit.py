"""Plain vision transformers whose shape is all parameters: what scaling strategies move along.

At DeiT's shapes they are timm's ViT, weights included. The question is that of Li et al., "An Investigation on
Hardware-Aware Vision Transformer Scaling" (doi 10.1145/3611387): depth, heads, head width, MLP ratio, image and patch
size are free, heads and MLP ratios also block by block. No shape of theirs is claimed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Attention
from timm.models import VisionTransformer, checkpoint, checkpoint_seq, generate_default_cfgs, register_model
from timm.models.vision_transformer import Block
from timm.models.vision_transformer import checkpoint_filter_fn as vit_checkpoint_filter_fn
from torch import nn

from .._timm_private import feature_take_indices
from ..checks import check_choice, check_whole
from ._build import build_model, check_head, check_img_size, imagenet_cfg, require_full_cover

GLOBAL_POOLS = ("token", "avg", "max", "avgmax", "map", "prr", "")  # timm's names


class ScaledViT(VisionTransformer):
    """timm's ViT with heads and MLP ratio per layer, and a head width that is free of the embedding width.

    Takes images of any size (timm's ``dynamic_img_size`` and ``dynamic_img_pad`` are on unless told otherwise).

    Args:
        depth: Blocks.
        embed_dim: Channels of a token; None for ``num_heads * head_dim``.
        num_heads: Attention heads, one number or one per block.
        head_dim: Channels per head.
        mlp_ratio: Hidden width of the MLPs over ``embed_dim``, one number or one per block.
        img_size: Nominal image size in pixels, one number or (height, width).
        patch_size: Side of a patch in pixels.
        kwargs: Further arguments of timm's ``VisionTransformer``. Attention is timm's plain one: ``attn_layer`` is free
            to say so, and nothing else.

    Raises:
        ValueError: naming the argument that is out of range or has not one value per block.
    """

    def __init__(
        self,
        depth: int = 12,
        embed_dim: int | None = None,
        num_heads: int | Sequence[int] = 3,
        head_dim: int = 64,
        mlp_ratio: float | Sequence[float] = 4.0,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        **kwargs: Any,
    ) -> None:
        for field, value in (("depth", depth), ("head_dim", head_dim), ("patch_size", patch_size)):
            check_whole(field, value)
        _check_vit_arguments(**kwargs)
        heads = per_block("num_heads", num_heads, depth, int)
        ratios = per_block("mlp_ratio", mlp_ratio, depth, float)
        if embed_dim is None:
            if len(set(heads)) > 1:
                raise ValueError(f"num_heads is {num_heads!r}; where blocks differ in heads, embed_dim must be given")
            embed_dim = heads[0] * head_dim

        def make_block(depth: int, num_heads: int, mlp_ratio: float, **block_kwargs: Any) -> nn.Module:
            block = Block(num_heads=1, mlp_ratio=ratios[depth], depth=depth, **block_kwargs)
            block.attn = Attention(num_heads=heads[depth], attn_head_dim=head_dim, **_attention_kwargs(block_kwargs))
            return block

        super().__init__(
            img_size=check_img_size("img_size", img_size),
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=heads[0],
            mlp_ratio=ratios[0],
            block_fn=make_block,
            **{"dynamic_img_size": True, "dynamic_img_pad": True, **kwargs},
        )

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Change the nominal image size, or the patches; the position embedding and the kernel are resampled.

        Args:
            img_size: New nominal size in pixels; None keeps it.
            patch_size: New size of a patch in pixels; None keeps it.

        Raises:
            ValueError: for what is no size, and for an image without a whole patch.
        """
        size = self.patch_embed.img_size if img_size is None else check_img_size("img_size", img_size)
        patch = self.patch_embed.patch_size if patch_size is None else check_img_size("patch_size", patch_size)
        if self.pos_embed is not None and any(side < least for side, least in zip(size, patch)):
            raise ValueError(f"img_size is {size}; it must be at least patch_size, which is {patch}")
        super().set_input_size(img_size if img_size is None else size, patch_size if patch_size is None else patch)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier.

        Args:
            num_classes: Classes of the new one; 0 removes it.
            global_pool: New pooling; None keeps the present one. Pooling by attention cannot be added.

        Raises:
            ValueError: for a number of classes or a pooling that there is not.
        """
        pool = self.global_pool if global_pool is None else global_pool
        offered = [name for name in GLOBAL_POOLS if name == self.global_pool or name not in ("map", "prr")]
        check_head(num_classes, pool, tuple(name for name in offered if name != "token" or self.has_class_token))
        super().reset_classifier(num_classes, global_pool)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that should not decay; timm's list also has tokens that a model lacks."""
        return super().no_weight_decay() & {name for name, _ in self.named_parameters()}


class StridedViT(ScaledViT):
    """A scaled ViT whose blocks see every s-th row and column of the tokens only.

    Behind the position embedding the grid of tokens is sub-sampled; behind the blocks every token is copied back to the
    places that it stands for. So features keep the whole grid, and blocks cost about 1 / s^2.

    Args:
        token_stride: The s.
        kwargs: Arguments of :class:`ScaledViT`; ``patch_drop_rate`` is not among them, as a grid with holes cannot be
            sub-sampled.

    Raises:
        ValueError: as :class:`ScaledViT`, and for a stride that is no whole number of at least 1.
    """

    def __init__(self, token_stride: int = 2, **kwargs: Any) -> None:
        check_whole("token_stride", token_stride)
        if kwargs.get("patch_drop_rate"):
            raise ValueError(f"patch_drop_rate is {kwargs['patch_drop_rate']!r}; it must be 0 with a token_stride")
        super().__init__(**kwargs)
        self.token_stride = token_stride

    def _grid(self, x: torch.Tensor) -> tuple[int, int]:
        """Tokens (height, width) of images (B, C, H, W)."""
        return self.patch_embed.dynamic_feat_size((x.shape[2], x.shape[3]))

    def _sampled(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to what the blocks read."""
        grid = self._grid(x)
        tokens = self.norm_pre(self._pos_embed(self.patch_embed(x)))
        return sample_tokens(tokens, grid, self.token_stride, self.num_prefix_tokens)

    def forward_features(
        self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False
    ) -> torch.Tensor:
        """Images (B, C, H, W) to normed tokens of the whole grid, (B, T + H' W', C); masks are for sampled tokens."""
        grid = self._grid(x)
        x = self._sampled(x)
        if attn_mask is not None or is_causal:
            for block in self.blocks:
                x = block(x, attn_mask=attn_mask, is_causal=is_causal)
        elif self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return self.norm(spread_tokens(x, grid, self.token_stride, self.num_prefix_tokens))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: torch.Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """As timm's ViT, with tokens of the whole grid; masks are for sampled tokens."""
        check_choice("output_fmt", output_fmt, ("NCHW", "NLC"))
        taken, last = feature_take_indices(len(self.blocks), indices)
        grid, prefix = self._grid(x), self.num_prefix_tokens
        x = self._sampled(x)
        features, prefixes = [], []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            if attn_mask is not None or is_causal:
                x = block(x, attn_mask=attn_mask, is_causal=is_causal)
            else:
                x = checkpoint(block, x) if self.grad_checkpointing else block(x)
            if i in taken:
                whole = spread_tokens(x, grid, self.token_stride, prefix)
                whole = self.norm(whole) if norm else whole
                patches = whole[:, prefix:]
                features.append(patches.mT.unflatten(2, grid).contiguous() if output_fmt == "NCHW" else patches)
                prefixes.append(whole[:, :prefix])
        final = None if intermediates_only else self.norm(spread_tokens(x, grid, self.token_stride, prefix))
        if output_dict:
            found = {"image_intermediates": features}
            found |= {"image_intermediates_prefix": prefixes} if prefix and return_prefix_tokens else {}
            return found | ({} if final is None else {"image_features": final})
        if return_prefix_tokens and prefix:
            features = list(zip(features, prefixes))
        return features if final is None else (final, features)


def sample_tokens(x: torch.Tensor, grid: tuple[int, int], stride: int, num_prefix: int) -> torch.Tensor:
    """Prefix tokens, and every ``stride``-th row and column of the others: (B, T + H W, C) to (B, T + h w, C)."""
    if stride == 1:
        return x
    patches = x[:, num_prefix:].unflatten(1, (grid[0], grid[1]))[:, ::stride, ::stride].flatten(1, 2)
    return torch.cat([x[:, :num_prefix], patches], dim=1)


def spread_tokens(x: torch.Tensor, grid: tuple[int, int], stride: int, num_prefix: int) -> torch.Tensor:
    """The way back: every token to the places of the grid (H, W) that were left out behind it."""
    if stride == 1:
        return x
    rows, columns = (grid[0] + stride - 1) // stride, (grid[1] + stride - 1) // stride
    patches = x[:, num_prefix:].unflatten(1, (rows, columns))
    patches = patches.repeat_interleave(stride, 1).repeat_interleave(stride, 2)[:, : grid[0], : grid[1]]
    return torch.cat([x[:, :num_prefix], patches.flatten(1, 2)], dim=1)


def _attention_kwargs(block_kwargs: dict[str, Any]) -> dict[str, Any]:
    names = ("dim", "qkv_bias", "qk_norm", "proj_bias", "attn_drop", "proj_drop", "norm_layer", "device", "dtype")
    return {**{name: block_kwargs[name] for name in names}, "scale_norm": block_kwargs["scale_attn_norm"]}


def _check_vit_arguments(
    num_classes: int = 1000,
    in_chans: int = 3,
    global_pool: str = "token",
    drop_path_rate: float = 0.0,
    class_token: bool = True,
    attn_layer: str | type[nn.Module] = Attention,
    **others: Any,
) -> None:
    check_head(num_classes, global_pool, GLOBAL_POOLS, in_chans, drop_path_rate)
    if global_pool == "token" and not class_token:
        raise ValueError("global_pool is 'token' with class_token=False; it must be another one there")
    if attn_layer not in (Attention, "attn", ""):
        raise ValueError(f"attn_layer is {attn_layer!r}; it must be timm's Attention, the only one with a head_dim")


def per_block(field: str, value: Any, depth: int, kind: type[int] | type[float]) -> list[Any]:
    """One positive number for every block, from one for all or one for each."""
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * depth
    numbers = (int,) if kind is int else (int, float)
    if len(values) != depth:
        raise ValueError(f"{field} has {len(values)} values; depth is {depth}, so it must have one or {depth}")
    if not all(isinstance(each, numbers) and not isinstance(each, bool) and each > 0 for each in values):
        raise ValueError(f"{field} is {value!r}; it must be positive {'whole ' if kind is int else ''}numbers")
    return values


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, torch.Tensor]:
    """timm's own for ViTs (positions and patches are resampled), and a file must cover the model.

    Raises:
        ValueError: if it does not.
    """
    state_dict = vit_checkpoint_filter_fn(state_dict, model)
    require_full_cover(state_dict, model)
    return state_dict


default_cfgs = generate_default_cfgs(
    {"scaled_vit": imagenet_cfg(first_conv="patch_embed.proj", classifier="head", license="apache-2.0")}
)


@register_model
def scaled_vit(pretrained: bool = False, **kwargs: Any) -> ScaledViT:
    """A plain ViT of any shape: ``depth, embed_dim, num_heads, head_dim, mlp_ratio, img_size, patch_size``.

    The default is DeiT-Tiny's shape: 5,717,416 parameters, 1.25 GMACs at 224. With ``token_stride=s`` the blocks see
    every s-th row and column of the tokens (:class:`StridedViT`).
    """
    if kwargs.get("token_stride") in (None, 1):
        kwargs.pop("token_stride", None)
    return build_model(
        StridedViT if "token_stride" in kwargs else ScaledViT,
        "scaled_vit",
        pretrained,
        features=3,
        pretrained_filter_fn=checkpoint_filter_fn,
        **kwargs,
    )
