"""Nets by file: what the searches of ``tools/`` write as net_STEP.yaml, as the trunk of a detector."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .building import plain

ENTRIES = ("model", "img_size", "model_kwargs")  # those that classification/train.py reads with --config
Size = int | Sequence[int] | None


def is_net_file(name: Any) -> bool:
    """Whether what stands for a model's name is the name of a file."""
    return isinstance(name, str) and name.endswith((".yaml", ".yml"))


def resolve_net(name: str, img_size: Size, model_kwargs: Mapping[str, Any]) -> tuple[str, Size, dict[str, Any]]:
    """A trunk's name, image size and arguments, read from the file if the name is one, else as they are.

    A detector's images have a size of their own: the file's is for where none is given. Any other argument that differs
    from the file's would make another net than the one that was searched for, and is refused.

    Args:
        name: Name of a model, or a file with the entry ``model`` and perhaps ``img_size`` and ``model_kwargs``.
        img_size: Nominal image size in pixels; None for the file's.
        model_kwargs: Further arguments of the model.

    Raises:
        ValueError: The file is not there or no net's, or an argument differs from its own.
    """
    given = plain(model_kwargs)
    if not is_net_file(name):
        return name, img_size, given
    net = _read(name)
    own = plain(net.get("model_kwargs") or {})
    own_size = own.pop("img_size", plain(net.get("img_size")))
    for field in sorted(given.keys() & own.keys()):
        if given[field] != own[field]:
            raise ValueError(f"{field} is {given[field]!r}; the net in {name!r} has {own[field]!r}: leave it out")
    return net["model"], img_size or own_size, own | given


def _read(name: str) -> dict[str, Any]:
    try:
        net = yaml.safe_load(Path(name).read_text())
    except OSError as error:
        raise ValueError(f"name is {name!r}; the file cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"name is {name!r}; the file is no YAML") from error
    if not isinstance(net, dict) or not isinstance(net.get("model"), str):
        raise ValueError(f"name is {name!r}; a net's file must have the entry model, the name of a timm model")
    strange = [str(entry) for entry in net if entry not in ENTRIES]
    if strange:
        raise ValueError(f"name is {name!r}; it has the entry {strange[0]!r}, and a net's file {', '.join(ENTRIES)}")
    if not isinstance(net.get("model_kwargs") or {}, dict):
        raise ValueError(f"name is {name!r}; its model_kwargs must be arguments by name")
    return net
