"""Building a model as timm does, with weight files that either fit wholly or are refused in one sentence."""

import pickle
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from safetensors import SafetensorError
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import to_2tuple
from timm.models import build_model_with_cfg, get_model_input_config
from torch import nn

from .._timm_private import FeatureGetterNet
from ..checks import check_choice, check_rate, check_whole

_READ_ERRORS = (AttributeError, EOFError, KeyError, OSError, RuntimeError, pickle.UnpicklingError, SafetensorError)
_AMBIGUOUS = (AttributeError, KeyError, RuntimeError)  # what the building of a model may raise as well
_LOADING = {"load_pretrained", "load_custom_pretrained", "load_state_dict", "describe_weights"}  # timm's, torch's, ours


def imagenet_cfg(**kwargs: Any) -> dict[str, Any]:
    """A ``pretrained_cfg`` of 1,000 ImageNet classes at 224 px with no weights; ``kwargs`` add to it and win."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "fixed_input_size": False,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        **kwargs,
    }


def build_model(
    model_cls: Callable[..., nn.Module],
    variant: str,
    pretrained: bool,
    features: int | tuple[int, ...],
    **kwargs: Any,
) -> nn.Module:
    """timm's ``build_model_with_cfg``, where a weight file that cannot be read or does not fit is a ``ValueError``.

    Args:
        model_cls: Class of the model, or a function that builds it.
        variant: Its name.
        pretrained: Load weights.
        features: What ``features_only=True`` gives unless the user says ``out_indices``: the last n, or those of these
            indices that the model has.
        kwargs: Arguments of the user and of timm. ``feature_cfg`` is merged, so that users can ask for
            ``feature_cfg=dict(norm=True)``, which timm's own models do not take.
    """
    chosen = dict(kwargs.pop("feature_cfg", {}))
    if "out_indices" in kwargs:
        chosen["out_indices"] = kwargs.pop("out_indices")
    own = "out_indices" not in chosen and "feature_cls" not in {**chosen, **kwargs}
    kwargs["feature_cfg"] = {"feature_cls": PresentFeatures if own else "getter", "out_indices": features, **chosen}
    with reading_weights(variant, **kwargs) if pretrained else nullcontext():
        return build_model_with_cfg(model_cls, variant, pretrained, **kwargs)


class PresentFeatures(FeatureGetterNet):
    """timm's getter of features, which leaves out what a shallow model does not have."""

    def __init__(self, model: nn.Module, out_indices: int | tuple[int, ...], **kwargs: Any) -> None:
        count = len(model.feature_info)
        if isinstance(out_indices, int):
            present = min(out_indices, count)
        else:
            present = tuple(index for index in out_indices if index < count)
        super().__init__(model, present, **kwargs)


