"""A measured latency and what it belongs to: model, input, device, runtime, dtype, batch, threads and versions."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import timm
import torch
from torch import nn

from .._version import __version__
from ..checks import check_choice
from ..exporting import first_line
from .fingerprint import describe_model
from .runtimes import PACKAGES, check_runtime


@dataclass(frozen=True)
class LatencySetting:
    """How a model is to run.

    Attributes:
        runtime: One of ``RUNTIMES``.
        device: Where it runs.
        dtype: One of ``DTYPES``.
        threads: CPU threads; None for torch's number when this is made.
        clock: "wall", or "cpu": processor time of one thread, without what other programs take of a busy machine.
        step: "forward", or "training": forward in train mode, backward, and a step of AdamW.

    Raises:
        ModuleNotFoundError: The runtime is not installed; says what to install.
        ValueError: A field is out of range, or the runtime does not take the device, dtype or step.
    """

    runtime: str = "eager"
    device: torch.device | str = "cpu"
    dtype: str = "float32"
    threads: int | None = None
    clock: str = "wall"
    step: str = "forward"

    def __post_init__(self) -> None:
        threads = torch.get_num_threads() if self.threads is None else self.threads
        if not isinstance(threads, int) or threads < 1:
            raise ValueError(f"threads is {threads!r}; it must be a whole number of at least 1")
        object.__setattr__(self, "threads", threads)
        try:
            torch.zeros(1, device=self.device).item()
        except (AssertionError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"device is '{self.device}', which cannot be used: {first_line(error)}") from error
        check_runtime(self.runtime, self.device, self.dtype, self.step)
        check_choice("clock", self.clock, ("wall", "cpu"))
        if self.clock == "cpu" and (threads != 1 or torch.device(self.device).type != "cpu"):
            raise ValueError(f"clock is 'cpu' with {threads} threads on '{self.device}'; it needs one thread on 'cpu'")


@dataclass(frozen=True)
class LatencyKey:
    """What two measurements must share to be measurements of the same thing.

    Attributes:
        model: The architecture's name and its fingerprint; see :func:`describe_model`.
        input: Shape of one input, without the batch.
        device: Product name of the device.
        runtime: One of ``RUNTIMES``.
        dtype: One of ``DTYPES``.
        batch: Inputs at once.
        threads: CPU threads.
        clock: "wall" or "cpu".
        versions: Names and versions of what runs the model.
        step: "forward" or "training".
    """

    model: str
    input: tuple[int, ...]
    device: str
    runtime: str
    dtype: str
    batch: int
    threads: int
    clock: str
    versions: tuple[str, ...]
    step: str = "forward"

    @classmethod
    def of(cls, model: nn.Module, shape: Sequence[int], setting: LatencySetting) -> "LatencyKey":
        """The key of a model, the shape (B, ...) of its input, and how it runs."""
        batch, *input = shape
        return cls(
            describe_model(model),
            tuple(input),
            hardware_name(setting.device),
            setting.runtime,
            setting.dtype,
            batch,
            setting.threads,
            setting.clock,
            versions(PACKAGES.get(setting.runtime, ())),
            setting.step,
        )

    @property
    def text(self) -> str:
        """The key as a string, the same in every process."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Latency:
    """How fast a model was.

    Attributes:
        key: What was measured.
        median: Seconds for one batch.
        p10: Seconds that a tenth of the blocks of runs stayed below.
        p90: Seconds that nine tenths stayed below.
        runs: Timed runs.
        drift: Median of the last third of the blocks over that of the first third; far from 1, the machine was not
            itself.
        peak_memory: Bytes of weights and of what one run needs beside them; None where it was not measured.
        no_memory: Why not.
        turns: Median seconds of each turn, in their order.
    """

    key: LatencyKey
    median: float
    p10: float
    p90: float
    runs: int
    drift: float
    peak_memory: int | None = None
    no_memory: str = ""
    turns: tuple[float, ...] = ()

    @property
    def throughput(self) -> float:
        """Inputs per second."""
        return self.key.batch / self.median

    @classmethod
    def of(
        cls,
        key: LatencyKey,
        turns: Sequence[Sequence[float]],
        runs: int,
        peak_memory: int | None = None,
        no_memory: str = "",
    ) -> "Latency":
        """Summary of the seconds per run of blocks of runs, turn by turn, in their order."""
        times = [each for turn in turns for each in turn]
        seconds = torch.tensor(times, dtype=torch.float64)
        median, low, high = _spread(times)
        third = max(len(times) // 3, 1)
        drift = (seconds[-third:].quantile(0.5) / seconds[:third].quantile(0.5)).item()
        medians = tuple(_spread(turn)[0] for turn in turns)
        return cls(key, median, low, high, runs, drift, peak_memory, no_memory, medians)


def speed_ratio(own: Latency, peer: Latency) -> tuple[float, float, float]:
    """How many times as many inputs per second a model takes as a peer, both measured in turn.

    Returns:
        Median, tenth and ninetieth percentile of the ratios of single turns.

    Raises:
        ValueError: They had no turns, or not equally many.
    """
    if not 0 < len(own.turns) == len(peer.turns):
        raise ValueError(f"turns are {len(own.turns)} and {len(peer.turns)}; they must be equally many, at least 1")
    batches = own.key.batch / peer.key.batch
    return _spread([batches * theirs / ours for ours, theirs in zip(own.turns, peer.turns)])


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, tenth and ninetieth percentile."""
    numbers = torch.tensor(values, dtype=torch.float64)
    return tuple(numbers.quantile(torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)).tolist())


def hardware_name(device: torch.device | str) -> str:
    """Product name of a device; of a CPU its model where the system tells, else its architecture."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpu_name() if device.type == "cpu" else device.type


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions(packages: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Versions of torch, timm, this package and further installed ones, as "name version"."""
    own = (f"torch {torch.__version__}", f"timm {timm.__version__}", f"asvit-plugin {__version__}")
    return own + tuple(f"{name} {version(name)}" for name in packages)
