"""Schedules as a callback of Lightning's trainer."""

from collections.abc import Sequence
from typing import Any

from .loop import Schedule, step_schedules
from .making import ScheduleSource, check_sources, make_schedules

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "asvit_plugin.hooks.lightning_callback needs lightning: pip install 'asvit-plugin[lightning]'"
    ) from error


class ScheduleCallback(Callback):
    """Brings schedules to optimizer steps done / to do: before the first batch, before each, and after the last.

    It has no state, so nothing of it is in a checkpoint, and a resumed run is where it was. A run that stops early
    leaves the model in the state that it was trained in. Lightning's ``WeightAveraging`` validates in the module
    itself, so its copy need not follow.

    Args:
        schedules: One or several, each a schedule, or a function that makes one or several of the
            ``LightningModule`` when fitting begins. Two for one model belong in one callback.

    Raises:
        ValueError: for anything else; when fitting begins, for a trainer that does not say how long it will train.
    """

    def __init__(self, schedules: ScheduleSource | Sequence[ScheduleSource]) -> None:
        self.sources = check_sources(schedules)
        self.schedules: list[Schedule] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not pl_module.automatic_optimization and trainer.max_steps == -1:
            raise ValueError(
                "max_steps is -1 and the module optimizes by hand; max_steps must be set, for Lightning counts the "
                "steps of all optimizers but cannot foresee them"
            )
        self.schedules = make_schedules(self.sources, pl_module)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._step(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step(trainer)
        self.schedules = []  # the module may now finish() its model, which none can drive any more

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step(trainer)  # for a finished run that is resumed: of it Lightning calls no on_train_...

    def _step(self, trainer: Trainer) -> None:
        total = trainer.estimated_stepping_batches
        if not 0 <= total < float("inf"):  # -1 or infinite
            raise ValueError("max_steps is -1; it must be set where Lightning cannot tell the length of training")
        step_schedules(self.schedules, trainer.global_step, int(total))
