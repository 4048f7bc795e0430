"""Small arithmetic over the decisions of a space, read from text and never run as Python."""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

_ARITHMETIC: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_COMPARISONS: dict[type, Callable] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, values: value in values,
    ast.NotIn: lambda value, values: value not in values,
}
_FUNCTIONS: dict[str, Callable] = {"abs": abs, "int": int, "max": max, "min": min, "round": round, "str": str}
_NODES = (
    ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Call, ast.Name, ast.Constant, ast.Tuple, ast.List,
    *_ARITHMETIC, *_COMPARISONS, ast.Not, ast.And, ast.Or, ast.Load,
)  # fmt: skip


@dataclass(frozen=True)
class Expression:
    """One expression such as ``img_size % patch_size == 0``.

    It may hold names of decisions, numbers, texts and lists, ``+ - * / // %``, comparisons, ``in``, ``and or not``,
    ``a if b else c`` and the functions abs, int, max, min, round and str. There are no attributes, indices or powers.

    Raises:
        ValueError: where the text holds anything else.
    """

    text: str

    def __post_init__(self) -> None:
        for node in ast.walk(self._tree):
            if not isinstance(node, _NODES):
                raise ValueError(f"expression {self.text!r} holds a {type(node).__name__}, which is not allowed there")
            if isinstance(node, ast.Call) and (_function_name(node) not in _FUNCTIONS or node.keywords):
                raise ValueError(f"expression {self.text!r} may call only {', '.join(_FUNCTIONS)}, without keywords")

    @cached_property
    def _tree(self) -> ast.expr:
        try:
            return ast.parse(self.text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ValueError(
                f"expression {self.text!r} cannot be read; it must be such as 'width % heads == 0'"
            ) from None

    @cached_property
    def names(self) -> frozenset[str]:
        """The decisions that it depends on."""
        names = {node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name)}
        functions = {_function_name(node) for node in ast.walk(self._tree) if isinstance(node, ast.Call)}
        return frozenset(names - functions)

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """Its value where the decisions have these values.

        Raises:
            ValueError: where it cannot be computed, such as a division by zero.
        """
        try:
            return _value(self._tree, values)
        except (ArithmeticError, TypeError) as error:
            given = ", ".join(f"{name}={values[name]!r}" for name in sorted(self.names))
            raise ValueError(f"expression {self.text!r} cannot be computed for {given}: {error}") from None


def _function_name(node: ast.Call) -> str | None:
    return node.func.id if isinstance(node.func, ast.Name) else None


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return values[node.id]
        case ast.Tuple() | ast.List():
            return [_value(each, values) for each in node.elts]
        case ast.Call():
            return _FUNCTIONS[node.func.id](*(_value(each, values) for each in node.args))
        case ast.IfExp():
            return _value(node.body if _value(node.test, values) else node.orelse, values)
        case ast.BoolOp():
            together = all if isinstance(node.op, ast.And) else any
            return together(_value(each, values) for each in node.values)
        case ast.UnaryOp(op=ast.Not()):
            return not _value(node.operand, values)
        case ast.UnaryOp():
            return _ARITHMETIC[type(node.op)](_number(node.operand, values))
        case ast.BinOp():
            return _ARITHMETIC[type(node.op)](_number(node.left, values), _number(node.right, values))
        case ast.Compare():
            return _compare(node, values)


def _number(node: ast.expr, values: Mapping[str, Any]) -> int | float:
    """Arithmetic is for numbers only: a text times a number could fill the memory."""
    value = _value(node, values)
    if not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is no number")
    return value


def _compare(node: ast.Compare, values: Mapping[str, Any]) -> bool:
    sides = [_value(side, values) for side in (node.left, *node.comparators)]
    return all(_COMPARISONS[type(op)](left, right) for op, left, right in zip(node.ops, sides, sides[1:]))
