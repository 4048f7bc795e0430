"""Schedules as a hook of mmengine's runner, for configs: ``custom_imports`` of this module registers it."""

from collections.abc import Mapping, Sequence
from typing import Any

from timm.utils import unwrap_model
from torch import nn

from .. import schedules as available
from .loop import Schedule, step_schedules

try:
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS
    from mmengine.runner import Runner
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "asvit_plugin.hooks.mmengine_hook needs mmengine and OpenCV: pip install 'asvit-plugin[openmmlab]'"
    ) from error

_NAMES = ("AttentionSwitching", "ProgressiveTokenization")


@HOOKS.register_module()
class ScheduleHook(Hook):
    """Brings schedules to ``iter / max_iters`` before the first iteration, before each, and after the last.

    It has no state, and a resumed run is where it was. A run that stops early leaves the model in the state that it was
    trained in. mmengine's ``EMAHook`` validates in the model itself, so its copy need not follow.

    Args:
        schedules: One or several configs, each a schedule's name (or class) as ``type`` and its arguments without the
            model. Two for one model belong in one hook.
        module: Path of the timm model in the runner's, such as "backbone.model"; None for the runner's model itself,
            in which ``ProgressiveTokenization`` finds the backbone.

    Raises:
        ValueError: for another ``type``; when training begins, for a path that leads nowhere.
    """

    def __init__(self, schedules: Mapping[str, Any] | Sequence[Mapping[str, Any]], module: str | None = None) -> None:
        self.configs = [schedules] if isinstance(schedules, Mapping) else list(schedules)
        for config in self.configs:
            _schedule_class(config)
        self.module = module
        self.schedules: list[Schedule] = []

    def before_train(self, runner: Runner) -> None:
        model = _find(runner.model, self.module)
        # all are made before any is stepped: what one sets, another may read when it is made
        self.schedules = [_make(config, model) for config in self.configs]
        self._step(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._step(runner)

    def after_train(self, runner: Runner) -> None:
        self._step(runner)

    def _step(self, runner: Runner) -> None:
        step_schedules(self.schedules, runner.iter, runner.max_iters)


def _schedule_class(config: Mapping[str, Any]) -> Any:
    kind = config.get("type") if isinstance(config, Mapping) else config
    if isinstance(kind, type) and callable(getattr(kind, "step", None)):  # mmengine's lazy configs
        return kind
    if kind not in _NAMES:
        raise ValueError(f"schedules has type {kind!r}; it must be one of {', '.join(_NAMES)}")
    return getattr(available, kind)


def _make(config: Mapping[str, Any], model: nn.Module) -> Schedule:
    return _schedule_class(config)(model, **{key: value for key, value in config.items() if key != "type"})


def _find(model: nn.Module, path: str | None) -> nn.Module:
    model = unwrap_model(model)
    try:
        return model.get_submodule(path or "")
    except AttributeError as error:
        raise ValueError(f"module is {path!r}; it must be the path of a module in {type(model).__name__}") from error
