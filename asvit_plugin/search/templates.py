"""Model arguments as templates: what a choice of a space turns into."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from .expressions import Expression

_HOLE = re.compile(r"\{([^{}]*)\}")
_KEYS = {"for", "of", "if", "join"}
_expression = lru_cache(maxsize=10_000)(Expression)  # a search fills one template thousands of times


def repeat(node: Any, variables: Mapping[str, Sequence[Any]]) -> list[tuple[dict[str, Any], Any]]:
    """A text or list once for every value of the variables in it, as (the variables' values, the filled-in node)."""
    variable = next((name for name in variables if f"{{{name}}}" in str(node)), None)
    if variable is None:
        return [({}, node)]
    rest = {name: values for name, values in variables.items() if name != variable}
    return [
        ({variable: value, **others}, filled)
        for value in variables[variable]
        for others, filled in repeat(put(node, variable, value), rest)
    ]


def put(node: Any, variable: str, value: Any) -> Any:
    """The node with ``{variable}`` replaced by a value in all texts in it."""
    if isinstance(node, str):
        return node.replace(f"{{{variable}}}", str(value))
    if isinstance(node, Mapping):
        return {key: put(each, variable, value) for key, each in node.items()}
    if isinstance(node, list):
        return [put(each, variable, value) for each in node]
    return node


def unroll(field: str, node: Any, variables: Mapping[str, Sequence[Any]]) -> Any:
    """A template without repetition: every ``for`` is written out, as a list of ``{"if": ..., "of": ...}``.

    ``for: block`` walks through the variable's values, ``for: [left, right]`` through several variables' side by side.

    Raises:
        ValueError: naming the field, where a mapping has other keys or an unknown variable.
    """
    if isinstance(node, list):
        return [unroll(field, each, variables) for each in node]
    if not isinstance(node, Mapping):
        return node
    if "of" not in node or not set(node) <= _KEYS:
        raise ValueError(
            f"{field} has a mapping of {sorted(node)}; it must have 'of', and may have 'for', 'if', 'join'"
        )
    if not isinstance(node.get("join", ""), str):
        raise ValueError(f"{field} has join {node['join']!r}; it must be a text")
    if "for" not in node:
        return {**node, "of": unroll(field, node["of"], variables)}
    names = node["for"] if isinstance(node["for"], list) else [node["for"]]
    for name in names:
        if name not in variables:
            raise ValueError(f"{field} repeats over {name!r}; for_each has only {sorted(variables)}")
    if len({len(variables[name]) for name in names}) > 1:
        raise ValueError(f"{field} repeats over {names} together; for_each must have as many values of each")
    body = {key: node[key] for key in ("of", "if") if key in node}
    items = [unroll(field, _put_all(body, names, values), variables) for values in zip(*map(variables.get, names))]
    return {"of": items, **({"join": node["join"]} if "join" in node else {})}


def _put_all(node: Any, names: Sequence[str], values: Sequence[Any]) -> Any:
    for name, value in zip(names, values):
        node = put(node, name, value)
    return node


def expressions(node: Any) -> Iterator[Expression]:
    """All expressions in an unrolled template.

    Raises:
        ValueError: for one that is not allowed, or a brace without its partner.
    """
    if isinstance(node, str):
        if set(_HOLE.sub("", node)) & set("{}"):
            raise ValueError(f"template {node!r} has a brace without its partner")
        yield from map(Expression, _HOLE.findall(node))
    elif isinstance(node, Mapping):
        yield from [Expression(str(node["if"]))] if "if" in node else []
        yield from expressions(node["of"])
    elif isinstance(node, list):
        for each in node:
            yield from expressions(each)


def fill(node: Any, values: Mapping[str, Any]) -> Any:
    """The argument that an unrolled template gives for these decisions.

    A text that is one ``{expression}`` becomes the expression's value, with its type; in a longer text the values are
    written out.
    """
    if isinstance(node, str):
        whole = _HOLE.fullmatch(node)
        if whole:
            return _expression(whole[1])(values)
        return _HOLE.sub(lambda hole: str(_expression(hole[1])(values)), node)
    if isinstance(node, list):
        kept = [each for each in node if not _is_off(each, values)]
        return [fill(each, values) for each in kept]
    if isinstance(node, Mapping):
        filled = fill(node["of"], values)
        return node["join"].join(map(str, filled)) if "join" in node else filled
    return node


def _is_off(node: Any, values: Mapping[str, Any]) -> bool:
    return isinstance(node, Mapping) and "if" in node and not _expression(str(node["if"]))(values)
