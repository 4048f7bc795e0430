"""Schedules in a training loop of one's own, such as timm's; the hooks of all trainers do the same."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol


class Schedule(Protocol):
    """What a hook drives: :class:`ProgressiveTokenization`, :class:`AttentionSwitching`, or anything alike."""

    def step(self, progress: float) -> Any:
        """Bring the model to the state of a training progress in [0, 1]."""


def step_schedules(schedules: Schedule | Sequence[Schedule], done: int, total: int) -> None:
    """Bring one or several schedules to where training is; the same numbers twice change nothing.

    Args:
        schedules: One schedule or several.
        done: Epochs, or iterations, that have been trained. More than ``total`` count as ``total``, as for a finished
            run that is resumed.
        total: Epochs, or iterations, of the whole training.

    Raises:
        ValueError: if ``done`` or ``total`` is negative, or ``total`` not finite.
    """
    if not (done >= 0 and 0 <= total < float("inf")):
        raise ValueError(f"{done} of {total} steps are done; both must be at least 0, and the total finite")
    progress = done / total if done < total else 1.0
    for schedule in schedules if isinstance(schedules, Sequence) else [schedules]:
        schedule.step(progress)


def scheduled(schedules: Schedule | Sequence[Schedule], total: int, start: int = 0) -> Iterator[int]:
    """``range(start, total)`` that brings schedules to each number before giving it, and to their end after the last.

    A loop that is left early leaves its model in the state that it was trained in::

        for epoch in scheduled([tokens, attention], epochs, start_epoch):
            train_one_epoch(model, loader)

    Args:
        schedules: One schedule or several.
        total: Epochs, or iterations, of the whole training.
        start: The first to train; of a resumed run, how many are done.

    Raises:
        ValueError: as :func:`step_schedules`.
    """
    for done in range(start, total):
        step_schedules(schedules, done, total)
        yield done
    step_schedules(schedules, total, total)
