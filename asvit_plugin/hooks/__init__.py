"""Schedules driven by trainers: a plain loop here; detectron2, mmengine and Lightning in modules of their own.

The latter are not imported from here, for each needs its trainer: ``detectron2_hook``, ``mmengine_hook`` and
``lightning_callback``.
"""

from .loop import Schedule, scheduled, step_schedules

__all__ = ["Schedule", "scheduled", "step_schedules"]
