"""What a model costs: counted, and measured on this machine."""

from .analytic import PiTShape, ViTShape
from .attention_table import (
    ATTENTION_RUNTIMES,
    AttentionTiming,
    break_even_tokens,
    read_attention_timings,
    write_attention_timings,
)
from .bandwidth import bandwidth, copy_probe
from .block_latency import BlockTable, LatencyLine, relative_errors
from .counted import cost_table, macs, params, run_on_meta
from .latency import LatencyProbe, measure_in_turn, measure_latency
from .latency_cache import LatencyCache
from .latency_record import Latency, LatencyKey, LatencySetting, speed_ratio
from .runtimes import DTYPES, RUNTIMES, STEPS, make_run

__all__ = [
    "ATTENTION_RUNTIMES",
    "DTYPES",
    "RUNTIMES",
    "STEPS",
    "AttentionTiming",
    "BlockTable",
    "Latency",
    "LatencyCache",
    "LatencyKey",
    "LatencyLine",
    "LatencyProbe",
    "LatencySetting",
    "PiTShape",
    "ViTShape",
    "bandwidth",
    "break_even_tokens",
    "copy_probe",
    "cost_table",
    "macs",
    "make_run",
    "measure_in_turn",
    "measure_latency",
    "params",
    "read_attention_timings",
    "relative_errors",
    "run_on_meta",
    "speed_ratio",
    "write_attention_timings",
]
