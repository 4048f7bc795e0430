"""Measured latency, throughput and peak memory of a model, with the key that says what was measured."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from .counted import example_input
from .latency_cache import LatencyCache
from .latency_record import Latency, LatencyKey, LatencySetting
from .peak_memory import device_peak, host_peak
from .runtimes import DTYPES, blamed, make_run, synchronize
from .training_step import kept_random_state

_WARM_UP = 3  # runs before those that count,
_WARM_UP_SECONDS = 5.0  # or fewer where they take longer than this together


class LatencyProbe:
    """A model made ready in a runtime and warmed up, to be timed once or, in turn with others, many times.

    Args:
        model: Any module of one tensor; a copy of it is measured, in eval mode or training.
        input: A tensor, or the shape of one ((C, H, W) stands for a batch of one); None for the model's own input size.
        setting: How it runs.
        memory: Measure peak memory on a CPU too, in a process of its own (some seconds; a GPU's is always measured).
        limit: Seconds that one run may take.

    Raises:
        ValueError: The runtime cannot run the model; says why.
        TimeoutError: One run takes longer than the limit.
    """

    def __init__(
        self,
        model: nn.Module,
        input: torch.Tensor | Sequence[int] | None = None,
        setting: LatencySetting | None = None,
        memory: bool = False,
        limit: float | None = None,
    ) -> None:
        self._setting = setting = setting or LatencySetting()
        self._device = torch.device(setting.device)
        images = input_like(model, input)
        self.key = LatencyKey.of(model, images.shape, setting)
        self._input = images.to(self._device, DTYPES[setting.dtype])
        self._turns: list[list[float]] = []
        self._runs = 0
        before = torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else 0
        with torch_threads(setting.threads):
            self._run = make_run(model, self._input, setting.runtime, setting.step)
            with blamed(model, self._input, setting.runtime), kept_random_state(self._device):
                warm_up = [self._seconds()]
                slow = limit is not None and warm_up[0] > limit
                while not slow and len(warm_up) < _WARM_UP and sum(warm_up) < _WARM_UP_SECONDS:
                    warm_up.append(self._seconds())
        if slow:
            raise TimeoutError(f"one batch took {warm_up[0]:.3g} s, and the limit is {limit:g} s")
        self._shortest = min(warm_up)
        self._memory = self._peak_memory(model, before, memory)

    def run(self, seconds: float = 1.0, fewest: int = 5) -> None:
        """Time blocks of runs for so long, and at least ``fewest``; they join those of earlier calls."""
        with kept_random_state(self._device):
            if self._shortest < seconds:
                self._run_blocks(seconds, fewest)
            else:  # a single run fills the time, so there is no size of block to look for
                with torch_threads(self._setting.threads):
                    self._turns.append([self._seconds() for _ in range(fewest)])
                self._runs += fewest

    def result(self) -> Latency:
        """What all the runs so far say."""
        return Latency.of(self.key, self._turns, self._runs, *self._memory)

    def _run_blocks(self, seconds: float, fewest: int) -> None:
        from torch.utils.benchmark import Timer  # it looks for a CUDA toolkit when imported

        clock = {"timer": time.process_time} if self._setting.clock == "cpu" else {}
        variables = dict(run=self._run, images=self._input)
        timer = Timer("run(images)", globals=variables, num_threads=self._setting.threads, **clock)
        measured = [timer.blocked_autorange(min_run_time=seconds)]
        missing = fewest - len(measured[0].times)
        if missing > 0:
            measured.append(timer.blocked_autorange(min_run_time=(missing - 0.5) * measured[0].median))
        self._turns.append([each for part in measured for each in part.times])
        self._runs += sum(len(part.times) * part.number_per_run for part in measured)

    def _seconds(self) -> float:
        """Of one run."""
        clock = time.process_time if self._setting.clock == "cpu" else time.perf_counter
        synchronize(self._device)
        start = clock()
        self._run(self._input)
        synchronize(self._device)
        return clock() - start

    def _peak_memory(self, model: nn.Module, before: int, wanted: bool) -> tuple[int | None, str]:
        if self._device.type == "cuda":
            with kept_random_state(self._device):
                return device_peak(lambda: self._run(self._input), self._device) - before, ""
        if self._device.type != "cpu":
            return None, f"there is no measure of it on {self._device.type!r}"
        if not wanted:
            return None, "not asked for"
        return host_peak(model, tuple(self._input.shape), self._setting)


def measure_latency(
    model: nn.Module,
    input: torch.Tensor | Sequence[int] | None = None,
    runtime: str = "eager",
    device: torch.device | str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
    seconds: float = 1.0,
    memory: bool = False,
    cache: LatencyCache | None = None,
    step: str = "forward",
) -> Latency:
    """Median seconds of a model for one batch, their spread, and peak memory.

    Args:
        model: Any module of one tensor; a copy of it is measured, in eval mode or training.
        input: A tensor, or the shape of one ((C, H, W) stands for a batch of one); None for the model's own input size.
        runtime: One of ``RUNTIMES``.
        device: Where it runs.
        dtype: One of ``DTYPES``.
        threads: CPU threads; None for torch's present number.
        seconds: How long to time it; at least five blocks of runs are.
        memory: Measure peak memory on a CPU too, in a process of its own (some seconds; a GPU's is always measured).
        cache: Where to look the latency up first, and to keep it.
        step: One of ``STEPS``; "training" is forward in train mode, backward, and a step of AdamW.

    Raises:
        ModuleNotFoundError: The runtime is not installed; says what to install.
        ValueError: The runtime does not take the device, dtype or step or cannot run the model, or a number is out of
            range.
    """
    if not seconds > 0:
        raise ValueError(f"seconds is {seconds!r}; it must be positive")
    setting = LatencySetting(runtime, device, dtype, threads, step=step)
    images = input_like(model, input)
    known = cache.get(LatencyKey.of(model, images.shape, setting)) if cache else None
    if known and (known.peak_memory is not None or not memory):
        return known
    probe = LatencyProbe(model, images, setting, memory)
    probe.run(seconds)
    if cache:
        cache.put(probe.result())
    return probe.result()


def measure_in_turn(probes: Sequence[LatencyProbe], seconds: float = 1.0, rounds: int = 5) -> list[Latency]:
    """Time several models side by side, so that a machine that slows down slows them all.

    Args:
        probes: Models that are ready.
        seconds: How long to time each, in all.
        rounds: Turns that each gets.
    """
    for _ in range(rounds):
        for probe in probes:
            probe.run(seconds / rounds, fewest=1)
    return [probe.result() for probe in probes]


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Another number of CPU threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def input_like(model: nn.Module, input: torch.Tensor | Sequence[int] | None) -> torch.Tensor:
    """The given tensor, or random numbers of the shape that is meant."""
    if isinstance(input, torch.Tensor):
        return input
    return torch.randn(example_input(model, input).shape, generator=torch.Generator().manual_seed(0))
