"""The models that a schedule drives: one, and the copies that follow it."""

from collections.abc import Iterable

from torch import nn


def with_copies(model: nn.Module, copies: nn.Module | Iterable[nn.Module]) -> list[nn.Module]:
    """The model, then its copies; one copy needs no list.

    Raises:
        ValueError: if ``copies`` is or holds something else.
    """
    alone = isinstance(copies, nn.Module) and not isinstance(copies, nn.ModuleList)
    if not alone and not isinstance(copies, Iterable):
        raise ValueError(f"copies is a {type(copies).__name__}; it must be a model or a list of models")
    models = [model, copies] if alone else [model, *copies]
    for each in models[1:]:
        if not isinstance(each, nn.Module):
            raise ValueError(f"copies holds a {type(each).__name__}; it must be a model or a list of models")
    return models
