"""Builds a bare timm model for a detector: weights whole or not at all, and images of any size where it can."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from timm.models import load_state_dict, parse_model_name
from torch import nn

from ..models._build import reading_weights

HUB = "hf-hub:"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")  # as timm names them
# What classifiers are called by timm's models, torchvision's, and the authors of As-ViT and ViT-ResNAS.
CLASSIFIERS = ("head", "head.fc", "fc", "classifier", "cls_head", "head.2")
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
    file = _find_file(recipe.weights)
    if file.suffix in (".npz", ".npy"):  # read by the model's own method, which says what is missing
        return {"pretrained_cfg_overlay": {"source": "", "file": str(file), "custom_load": True}}
    cfg = _config(recipe)
    with reading_weights(recipe.name, pretrained_cfg_overlay={"file": str(file)}):
        state = load_state_dict(str(file))
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if hasattr(tensor, "shape")}
    classifiers = (*_as_tuple(cfg.get("classifier")), *CLASSIFIERS)
    classes = [shapes[f"{name}.weight"][0] for name in classifiers if len(shapes.get(f"{name}.weight", ())) in (2, 4)]
    stems = [shapes.get(f"{name}.weight", ()) for name in _as_tuple(cfg.get("first_conv"))]
    channels = [stem[1] for stem in stems if len(stem) == 4] or [3]
    size = cfg.get("input_size") or (3, 224, 224)
    num_classes = (classes or [0])[0]
    overlay = {"file": str(file), "num_classes": num_classes, "input_size": (channels[0], *size[1:])}
    # without a source, or timm prefers the folder that the name stands for
    return {"pretrained_cfg_overlay": {"source": "", **overlay}, "num_classes": num_classes}


def _config(recipe: TrunkRecipe) -> dict[str, Any]:
    """timm's config of the model, which says what its classifier and first convolution are called."""
    if parse_model_name(recipe.name)[0] is None:
        cfg = timm.get_pretrained_cfg(recipe.arguments.get("base", recipe.name))
        return cfg.to_dict() if cfg else {}
    with torch.device("meta"):
        return timm.create_model(recipe.name, pretrained=False).pretrained_cfg


def _find_file(weights: str) -> Path:
    """The weight file that ``weights`` names; one of the hub is downloaded into this machine's cache."""
    if weights.startswith(HUB):
        return _download(weights)
    path = Path(weights)
    found = [path] if path.is_file() else [path / name for name in WEIGHT_FILES if (path / name).is_file()]
    if not found:
        allowed = f"a file, a folder with {' or '.join(WEIGHT_FILES)}, or {HUB}ID"
        raise ValueError(f"weights is {weights!r}; it must be {allowed}")
    return found[0]


def _download(weights: str) -> Path:
    repository, _, revision = weights.removeprefix(HUB).partition("@")
    reason = ""
    for file in WEIGHT_FILES:
        try:
            return Path(hf_hub_download(repository, file, revision=revision or None))
        except EntryNotFoundError as error:  # also said of a file that is not in the cache, where there is no network
            reason = str(error)
        except (OSError, ValueError) as error:
            reason = str(error)
            break
    raise ValueError(f"weights is {weights!r}; it cannot be downloaded: {' '.join(reason.split())}")


def _as_tuple(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())
