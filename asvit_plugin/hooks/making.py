"""Schedules that a hook makes itself, since a trainer's model may not exist before training."""

from collections.abc import Callable, Sequence

from timm.utils import unwrap_model
from torch import nn

from .loop import Schedule

# A schedule as it is, or what makes one or several of the trainer's model (free of wrappers): a function or a class.
ScheduleSource = Schedule | Callable[[nn.Module], Schedule | Sequence[Schedule]]


def check_sources(schedules: ScheduleSource | Sequence[ScheduleSource]) -> list[ScheduleSource]:
    """One or several sources as a list.

    Raises:
        ValueError: for what is neither a schedule nor callable.
    """
    sources = list(schedules) if isinstance(schedules, (list, tuple)) else [schedules]
    for source in sources:
        if not _is_schedule(source) and not callable(source):
            raise ValueError(
                f"schedules holds {source!r}; each must have step(progress), or make what has it of a model"
            )
    return sources


def make_schedules(sources: Sequence[ScheduleSource], model: nn.Module) -> list[Schedule]:
    """The schedules of all sources for a trainer's model; none is stepped yet, for what one sets another may read.

    Raises:
        ValueError: where a source makes something else.
    """
    model = unwrap_model(model)
    schedules: list[Schedule] = []
    for source in sources:
        made = source if _is_schedule(source) else source(model)
        schedules += made if isinstance(made, (list, tuple)) else [made]
    for schedule in schedules:
        if not _is_schedule(schedule):
            raise ValueError(f"schedules made {schedule!r}; each function must make what has step(progress), or a list")
    return schedules


def _is_schedule(source: object) -> bool:
    return not isinstance(source, type) and callable(getattr(source, "step", None))
