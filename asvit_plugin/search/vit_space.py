"""The space of the narrower, shallower and coarser nets inside a plain ViT."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from timm.models import VisionTransformer

from ..checks import check_choice
from ..models import NetworkDef
from ..models.vit_resnas_genotype import BlockDef
from .space import Space

PARTS = ("embed_dim", "depth", "exists", "num_heads", "mlp_hidden", "token_stride")
DEFAULT_PARTS = ("embed_dim", "depth", "num_heads", "mlp_hidden")


def vit_definition(model: VisionTransformer) -> NetworkDef:
    """Widths and blocks of a plain ViT, as a definition of one stage."""
    blocks = tuple(
        BlockDef(block.attn.num_heads, block.attn.head_dim, block.mlp.fc1.out_features) for block in model.blocks
    )
    return NetworkDef((model.embed_dim,), (blocks,), 0, model.num_classes)


def vit_network(largest: NetworkDef, choice: Mapping[str, Any]) -> NetworkDef:
    """Definition of the net that a choice of :func:`vit_space` takes out of the largest."""
    blocks = tuple(
        replace(
            block,
            num_heads=choice.get(f"num_heads_{number}", block.num_heads),
            mlp_hidden_dim=choice.get(f"mlp_hidden_{number}", block.mlp_hidden_dim),
            exists=number <= choice.get("depth", number) and bool(choice.get(f"exists_{number}", True)),
        )
        for number, block in enumerate(largest.stages[0], start=1)
    )
    return replace(largest, dims=(choice.get("embed_dim", largest.dims[0]),), stages=(blocks,))


def vit_stride(choice: Mapping[str, Any]) -> int:
    """The token stride that a choice of :func:`vit_space` names."""
    return choice.get("token_stride", 1)


def vit_space(
    model: VisionTransformer,
    arguments: Mapping[str, Any],
    options: Mapping[str, Sequence[int] | None] | None = None,
    name: str = "masked_vit",
) -> Space:
    """The space of nets inside a plain ViT.

    Args:
        model: The ViT.
        arguments: Those of ``scaled_vit`` that all nets share.
        options: What may be decided, and its options, which the ViT's own value joins; None instead of the options for
            a grid. "embed_dim", "depth" (the first blocks stay), "exists" (of every block but the first; not together
            with "depth"), "num_heads" and "mlp_hidden" (hidden units) of every block, and "token_stride". By default
            all but "exists" and "token_stride", with their grids.
        name: Name of the space.

    Returns:
        A space of ``scaled_vit`` with the decisions embed_dim, depth, num_heads_1, ...

    Raises:
        ValueError: for an unknown name, and options that are no list of positive whole numbers or exceed the ViT's.
    """
    chosen = dict.fromkeys(DEFAULT_PARTS) if options is None else dict(options)
    for part in chosen:
        check_choice("options", part, PARTS)
    if {"depth", "exists"} <= set(chosen):
        raise ValueError("options have both 'depth' and 'exists'; blocks go either from the end or one by one")
    largest = vit_definition(model)
    own, grid = _own(largest), model.patch_embed.dynamic_feat_size(model.patch_embed.img_size)
    decisions: dict[str, tuple[int, ...]] = {}
    for part in (each for each in PARTS if each in chosen):
        most = max(grid) if part == "token_stride" else max(own[part].values(), default=1)
        _check_options(part, chosen[part], most)
        for decision, value in own[part].items():
            values = _grid(part, value) if chosen[part] is None else chosen[part]
            decisions[decision] = _descending(part, value, values)
    return Space(name, "scaled_vit", decisions, {**arguments, **_template(largest, decisions)})


def _own(largest: NetworkDef) -> dict[str, dict[str, int]]:
    """For every part, its decisions with the values that the ViT has."""
    blocks = dict(enumerate(largest.stages[0], start=1))
    return {
        "embed_dim": {"embed_dim": largest.dims[0]},
        "depth": {"depth": len(blocks)},
        "exists": {f"exists_{number}": 1 for number in list(blocks)[1:]},
        "num_heads": {f"num_heads_{number}": block.num_heads for number, block in blocks.items()},
        "mlp_hidden": {f"mlp_hidden_{number}": block.mlp_hidden_dim for number, block in blocks.items()},
        "token_stride": {"token_stride": 1},
    }


def _check_options(part: str, options: Sequence[int] | None, most: int) -> None:
    if options is not None and not isinstance(options, (list, tuple)):
        raise ValueError(f"options of {part} are {options!r}; they must be a list or tuple of whole numbers, or None")
    least = 0 if part == "exists" else 1
    for value in options or ():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"options of {part} have {value!r}; they must be whole numbers of at least {least}")
        if part == "token_stride" and value > most:
            raise ValueError(
                f"options of token_stride have {value}; the grid has {most} patches a side, which is the most"
            )
        if value > most:
            raise ValueError(f"options of {part} have {value}; the model has {most}, and its nets have no more")


def _descending(part: str, value: int, options: Iterable[int]) -> tuple[int, ...]:
    """The largest net's first; blocks that have less than others take the options that they can."""
    fit = {value, *(each for each in options if part == "token_stride" or each <= value)}
    return tuple(sorted(fit, reverse=part != "token_stride"))


def _grid(part: str, value: int) -> list[int]:
    if part == "embed_dim":
        return [value * eighths // 8 for eighths in range(4, 9) if value * eighths % 8 == 0]
    if part == "mlp_hidden":
        return [value * quarters // 4 for quarters in range(1, 5) if value * quarters % 4 == 0]
    if part == "exists":
        return [0, 1]
    if part == "token_stride":
        return [1, 2]
    return list(range(-(-value // 2) if part == "depth" else 1, value + 1))


def _template(largest: NetworkDef, decisions: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``scaled_vit`` that say the shape."""
    blocks = dict(enumerate(largest.stages[0], start=1))
    dim = "embed_dim" if "embed_dim" in decisions else str(largest.dims[0])

    def listed(part: str, values: Mapping[int, int], form: str) -> list[Any]:
        filled = {n: form.format(f"{part}_{n}" if f"{part}_{n}" in decisions else value) for n, value in values.items()}
        return [_where_there(n, text, decisions) for n, text in filled.items()]

    existing = [f"exists_{number}" if f"exists_{number}" in decisions else "1" for number in blocks]
    shape = {
        "depth": "{depth}" if "depth" in decisions else f"{{{' + '.join(existing)}}}",
        "embed_dim": f"{{{dim}}}",
        "num_heads": listed("num_heads", {n: block.num_heads for n, block in blocks.items()}, "{{{}}}"),
        "head_dim": blocks[1].head_dim,
        # The model takes int(embed_dim * ratio); the half keeps rounding away from the whole number.
        "mlp_ratio": listed(
            "mlp_hidden", {n: block.mlp_hidden_dim for n, block in blocks.items()}, f"{{{{({{}} + 0.5) / {dim}}}}}"
        ),
    }
    return shape | ({"token_stride": "{token_stride}"} if "token_stride" in decisions else {})


def _where_there(number: int, text: str, decisions: Mapping[str, Any]) -> Any:
    """An entry of a list with one value per block, only for nets that have the block."""
    if f"exists_{number}" in decisions:
        return {"if": f"exists_{number}", "of": text}
    return {"if": f"depth >= {number}", "of": text} if "depth" in decisions else text
