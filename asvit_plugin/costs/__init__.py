"""What a model costs."""

from .analytic import PiTShape, ViTShape
from .attention_table import (
    RUNTIMES,
    AttentionTiming,
    break_even_tokens,
    read_attention_timings,
    write_attention_timings,
)
from .counted import cost_table, macs, params, run_on_meta

__all__ = [
    "RUNTIMES",
    "AttentionTiming",
    "PiTShape",
    "ViTShape",
    "break_even_tokens",
    "cost_table",
    "macs",
    "params",
    "read_attention_timings",
    "run_on_meta",
    "write_attention_timings",
]
