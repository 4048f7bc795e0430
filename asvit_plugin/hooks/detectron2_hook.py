"""Schedules as a hook of detectron2's trainers."""

from collections.abc import Sequence

from .loop import Schedule, step_schedules
from .making import ScheduleSource, check_sources, make_schedules

try:
    from detectron2.engine import HookBase
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "asvit_plugin.hooks.detectron2_hook needs detectron2; it is on no package index: build it from its repository"
    ) from error


class ScheduleHook(HookBase):
    """Brings schedules to ``iter / max_iter`` before the first iteration, before each, and after the last.

    It has no state, so nothing of it is in a checkpoint (where detectron2 would mix up two hooks of one class), and a
    resumed run is where it was. A run that fails or stops early leaves the model in the state that it was trained in.
    Register it before the hooks that evaluate, for the last evaluation to see the end of the schedules.

    Args:
        schedules: One or several, each a schedule, or a function (or a schedule's class) that makes one or several of
            the trainer's model when training begins. Two for one model belong in one hook.

    Raises:
        ValueError: for anything else.
    """

    def __init__(self, schedules: ScheduleSource | Sequence[ScheduleSource]) -> None:
        self.sources = check_sources(schedules)
        self.schedules: list[Schedule] = []

    def before_train(self) -> None:
        self.schedules = make_schedules(self.sources, self.trainer.model)
        self._step()

    def before_step(self) -> None:
        self._step()

    def after_train(self) -> None:
        self._step()  # detectron2 calls this after a failure too: only of a whole run does iter say max_iter

    def _step(self) -> None:
        step_schedules(self.schedules, self.trainer.iter, self.trainer.max_iter)
