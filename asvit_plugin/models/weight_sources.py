"""Weights from elsewhere than timm's own sources: a file, a folder or the hub, and what such weights are for."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError

HUB = "hf-hub:"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")  # as timm names them
# What classifiers are called by timm's models, torchvision's, and the authors of As-ViT and ViT-ResNAS.
CLASSIFIERS = ("head", "head.fc", "fc", "classifier", "cls_head", "head.2")


def find_weights(source: str, field: str) -> tuple[Path, Path | None]:
    """The weight file that ``source`` names, and the ``config.json`` beside it if there is one.

    Args:
        source: A file, a folder, or ``hf-hub:ID`` (also ``ID@revision``), which goes into this machine's cache.
        field: What the caller calls it, for the sentence that refuses it.

    Raises:
        ValueError: There is no such file or folder, or the ID is not one.
        OSError: A repository is neither in the cache nor to be reached; huggingface_hub has classes for the causes.
    """
    if source.startswith(HUB):
        try:
            return _download(source.removeprefix(HUB))
        except HFValidationError as error:
            raise ValueError(f"{field} is {source!r}; it must be {HUB} with the ID of a repository") from error
    path = Path(source)
    if path.is_file():
        return path, None
    found = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
    if not found:
        allowed = f"a file, a folder with {' or '.join(WEIGHT_FILES)}, or {HUB}ID"
        raise ValueError(f"{field} is {source!r}; it must be {allowed}")
    config = path / "config.json"
    return found[0], config if config.is_file() else None


def describe_weights(weights: Mapping[str, Any], cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What timm's ``pretrained_cfg`` should say of weights: their classes, and the channels of their images.

    Args:
        weights: Tensors by name, in any layout; what is not a tensor is passed over.
        cfg: The model's own ``pretrained_cfg``, or an empty one.

    Returns:
        ``num_classes``, 0 where no classifier is found, and ``input_size``, of the model's own side.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items() if isinstance(tensor, torch.Tensor)}
    classifiers = [shapes.get(f"{name}.weight", ()) for name in (*_as_tuple(cfg.get("classifier")), *CLASSIFIERS)]
    classes = [shape[0] for shape in classifiers if len(shape) in (2, 4)]
    stems = [shapes.get(f"{name}.weight", ()) for name in _as_tuple(cfg.get("first_conv"))]
    size = cfg.get("input_size") or (3, 224, 224)
    channels = [shape[1] for shape in stems if len(shape) == 4] or [size[0]]
    return {"num_classes": (classes or [0])[0], "input_size": (channels[0], *size[1:])}


def read_normalisation(config: Path | None) -> dict[str, Any]:
    """``mean`` and ``std`` of the images that weights were trained on, where the config beside them has them."""
    if config is None:
        return {}
    found = json.loads(config.read_text())
    found = found.get("pretrained_cfg", found)  # older files have it all on one level
    return {name: found[name] for name in ("mean", "std") if found.get(name)}


def _download(repository: str) -> tuple[Path, Path | None]:
    """The weight file and the config of a hub's repository, in this machine's cache."""
    name, _, revision = repository.partition("@")
    missing: dict[str, EntryNotFoundError] = {}

    def fetch(file: str) -> Path | None:
        try:
            return Path(hf_hub_download(name, file, revision=revision or None))
        except EntryNotFoundError as error:  # also said of what is not in the cache, where there is no network
            missing[file] = error
            return None

    found = next(filter(None, map(fetch, WEIGHT_FILES)), None)
    if found is None:
        raise missing[WEIGHT_FILES[0]]
    return found, fetch("config.json")


def _as_tuple(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())