@contextmanager
def reading_weights(variant: str, **kwargs: Any) -> Iterator[None]:
    """Turn what a file or hub raises into one sentence; ``kwargs`` are timm's ``pretrained_cfg`` and its overlay.

    What the building of the model raises, such as for a device that there is not, is let through.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _READ_ERRORS as error:
        if isinstance(error, _AMBIGUOUS) and not _raised_within(error, _LOADING):
            raise
        cfg = {**_as_dict(kwargs.get("pretrained_cfg")), **(kwargs.get("pretrained_cfg_overlay") or {})}
        source = cfg.get("file") or cfg.get("hf_hub_id") or cfg.get("url") or "its default source"
        reason = _why_unreadable(error) if cfg.get("file") else _one_line(error)
        raise ValueError(f"pretrained weights of {variant} cannot be loaded from {source}: {reason}") from error


def check_head(
    num_classes: int, global_pool: str, pools: tuple[str, ...], in_chans: int = 3, drop_path_rate: float = 0.0
) -> None:
    """Refuse what no family takes of the arguments that all have; ``pools`` are those of this one."""
    check_whole("num_classes", num_classes, least=0)
    check_choice("global_pool", global_pool, pools)
    check_whole("in_chans", in_chans)
    check_rate("drop_path_rate", drop_path_rate)


def check_img_size(field: str, img_size: int | tuple[int, int]) -> tuple[int, int]:
    """An image size as (height, width), both positive whole numbers."""
    size = tuple(to_2tuple(img_size))
    if len(size) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in size):
        raise ValueError(f"{field} is {img_size!r}; it must be a positive whole number or (height, width)")
    return size


def _raised_within(error: BaseException, functions: set[str]) -> bool:
    return any(frame.f_code.co_name in functions for frame, _ in traceback.walk_tb(error.__traceback__))


def _why_unreadable(error: Exception) -> str:
    text = _one_line(error)
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, EOFError):
        return "the file is empty or cut off"
    unsafe = text.partition("Unsupported globals: ")[2].partition(". No automatic")[0]
    if unsafe:
        return f"it holds objects that are not read for safety ({unsafe})"
    if "Error(s) in loading" in text or "inconsistent with" in text:  # torch and timm, of weights that they could read
        return text
    if isinstance(error, (KeyError, RuntimeError)) and not _raised_within(error, {"load_state_dict"}):
        return f"its weights do not fit the model ({text})"
    return "it is no PyTorch or safetensors weight file"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _as_dict(cfg: Any) -> dict[str, Any]:
    return cfg if isinstance(cfg, dict) else cfg.to_dict() if hasattr(cfg, "to_dict") else {}


def require_full_cover(state_dict: dict[str, Any], model: nn.Module, resampled: tuple[str, ...] = ()) -> None:
    """Refuse a state dict that leaves part of the model random, or brings tensors that the model has no place for.

    timm itself loads such a file silently once the number of classes differs. The classifier may be missing; the
    stem may have other input channels (timm adapts it).

    Args:
        state_dict: Weights, already under the model's own names.
        model: The model they are meant for, with its ``pretrained_cfg``.
        resampled: Names of parameters that the caller brings to the model's shape afterwards.

    Raises:
        ValueError: naming the first tensors that are missing, left over or of another shape.
    """
    cfg = model.pretrained_cfg
    first_conv = get_model_input_config(model)["first_conv"]
    classifier = {f"{name}.{leaf}" for name in _classifiers(cfg) for leaf in ("weight", "bias")}
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items() if name not in classifier}
    counters = "num_batches_tracked"  # older files of torch's lack them, and its strict loading lets them
    problems = {
        "it lacks": [name for name in wanted if name not in state_dict and name.rpartition(".")[2] != counters],
        "the model has no": [name for name in state_dict if name not in wanted and name not in classifier],
        "of another shape are": [
            f"{name} {_shape(state_dict[name])} for {_shape(shape)}"
            for name, shape in wanted.items()
            if name in state_dict
            and name not in resampled
            and not _same_shape(name, state_dict[name], shape, first_conv)
        ],
    }
    found = [f"{what} {_first(names)}" for what, names in problems.items() if names]
    if found:
        raise ValueError(f"the weight file does not fit {cfg['architecture']}: {'; '.join(found)}")
    _require_class_count(state_dict, cfg)


def _classifiers(cfg: dict[str, Any]) -> tuple[str, ...]:
    names = cfg["classifier"]
    return (names,) if isinstance(names, str) else tuple(names)


def _require_class_count(state_dict: dict[str, torch.Tensor], cfg: dict[str, Any]) -> None:
    weight = state_dict.get(f"{_classifiers(cfg)[0]}.weight")
    if weight is not None and len(weight) != cfg["num_classes"]:
        raise ValueError(
            f"the weight file has {len(weight)} classes and pretrained_cfg says {cfg['num_classes']}: pass "
            f"pretrained_cfg_overlay=dict(file=..., num_classes={len(weight)})"
        )


def _same_shape(name: str, tensor: Any, shape: torch.Size, first_conv: str) -> bool:
    if not isinstance(tensor, torch.Tensor):
        return False
    if name == f"{first_conv}.weight":  # other input channels are adapted by timm
        return tensor.ndim == len(shape) and tensor.shape[:1] + tensor.shape[2:] == shape[:1] + shape[2:]
    return tensor.shape == shape


def _shape(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        value = value.shape
    return str(tuple(value)) if isinstance(value, torch.Size) else f"(a {type(value).__name__}, no tensor)"


def _first(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
