"""Measured times of softmax and linear attention, one file for each machine, and the token count where linear pays.

``tools/measure_attention.py`` writes the file; ``castle(blocks="auto")`` reads it.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..atomic import write_atomically
from .cache_files import cache_file, locked

ATTENTION_RUNTIMES = ("eager", "compile")


@dataclass(frozen=True)
class AttentionTiming:
    """Seconds of one attention block with softmax and in linear form, at one number of tokens."""

    num_heads: int
    head_dim: int
    tokens: int
    softmax: float
    linear: float


def attention_table_path() -> Path:
    """This machine's file: ``asvit_plugin/attention.json`` in the user's cache folder."""
    return cache_file("attention.json")


def device_name(device: torch.device | str) -> str:
    """What a device is called in the file: its type, and its product name where there may be several."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def read_attention_timings(
    device: torch.device | str, runtime: str = "eager", path: str | Path | None = None
) -> list[AttentionTiming]:
    """Timings of a device and runtime; none where nothing has been measured.

    Raises:
        ValueError: if ``path`` is given and cannot be read, or the file is no table.
    """
    file = Path(path) if path else attention_table_path()
    if path is None and not file.exists():
        return []
    try:
        rows = json.loads(file.read_text()).get(f"{device_name(device)}, {runtime}", [])
        return [AttentionTiming(**row) for row in rows]
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"the table of attention timings cannot be read from {file}: {error}") from error


def write_attention_timings(
    timings: Iterable[AttentionTiming], device: torch.device | str, runtime: str, path: str | Path | None = None
) -> Path:
    """Put timings of a device and runtime in the place of earlier ones of the same shapes."""
    file = Path(path) if path else attention_table_path()
    with locked(file):
        known = read_attention_timings(device, runtime, file) if file.exists() else []
        rows = {(each.num_heads, each.head_dim, each.tokens): asdict(each) for each in (*known, *timings)}
        table = json.loads(file.read_text()) if file.exists() else {}
        table[f"{device_name(device)}, {runtime}"] = [rows[key] for key in sorted(rows)]
        write_atomically(file, lambda out: out.write((json.dumps(table, indent=1) + "\n").encode()))
    return file


def break_even_tokens(head_dim: int, timings: Iterable[AttentionTiming] = ()) -> float:
    """Tokens from which on linear attention is the faster one.

    Args:
        head_dim: Channels per head.
        timings: Measured ones; those of this head_dim decide.

    Returns:
        The smallest measured number from which on linear was always faster (infinity if it never was). Where nothing
        was measured, 8 * head_dim: the products alone break even at head_dim, and norms and convolution are not free.
    """
    own = sorted((each.tokens, each.linear < each.softmax) for each in timings if each.head_dim == head_dim)
    if not own:
        return 8 * head_dim
    slower = [tokens for tokens, pays in own if not pays]
    return min((tokens for tokens, _ in own if tokens > max(slower, default=0)), default=math.inf)
