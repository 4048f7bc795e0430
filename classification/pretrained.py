"""Builds models with their weights: from timm's sources, a file, a folder or the hub, and never from half of them."""

import json
import pickle
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from options import ModelOptions
from safetensors import SafetensorError
from timm.models import (
    PretrainedCfg,
    load_state_dict,
    parse_model_name,
    resolve_model_input_args,
)
from torch import nn

WEIGHT_FILES = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")  # as timm names them
HUB = "hf-hub:"
# What classifiers are called by timm's configs, torchvision and the authors of As-ViT and ViT-ResNAS.
CLASSIFIERS = ("head", "head.fc", "fc", "classifier", "cls_head", "head.2")
_ERRORS = (
    *(AssertionError, AttributeError, EOFError, KeyError, OSError, RuntimeError, TypeError, ValueError),
    *(SafetensorError, pickle.UnpicklingError),
)
_UNREACHABLE = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectionError", "URLError")


def make_model(options: ModelOptions, num_classes: int | None) -> nn.Module:
    """Builds the model that the options name.

    Args:
        options: Model, input and regularisation options; `model_kwargs` win over the named ones.
        num_classes: Classes of the data; None keeps the model's own.

    Returns:
        The model on the CPU. `timm.models.get_model_args(model)` are the arguments that rebuild it.

    Raises:
        ValueError: There is no such model, it does not take these arguments, or its weights are not to be had.
    """
    kwargs = {
        "num_classes": num_classes,
        "drop_rate": options.drop,
        "drop_path_rate": options.drop_path,
        "global_pool": options.gp,
        "in_chans": options.in_chans,
        "img_size": options.img_size,
    } | options.model_kwargs
    return build("model", options.model, kwargs, options.pretrained, options.pretrained_path)


