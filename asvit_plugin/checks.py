"""Checks of arguments that several parts of the package share."""

from numbers import Integral, Real
from typing import Any


def check_choice(field: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is none of those allowed."""
    if value not in allowed:
        raise ValueError(f"{field} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")


def check_whole(field: str, value: Any, least: int = 1) -> None:
    """Refuse what is no whole number of at least ``least``; True and False are none."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{field} is {value!r}; it must be a whole number of at least {least}")


def check_rate(field: str, value: Any) -> None:
    """Refuse what is no number from 0 to 1; True and False are none."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{field} is {value!r}; it must be a number from 0 to 1")
