"""Builds models with their weights: from timm's sources, a file, a folder or the hub, and never from half of them."""

import pickle
import textwrap
from typing import Any

import timm
from data_options import ModelOptions
from safetensors import SafetensorError
from timm.models import load_state_dict, parse_model_name, resolve_model_input_args
from torch import nn

from asvit_plugin.exporting import first_line
from asvit_plugin.models.weight_sources import HUB, describe_weights, find_weights, read_normalisation

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
    kwargs = model_arguments(options, num_classes)
    return build("model", options.model, kwargs, options.pretrained, options.pretrained_path)


def model_arguments(options: ModelOptions, num_classes: int | None) -> dict[str, Any]:
    """What the options say to a model, as its keyword arguments; None stands for its own default."""
    return {
        "num_classes": num_classes,
        "drop_rate": options.drop,
        "drop_path_rate": options.drop_path,
        "global_pool": options.gp,
        "in_chans": options.in_chans,
        "img_size": options.img_size,
    } | options.model_kwargs


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
    cfg = {} if cfg is None else cfg.to_dict()
    file, config = find_weights(path, f"--{path_option}")
    try:
        weights = load_state_dict(str(file))
    except Exception as error:  # a damaged file fails in as many ways as there are places for the damage
        raise ValueError(f"--{path_option} is {str(file)!r}; it is damaged or holds no weights") from error
    overlay = {"file": str(file), **describe_weights(weights.get("model", weights), cfg), **read_normalisation(config)}
    arguments = {
        "pretrained_cfg_overlay": overlay,
        "in_chans": kwargs.get("in_chans") or cfg.get("input_size", (3,))[0],
    }
    if overlay["num_classes"] != kwargs.get("num_classes"):
        _create(name, kwargs | arguments | {"num_classes": overlay["num_classes"]}, True)
    return arguments


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
        files = (
            f"config.json and model.safetensors of https://huggingface.co/{repository} into a folder of this machine"
        )
    else:
        cfg = timm.get_pretrained_cfg(kwargs.get("base", name))
        hub = f"https://huggingface.co/{cfg.hf_hub_id}/resolve/main/{cfg.hf_hub_filename or 'model.safetensors'}"
        files = f"the file {hub if cfg.hf_hub_id else cfg.url} into any folder of this machine"
        flag = f"its path as --{path_option} FILE"
    return (
        f"the weights of --{option.replace('_', '-')} {name!r} are not on this machine and cannot be downloaded: put "
        f"{files} and give {flag}"
    )
