"""``castle()`` for any timm ViT, and the registered model that a castled one is saved as and rebuilt from.

You et al., "Castling-ViT", CVPR 2023 (arXiv 2211.10526); what is swapped is in ``layers/castling.py``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import generate_default_cfgs, get_model_input_config, register_model
from timm.utils import unwrap_model
from torch import nn

from .._timm_private import FeatureGetterNet, update_model_args
from ..checks import check_choice
from ..costs import ATTENTION_RUNTIMES, break_even_tokens, read_attention_timings, run_on_meta
from ..layers.castling import calibrate_gains, castled_attention, switch_attention, watching
from ..layers.castling_targets import castlable_attention, choose_blocks
from ..layers.linear_angular_attention import MODES
from ._build import check_img_size, imagenet_cfg
from ._castled_build import check_options, create_castled, swap_attention


def castle(
    model: nn.Module,
    blocks: str | Sequence[str | int] = "all",
    mode: str = "softmax",
    images: torch.Tensor | None = None,
    img_size: int | tuple[int, int] | None = None,
    runtime: str = "eager",
    table: str | None = None,
    **options: Any,
) -> nn.Module:
    """Turn a timm ViT into its castling form, in place and with its weights: softmax attention that can become linear.

    In mode "softmax" it computes exactly what it did before; :func:`switch_attention` or a schedule takes it from
    there to linear attention, and :func:`finish` ends the softmax branch. It is then timm's registered model
    ``castled(base=..., blocks=...)``, so that ``save_for_hf``, ``hf-hub:`` and ``local-dir:`` rebuild it in any state.

    Args:
        model: A model with timm's ``Attention``: vit, deit, deit3, clip, dinov2, siglip, pit, and this package's; also
            wrapped (DDP, EMA, compile, feature extractor). Hooks on the attention itself are not carried over.
        blocks: Which blocks: "all"; a list of their names ("blocks.3") or numbers; or "auto" for those that are faster
            in linear form: as measured on this machine where that has been done (``tools/measure_attention.py``), else
            from 8 * head_dim tokens up. It is resolved once, for ``img_size``, and the list is what is stored.
        mode: Starting state: "softmax", "masked" or "linear"; see :class:`LinearAngularAttention`.
        images: Images (B, C, H, W) on which the heads' output gains are set to the lengths of the softmax outputs.
        img_size: Image size in pixels that "auto" counts tokens for; None for the model's own.
        runtime: "eager" or "compile": whose measurements "auto" looks up, for the model's device and dtype.
        table: File of measurements; None for this machine's.
        options: ``dwconv_kernel_size``, ``half_term``, ``num_prefix_tokens``, ``output_gain`` (True unless told
            otherwise) and ``reference_length`` of :class:`LinearAngularAttention`. The convolution runs along the
            raster order: timm's blocks do not say the token grid that a 2-D one needs.

    Returns:
        The model.

    Raises:
        ValueError: if nothing can be castled, with the reason, and for options out of range.
    """
    options = check_options(options)
    check_choice("mode", mode, tuple(MODES))
    check_choice("runtime", runtime, ATTENTION_RUNTIMES)
    if images is not None and not options.get("output_gain", True):
        raise ValueError("images are given with output_gain=False; there are no gains to set on them")
    inner = unwrap_model(model)
    inner = inner.model if isinstance(inner, FeatureGetterNet) else inner
    if isinstance(blocks, str) and blocks == "auto":
        blocks = _blocks_that_pay(inner, img_size, runtime, table)
    before = castlable_attention(inner)
    names = swap_attention(inner, blocks, options)
    if images is not None:
        try:
            calibrate_gains(inner, images)
        except BaseException:
            for name in names:
                inner.get_submodule(name).attn = before[name]
            raise
    _record(inner, names, options)
    switch_attention(inner, *MODES[mode])
    return model


def _blocks_that_pay(
    model: nn.Module, img_size: int | tuple[int, int] | None, runtime: str, table: str | None
) -> list[str]:
    """Names of the blocks that have at least the tokens at which linear attention breaks even."""
    choose_blocks(model, "all")  # a model without any has a message of its own
    weight = next(model.parameters())
    timings = read_attention_timings(weight.device, runtime, table, str(weight.dtype)[6:])
    tokens = tokens_per_block(model, img_size)
    attention = castlable_attention(model)
    needed = {name: break_even_tokens(each.head_dim, timings, each.num_heads) for name, each in attention.items()}
    names = [name for name in tokens if tokens[name] >= needed[name]]
    if not names:
        most = max(tokens, key=tokens.__getitem__)
        raise ValueError(
            f"blocks='auto' castles nothing: {most} has {tokens[most]} tokens and linear attention pays from "
            f"{needed[most]:g} on; name blocks, or a larger img_size"
        )
    return names


def tokens_per_block(model: nn.Module, img_size: int | tuple[int, int] | None = None) -> dict[str, int]:
    """Tokens that attend to each other in every block that can be castled or is, for an image size in pixels."""
    tokens: dict[str, int] = {}
    channels, *size = get_model_input_config(model)["input_size"]
    if img_size is not None:
        size = check_img_size("img_size", img_size)
    attention = {**castlable_attention(model), **castled_attention(model)}
    with watching(attention, lambda name, _, x: tokens.update({name: x.shape[1]})):
        try:
            run_on_meta(model, (channels, *size))
        except AssertionError as error:  # timm's ViTs of a fixed size
            raise ValueError(f"img_size is {img_size}; {' '.join(str(error).split())}") from error
    return tokens


def _record(model: nn.Module, blocks: list[str], options: dict[str, Any]) -> None:
    """Make the model one that timm saves and rebuilds as ``castled``."""
    cfg = getattr(model, "pretrained_cfg", None)
    if cfg:
        update_model_args(model, base=cfg["architecture"], blocks=blocks, **options)
        model.pretrained_cfg = model.default_cfg = {**cfg, "architecture": "castled"}


default_cfgs = generate_default_cfgs(
    {"castled": imagenet_cfg(first_conv="patch_embed.proj", classifier="head", license="apache-2.0")}
)


@register_model
def castled(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The castling form of any timm ViT: pass ``base`` (its name) and ``blocks`` (names, numbers, or "all").

    Linear unless ``blend`` and ``threshold`` say otherwise; with weights of the base for ``pretrained=True``.
    """
    return create_castled("castled", kwargs.pop("base", "scaled_vit"), pretrained, **kwargs)
