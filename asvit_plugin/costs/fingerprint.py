"""What tells models apart whose speed differs, whichever way they were built."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def describe_model(model: nn.Module) -> str:
    """Name of a model's architecture and the model's fingerprint."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return f"{cfg.get('architecture') or type(model).__name__} {fingerprint(model)}"


def fingerprint(model: nn.Module) -> str:
    """Hash of the classes, plain attributes (heads, strides, ...) and tensor shapes of all modules of a model.

    It covers whatever arguments the model was built with, and later surgery, in any process; not the model's code.
    """
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        plain = {key: value for key, value in vars(module).items() if key != "training" and _is_plain(value)}
        tensors = {key: list(tensor.shape) for key, tensor in _own_tensors(module)}
        record = [name, type(module).__module__, type(module).__qualname__, plain, tensors]
        digest.update(json.dumps(record, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)
