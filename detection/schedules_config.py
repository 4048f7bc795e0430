"""The project's schedules from a config: made of the trunk, before training begins, for the hook that steps them."""

from typing import Any

from detection_config import Config, is_lazy
from detectron2.utils.registry import locate
from torch import nn

from asvit_plugin import AttentionSwitching, ProgressiveTokenization
from asvit_plugin.backbones.building import plain
from asvit_plugin.backbones.weights import find_trunk


def make_schedules(cfg: Config, model: nn.Module) -> list[Any]:
    """The schedules that a config asks for, of the trunk in a detector; none is stepped yet.

    Raises:
        ValueError: There is no trunk, it cannot be driven so, or a value is out of range.
    """
    wanted = _lazy_schedules(cfg) if is_lazy(cfg) else _yacs_schedules(cfg)
    if not wanted:
        return []
    trunk = find_trunk(model)[1].model
    return [make(trunk, **arguments) for make, arguments in wanted]


def _yacs_schedules(cfg: Config) -> list[tuple[Any, dict[str, Any]]]:
    node, wanted = cfg.SCHEDULES, []
    if node.PROGRESSIVE_TOKENIZATION:
        wanted.append((ProgressiveTokenization, {"phases": plain(node.PHASES) or None}))
    if node.ATTENTION_SWITCHING:
        names = ("blend_until", "mask_from", "linear_from", "threshold")
        wanted.append((AttentionSwitching, {name: node[name.upper()] for name in names}))
    return wanted


def _lazy_schedules(cfg: Config) -> list[tuple[Any, dict[str, Any]]]:
    """``train.schedules``: what LazyCall makes, without the model, or dictionaries with ``_target_``."""
    wanted = []
    for index, node in enumerate(cfg.train.schedules):
        arguments = plain(node) if hasattr(node, "items") else {}
        target = arguments.pop("_target_", None)
        if target is None:
            raise ValueError(
                f"train.schedules[{index}] is {node!r}; it must be L(ProgressiveTokenization)(...) or alike"
            )
        wanted.append((locate(target) if isinstance(target, str) else target, arguments))
    return wanted
