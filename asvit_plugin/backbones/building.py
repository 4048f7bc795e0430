"""Builds a bare timm model for a detector: weights whole or not at all, and images of any size where it can."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_state_dict, parse_model_name
from torch import nn

from ..models._build import reading_weights
from ..models.weight_sources import describe_weights, find_weights

# How timm's models say that images differ in size; each is passed to those that take it.
ANY_SIZE = {"dynamic_img_size": True, "dynamic_img_pad": True, "strict_img_size": False}


@dataclass(frozen=True)
class TrunkRecipe:
    """What a trunk is built from, kept to read weights in just the same way later.

    Attributes:
        name: Name of a timm model, or a source such as ``local-dir:FOLDER``, whose weights are always loaded.
        pretrained: Load timm's weights of that name.
        weights: Other weights: a file, a folder or ``hf-hub:ID``; empty for none.
        arguments: Arguments of the model that were asked for; one that it does not take is refused.
    """

    name: str
    pretrained: bool = False
    weights: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)


def build_model(recipe: TrunkRecipe) -> nn.Module:
    """timm's model of a recipe, with its classifier if it has weights: so timm checks that they cover the model.

    Raises:
        ValueError: There is no such model, it does not take an argument, or the weights do not fit.
    """
    pretrained = _check_name(recipe.name) or bool(recipe.pretrained or recipe.weights)
    extra = _overlay(recipe) if recipe.weights else {}
    if not pretrained:
        extra["num_classes"] = 0
    overlay = extra.get("pretrained_cfg_overlay")
    with reading_weights(recipe.name, pretrained_cfg_overlay=overlay) if pretrained else nullcontext():
        return _create(recipe, pretrained, extra)


def plain(value: Any) -> Any:
    """A value of a config library (OmegaConf, yacs, mmengine) as Python's own: dictionaries and tuples."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(plain(each) for each in value)
    return value


def _check_name(name: str) -> bool:
    """Refuse what is no name of a model; returns whether it stands for weights, too."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"name is {name!r}; it must be the name of a timm model, local-dir:FOLDER or hf-hub:ID")
    source, identifier = parse_model_name(name)
    if source is None and not timm.is_model(identifier):
        raise ValueError(f"name is {name!r}; it must be the name of a timm model, local-dir:FOLDER or hf-hub:ID")
    if source == "local-dir" and not Path(identifier, "config.json").is_file():
        raise ValueError(f"name is {name!r}; the folder must hold the config.json of a timm model")
    return source is not None


def _create(recipe: TrunkRecipe, pretrained: bool, extra: dict[str, Any]) -> nn.Module:
    """Asks timm for the model, without those of ``ANY_SIZE`` that it does not take."""
    free = {name: value for name, value in ANY_SIZE.items() if name not in recipe.arguments}
    while True:
        try:
            return timm.create_model(recipe.name, pretrained=pretrained, **recipe.arguments, **extra, **free)
        except TypeError as error:
            for field, value in recipe.arguments.items():
                if f"'{field}'" in str(error):
                    raise ValueError(f"{field} is {value!r}; {recipe.name} does not take it") from error
            unknown = [field for field in free if f"'{field}'" in str(error)]
            if not unknown:
                raise _refusal(recipe, error) from error
            free = {field: value for field, value in free.items() if field not in unknown}
        except (AssertionError, RuntimeError) as error:
            if pretrained:  # said with the source of the weights
                raise
            raise _refusal(recipe, error) from error


def _refusal(recipe: TrunkRecipe, error: Exception) -> ValueError:
    return ValueError(f"name is {recipe.name!r}; timm cannot build it: {' '.join(str(error).split())}")


def _overlay(recipe: TrunkRecipe) -> dict[str, Any]:
    """The arguments that have timm load a file strictly.

    timm is only strict where the model has as many classes as the weights, so it is built with those.
    """
    try:
        file, _ = find_weights(recipe.weights, "weights")
    except OSError as error:
        raise ValueError(
            f"weights is {recipe.weights!r}; it cannot be downloaded: {' '.join(str(error).split())}"
        ) from error
    if file.suffix in (".npz", ".npy"):  # read by the model's own method, which says what is missing
        return {"pretrained_cfg_overlay": {"source": "", "file": str(file), "custom_load": True}}
    with reading_weights(recipe.name, pretrained_cfg_overlay={"file": str(file)}):
        described = describe_weights(load_state_dict(str(file)), _config(recipe))
    # without a source, or timm prefers the folder that the name stands for
    overlay = {"source": "", "file": str(file), **described}
    return {"pretrained_cfg_overlay": overlay, "num_classes": described["num_classes"]}


def _config(recipe: TrunkRecipe) -> dict[str, Any]:
    """timm's config of the model, which says what its classifier and first convolution are called."""
    if parse_model_name(recipe.name)[0] is None:
        cfg = timm.get_pretrained_cfg(recipe.arguments.get("base", recipe.name))
        return cfg.to_dict() if cfg else {}
    with torch.device("meta"):
        return timm.create_model(recipe.name, pretrained=False).pretrained_cfg
