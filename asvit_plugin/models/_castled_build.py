"""How castling models are built: the base by timm, its attention swapped, weights of the base or of a castled file."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

from ..layers.castling import castle_blocks, castled_attention, switch_attention
from ..layers.finishing import finish
from ._build import build_model, reading_weights, require_full_cover

_SOURCES = ("file", "hf_hub_id", "state_dict", "url")  # fields of a config that say where weights are
ATTENTION_OPTIONS = ("dwconv_kernel_size", "half_term", "num_prefix_tokens", "output_gain", "reference_length")


def create_castled(variant: str, base: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Build ``variant``, the castling form of the registered model ``base``, with timm's and our arguments.

    Weights of the base model come through timm's own loading of it. A file, or a folder or hub repository that holds
    a castled model, is loaded whole: it may lack all that castling adds, and nothing else.
    """
    if not isinstance(base, str) or not timm.is_model(base.partition(".")[0]):
        raise ValueError(f"base is {base!r}; it must be the name of a timm model")
    cfg = _pretrained_cfg(variant, base, kwargs.pop("pretrained_cfg", None))
    overlay = kwargs.pop("pretrained_cfg_overlay", None) or {}
    whole = cfg.get("source") in ("hf-hub", "local-dir") or overlay.get("file") or overlay.get("state_dict")
    # The base says its own name in its refusals; a castling model of a fixed base says the castling model's.
    base_cfg = {**cfg, "architecture": base.partition(".")[0]} if variant == "castled" else cfg
    source = dict(pretrained_cfg=base_cfg, pretrained_cfg_overlay=overlay, cache_dir=kwargs.get("cache_dir"))
    return build_model(
        partial(_build_castled, base=base, source=dict(source, pretrained=bool(pretrained and not whole))),
        variant,
        pretrained=bool(pretrained and whole),
        features=3,
        pretrained_cfg=cfg,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=checkpoint_filter_fn,
        **kwargs,
    )


def _pretrained_cfg(variant: str, base: str, given: Any) -> dict[str, Any]:
    """The config as ``variant``'s: the given one, else the one registered for it or for its base.

    timm's scripts hand ``castled`` its registered config, which says nothing of a base: it counts as none.
    """
    cfg = given.to_dict() if hasattr(given, "to_dict") else given
    if not isinstance(cfg, dict) or (variant == "castled" and not any(cfg.get(field) for field in _SOURCES)):
        name = base if variant == "castled" else variant
        name = f"{name}.{cfg}" if isinstance(cfg, str) else name
        try:
            cfg = get_pretrained_cfg(name).to_dict()
        except (AttributeError, RuntimeError) as error:
            raise ValueError(f"{name!r} names weights that timm does not know") from error
    return {**cfg, "architecture": variant}


def _build_castled(
    base: str,
    source: dict[str, Any],
    blocks: str | Sequence[str | int] = "all",
    blend: float = 1.0,
    threshold: float = 1.0,
    finished: bool = False,
    **kwargs: Any,
) -> nn.Module:
    if isinstance(blocks, str) and blocks == "auto":
        raise ValueError("blocks is 'auto'; it must be 'all' or a list here: castle(model, blocks='auto') makes one")
    options = check_options({name: kwargs.pop(name) for name in (*ATTENTION_OPTIONS, "dwconv") if name in kwargs})
    with reading_weights(base, **source) if source["pretrained"] else nullcontext():
        model = timm.create_model(base, **source, **kwargs)
    swap_attention(model, blocks, options)
    switch_attention(model, blend, threshold)
    return finish(model) if finished else model


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, torch.Tensor]:
    """The base family's own filter; then the file must cover the model, with or without all that castling adds.

    Raises:
        ValueError: if it does not.
    """
    new = {
        f"{block}.attn.{name}"
        for block, attention in castled_attention(model).items()
        for name in ("dconv.weight", "gain")
        if getattr(attention, name.split(".")[0]) is not None
    }
    state_dict = state_dict.get("model", state_dict)
    state_dict = state_dict.get("state_dict", state_dict)
    own = model.state_dict()
    fresh = {} if new & state_dict.keys() else {name: own[name] for name in new}
    base_filter = getattr(inspect.getmodule(type(model)), "checkpoint_filter_fn", None)
    state_dict = {**state_dict, **fresh}
    if base_filter is not None:
        state_dict = base_filter(state_dict, model)
    require_full_cover(state_dict, model)
    return state_dict


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """What a user may choose of the castled blocks, checked."""
    if options.pop("dwconv", "1d_head") != "1d_head":
        raise ValueError("dwconv must be '1d_head' in a castled model: timm's blocks do not say their token grid")
    unknown = set(options) - set(ATTENTION_OPTIONS)
    if unknown:
        raise ValueError(f"{sorted(unknown)[0]!r} is no option of castling; those are {', '.join(ATTENTION_OPTIONS)}")
    # Numbers of NumPy and tensors cannot be saved with the model.
    return {name: value.item() if hasattr(value, "item") else value for name, value in options.items()}


def swap_attention(model: nn.Module, blocks: str | Sequence[str | int], options: dict[str, Any]) -> list[str]:
    """Swap the attention of blocks for one in softmax mode.

    Unless the options say otherwise, prefix tokens stay out of the convolution and output gains are learnt.
    """
    options = {"num_prefix_tokens": count_prefix_tokens(model), "output_gain": True, **options}
    return castle_blocks(model, blocks, mode="softmax", **options)


def count_prefix_tokens(model: nn.Module) -> int:
    """Class, distillation and register tokens: timm's ViTs and PiTs say their number, CrossViT has one in a branch."""
    for name in ("num_prefix_tokens", "num_tokens"):
        if isinstance(getattr(model, name, None), int):
            return getattr(model, name)
    return int(any(name.startswith("cls_token") for name, _ in model.named_parameters()))


def castling_cfg(weights: str, img_size: int) -> dict[str, Any]:
    """timm's config of the public ``weights``, for a model that takes images of any size."""
    cfg = get_pretrained_cfg(weights).to_dict()
    own = dict(url="", custom_load=False, input_size=(3, img_size, img_size), fixed_input_size=False)
    if img_size > 224:
        own["crop_pct"] = 1.0
    return {field: value for field, value in {**cfg, **own}.items() if field not in ("architecture", "tag")}


def castling_entrypoint(module: str, name: str, base: str, **shape: Any) -> Callable[..., nn.Module]:
    """The function that timm registers for a castling model ``name`` of ``module``: ``base`` in this shape."""

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return create_castled(name, base, pretrained, **{**shape, **kwargs})

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__module__ = module
    entrypoint.__doc__ = f"The castling form of `{base}` with {', '.join(f'{k}={v}' for k, v in shape.items())}."
    return entrypoint
