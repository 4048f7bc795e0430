"""Which attention of a model can be castled, and why the rest cannot."""

import re
from collections.abc import Sequence
from numbers import Integral

from timm.layers import Attention
from torch import nn

# What hints, in a class or parameter of an attention that is not timm's, why it has no linear form.
_REASONS = {
    "rel_pos": "a relative position bias on its weights",
    "relpos": "a relative position bias on its weights",
    "relative_position": "a relative position bias on its weights",
    "cpb_mlp": "a relative position bias on its weights",
    "meta_mlp": "a relative position bias on its weights",
    "attention_bias": "a position bias on its weights",
    "rope": "rotary positions",
    "eva": "rotary positions, or a place for them",
    "cross": "queries of other tokens than its keys",
    "diff": "a difference of two softmaxes",
    "window": "a form of its own, in windows",
    "outlook": "weights that are not products of queries and keys",
    "multiscale": "pooled keys, so that queries and values differ in number",
}

_BLOCK = re.compile(r"(^|\.)blocks\.0$")


def castlable_attention(model: nn.Module) -> dict[str, Attention]:
    """Attention that can be swapped, under the name of its block: timm's ``Attention``, and no class of like name."""
    found = {name: module for name, module in model.named_modules() if type(module) is Attention}
    return {name.removesuffix(".attn"): module for name, module in found.items() if name.endswith(".attn")}


def choose_blocks(model: nn.Module, blocks: str | Sequence[str | int]) -> list[str]:
    """Names of the blocks that ``blocks`` stands for, in the order of the model."""
    possible = list(castlable_attention(model))
    if not possible:
        raise ValueError(f"{called(model)} has no attention that can be castled: {_refusals(model)}")
    if isinstance(blocks, str):
        if blocks != "all":
            raise ValueError(f"blocks is {blocks!r}; it must be 'all', or a list of names or numbers of blocks")
        return possible
    if not isinstance(blocks, Sequence):
        raise ValueError(f"blocks is {blocks!r}; it must be 'all', or a list of names or numbers of blocks")
    if not blocks:
        raise ValueError("blocks is empty; it must name at least one block to castle")
    return sorted({_block_name(model, possible, block) for block in blocks}, key=possible.index)


def _block_name(model: nn.Module, possible: list[str], block: str | int) -> str:
    if isinstance(block, Integral) and not isinstance(block, bool) and -len(possible) <= block < len(possible):
        return possible[int(block)]
    if block in possible:
        return block
    refused = {name.removesuffix(".attn"): reason for name, reason in _refused_attention(model).items()}
    if isinstance(block, str) and block in refused:
        raise ValueError(f"blocks names {block!r}, whose attention cannot be castled: {refused[block]}")
    raise ValueError(
        f"blocks names {block!r}; castled can be {possible[0]!r} to {possible[-1]!r}, or 0 to {len(possible) - 1}"
    )


def _refused_attention(model: nn.Module) -> dict[str, str]:
    """Why each attention of another class than timm's has no linear form."""
    found = {
        name: module
        for name, module in model.named_modules()
        if "att" in type(module).__name__.lower()
        and name.rpartition(".")[2] == "attn"
        and type(module) is not Attention
    }
    return {name: f"{type(module).__name__} has {_reason(module)}" for name, module in found.items()}


def _reason(attention: nn.Module) -> str:
    hints = [type(attention).__name__, *dict(attention.named_parameters()), *dict(attention.named_children())]
    text = " ".join(hints).lower()
    return next((reason for hint, reason in _REASONS.items() if hint in text), "a form of its own")


def _refusals(model: nn.Module) -> str:
    refused = _refused_attention(model)
    if not refused:
        block = next(
            (f"{name} is a {type(m).__name__}; " for name, m in model.named_modules() if _BLOCK.search(name)), ""
        )
        return f"{block}no module is timm.layers.Attention"
    name = next(iter(refused))
    return f"{name} is no timm.layers.Attention, {refused[name]}"


def called(model: nn.Module) -> str:
    """What a message calls the model."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return cfg.get("architecture") or type(model).__name__
