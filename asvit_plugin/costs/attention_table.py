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
from .latency_record import hardware_name

ATTENTION_RUNTIMES = ("eager", "compile")


@dataclass(frozen=True)
class AttentionTiming:
    """Seconds of one attention block with softmax and in linear form, at one number of tokens.

    Attributes:
        num_heads: Heads.
        head_dim: Channels per head.
        tokens: Tokens that attend to each other.
        softmax: Seconds for a batch with softmax.
        linear: Seconds for a batch in linear form.
        batch_size: Inputs at once.
        threads: CPU threads.
        ratio_low: Softmax's seconds over linear's in the worst tenth of the rounds; None where only the seconds are
            known.
    """

    num_heads: int
    head_dim: int
    tokens: int
    softmax: float
    linear: float
    batch_size: int = 1
    threads: int = 1
    ratio_low: float | None = None

    @property
    def curve(self) -> tuple[int, int, int, int]:
        """What timings at several numbers of tokens share."""
        return self.num_heads, self.head_dim, self.batch_size, self.threads

    @property
    def pays(self) -> bool:
        """Whether linear attention was faster, by more than the timing's own spread."""
        return (self.softmax / self.linear if self.ratio_low is None else self.ratio_low) > 1


def attention_table_path() -> Path:
    """This machine's file: ``asvit_plugin/attention.json`` in the user's cache folder."""
    return cache_file("attention.json")


def read_attention_timings(
    device: torch.device | str, runtime: str = "eager", path: str | Path | None = None, dtype: str = "float32"
) -> list[AttentionTiming]:
    """Timings of a device, runtime and dtype; none where nothing has been measured.

    Raises:
        ValueError: if ``path`` is given and cannot be read, or the file is no table.
    """
    file = Path(path) if path else attention_table_path()
    if path is None and not file.exists():
        return []
    try:
        rows = json.loads(file.read_text()).get(_name(device, runtime, dtype), [])
        return [AttentionTiming(**row) for row in rows]
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"the table of attention timings cannot be read from {file}: {error}") from error


def write_attention_timings(
    timings: Iterable[AttentionTiming],
    device: torch.device | str,
    runtime: str,
    path: str | Path | None = None,
    dtype: str = "float32",
) -> Path:
    """Put timings of a device, runtime and dtype in the place of earlier ones of the same shapes."""
    file = Path(path) if path else attention_table_path()
    with locked(file):
        known = read_attention_timings(device, runtime, file, dtype) if file.exists() else []
        rows = {(*each.curve, each.tokens): asdict(each) for each in (*known, *timings)}
        table = json.loads(file.read_text()) if file.exists() else {}
        table[_name(device, runtime, dtype)] = [rows[key] for key in sorted(rows)]
        write_atomically(file, lambda out: out.write((json.dumps(table, indent=1) + "\n").encode()))
    return file


def _name(device: torch.device | str, runtime: str, dtype: str) -> str:
    """Where in the file they are."""
    return f"{hardware_name(device)}, {runtime}, {dtype}"


def break_even_tokens(head_dim: int, timings: Iterable[AttentionTiming] = (), num_heads: int | None = None) -> float:
    """Tokens from which on linear attention is the faster one.

    Heads, batches and threads each have a curve of their own over the tokens. The number lies behind the last slower
    timing of every curve, and is one that was measured: none between a slower and a faster one is taken. A curve that
    ends slower goes on as the others do.

    Args:
        head_dim: Channels per head.
        timings: Measured ones; those of this head_dim decide.
        num_heads: Heads; where timings of so many are there, only they decide.

    Returns:
        The smallest measured number from which on linear was always faster (infinity if it never was). Where nothing
        was measured, 8 * head_dim: the products alone break even at head_dim, and norms and convolution are not free.
    """
    own = [each for each in timings if each.head_dim == head_dim]
    own = [each for each in own if each.num_heads == num_heads] or own
    if not own:
        return 8 * head_dim
    curves = {each.curve: [one for one in own if one.curve == each.curve] for each in own}
    crossing = [curve for curve in curves.values() if not all(each.pays for each in curve)]
    return max((_break_even(curve, own) for curve in crossing), default=min(each.tokens for each in own))


def _break_even(curve: list[AttentionTiming], all_curves: list[AttentionTiming]) -> float:
    last_slower = max(each.tokens for each in curve if not each.pays)
    known = curve if any(each.tokens > last_slower for each in curve) else all_curves
    return min((each.tokens for each in known if each.tokens > last_slower and each.pays), default=math.inf)