def build(option: str, name: str, kwargs: dict[str, Any], pretrained: bool, path: str = "") -> nn.Module:
    """timm's model of a name, with one sentence for whatever goes wrong.

    Args:
        option: The option that gave the name, `model` or `kd_model_name`; sentences name it.
        name: Name of a timm model, or a source such as `local-dir:FOLDER`, whose weights are always loaded.
        kwargs: Arguments of the model; an `img_size` that it does not take is left out, for it then takes any.
        pretrained: Load weights.
        path: Where those are: a file, a folder or `hf-hub:ID`; empty for where timm has them.

    Raises:
        ValueError: The model cannot be built, or its weights cannot be loaded.
    """
    path_option = "kd-pretrained-path" if option == "kd_model_name" else "pretrained-path"
    if path and parse_model_name(name)[0] is not None:
        raise ValueError(f"--{path_option} is {path!r}; {name!r} has weights of its own, give one of them")
    try:
        weights = _overlay(path, path_option, name, kwargs) if path else {}
        return _create(name, kwargs | weights, bool(pretrained or path))
    except _ERRORS as error:
        if _is_unreachable(error):
            raise ValueError(_where_to_put_it(name, kwargs, option, path, path_option)) from error
        raise ValueError(f"cannot build --{option.replace('_', '-')} {name!r}: {_reason(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of what an exception says, or its name."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _reason(error: Exception) -> str:
    """What an exception says in a line: torch names the tensors that differ in the lines after the first."""
    lines = str(error).splitlines()
    if not first_line(error).startswith("Error(s) in loading"):
        return first_line(error)
    return textwrap.shorten(" ".join(lines), 400, placeholder=" ...")


def _create(name: str, kwargs: dict[str, Any], pretrained: bool) -> nn.Module:
    """Lets timm reconcile the arguments with the named model or folder, and build it."""
    kwargs = dict(kwargs)
    overlay = kwargs.pop("pretrained_cfg_overlay", None)  # as itself: a castled model must see that it is one
    arguments = resolve_model_input_args(name, {"in_chans": kwargs.pop("in_chans", None)}, **kwargs)
    arguments["pretrained_cfg_overlay"] = overlay
    pretrained = pretrained or parse_model_name(name)[0] is not None
    try:
        return timm.create_model(**arguments, pretrained=pretrained)
    except TypeError as error:  # convolutional nets have no nominal size, and fit any
        if "img_size" not in str(error) or "img_size" not in arguments:
            raise
        return timm.create_model(**(arguments | {"img_size": None}), pretrained=pretrained)


def _overlay(path: str, path_option: str, name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The argument that has timm load weights from `path`, checked to cover the model.

    timm leaves out a classifier of other classes, and then loads what there is of the rest without a word. So such
    weights are loaded once with the classes that they have, which timm does strictly. Images are normalised as a
    `config.json` beside them says.
    """
    cfg = timm.get_pretrained_cfg(kwargs.get("base", name))
    own = (3, 224, 224) if cfg is None else cfg.input_size
    file, config = _download(path.removeprefix(HUB)) if path.startswith(HUB) else _find_file(path, path_option)
    classes, channels = _read_shape(file, cfg, path_option)
    overlay = {"file": str(file), "num_classes": classes, "input_size": (channels or own[0], *own[1:])}
    if config is not None:
        found = json.loads(config.read_text())
        found = found.get("pretrained_cfg", found)  # older files have it all on one level
        overlay |= {name: found[name] for name in ("mean", "std") if found.get(name)}
    weights = {"pretrained_cfg_overlay": overlay, "in_chans": kwargs.get("in_chans") or own[0]}
    if classes != kwargs.get("num_classes"):
        _create(name, kwargs | weights | {"num_classes": classes}, True)
    return weights


def _download(repository: str) -> tuple[Path, Path]:
    """The weight file and the config of a hub's repository, in this machine's cache."""
    name, _, revision = repository.partition("@")
    config = Path(hf_hub_download(name, "config.json", revision=revision or None))
    for file in WEIGHT_FILES:
        try:
            return Path(hf_hub_download(name, file, revision=revision or None)), config
        except EntryNotFoundError as error:  # also said of a file that is not in the cache, where there is no network
            missing = error
    raise missing


def _find_file(path: str, path_option: str) -> tuple[Path, Path | None]:
    """The weight file that a path names, or that lies in the folder that it names with its config, if any."""
    if Path(path).is_file():
        return Path(path), None
    found = [Path(path, name) for name in WEIGHT_FILES if Path(path, name).is_file()]
    if not found:
        allowed = f"a file, a folder with {' or '.join(WEIGHT_FILES)}, or hf-hub:ID"
        raise ValueError(f"--{path_option} is {path!r}; allowed is {allowed}")
    config = Path(path, "config.json")
    return found[0], config if config.is_file() else None


def _read_shape(file: Path, cfg: PretrainedCfg | None, path_option: str) -> tuple[int, int | None]:
    """Classes of the classifier in a weight file, 0 if it has none; and channels of the images that it is for."""
    try:
        weights = load_state_dict(str(file))
        weights = weights.get("model", weights)
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items() if hasattr(tensor, "shape")}
    except Exception as error:  # a damaged file fails in as many ways as there are places for the damage
        raise ValueError(f"--{path_option} is {str(file)!r}; it is damaged or holds no weights") from error
    names = [f"{name}.weight" for name in (*_as_tuple(cfg and cfg.classifier), *CLASSIFIERS)]
    classes = [shapes[name][0] for name in names if len(shapes.get(name, ())) in (2, 4)]
    stems = [shapes.get(f"{name}.weight", ()) for name in _as_tuple(cfg and cfg.first_conv)]
    channels = [shape[1] for shape in stems if len(shape) == 4 and shape[1] in (1, 3)]
    return (classes or [0])[0], (channels or [None])[0]


def _as_tuple(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())


def _is_unreachable(error: BaseException | None) -> bool:
    """Whether an exception comes from a hub or server that could not be reached."""
    while error is not None:
        if any(kind.__name__ in _UNREACHABLE for kind in type(error).__mro__):
            return True
        error = error.__cause__ or error.__context__
    return False


def _where_to_put_it(name: str, kwargs: dict[str, Any], option: str, path: str, path_option: str) -> str:
    """What to do where a download is not possible."""
    source, repository = parse_model_name(name)
    if path or source is not None:
        repository = path.removeprefix(HUB) if path else repository
        flag = f"--{path_option} FOLDER" if path else f"--{option.replace('_', '-')} local-dir:FOLDER"
        files = f"config.json and model.safetensors of https://huggingface.co/{repository} into a folder"
    else:
        cfg = timm.get_pretrained_cfg(kwargs.get("base", name))
        hub = f"https://huggingface.co/{cfg.hf_hub_id}/resolve/main/{cfg.hf_hub_filename or 'model.safetensors'}"
        files, flag = hub if cfg.hf_hub_id else cfg.url, f"--{path_option} FILE"
    return (
        f"the weights of --{option.replace('_', '-')} {name!r} are not on this machine and cannot be downloaded: put "
        f"{files} and give {flag}"
    )
