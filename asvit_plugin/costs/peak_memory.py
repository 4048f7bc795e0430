"""Peak memory of one run of a model: a GPU's by torch's allocator, a CPU's by the resident set of a new process."""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ..exporting import first_line
from .latency_record import LatencySetting
from .runtimes import DTYPES, PACKAGES, make_run
from .training_step import optimizer_bytes

_CHILD = "import sys; from asvit_plugin.costs.peak_memory import report; report(sys.argv[1])"


def device_peak(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that torch had allocated on a GPU at most during a run."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def host_peak(model: nn.Module, shape: tuple[int, ...], setting: LatencySetting) -> tuple[int | None, str]:
    """Bytes of the weights and by how much one run makes a new process grow; of training also gradients and moments.

    Args:
        model: What a new process can unpickle: its classes must be importable there.
        shape: Of the input.
        setting: How it runs, on the CPU.

    Returns:
        The bytes, or None and why there is no figure.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None, "only Linux tells how far the resident set of a process grew"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.pt")
        try:
            torch.save((model, tuple(shape), setting.runtime, setting.dtype, setting.threads, setting.step), file)
        except Exception as error:  # whatever a module's attributes raise when pickled
            return None, f"the model cannot be handed to a new process: {first_line(error)}"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", _CHILD, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
        return None, f"the process that measures it failed: {lines[-1]}"
    return json.loads(done.stdout.splitlines()[-1]), ""


def report(file: str) -> None:
    """Prints the figure of :func:`host_peak`, in the new process."""
    model, shape, runtime, dtype, threads, step = torch.load(file, weights_only=False)
    torch.set_num_threads(threads)
    images = torch.zeros(shape, dtype=DTYPES[dtype])
    weights = sum(tensor.numel() * images.element_size() for tensor in model.state_dict().values())
    if step == "training":
        weights += optimizer_bytes(model, DTYPES[dtype])
    run = make_run(model, images, runtime, step)
    if runtime not in PACKAGES:
        run(images)  # the first run of torch itself loads code; that of other runtimes takes the memory to be measured
    _forget_peak()
    before = _resident("VmRSS")
    run(images)
    print(weights + _resident("VmHWM") - before)


def _forget_peak() -> None:
    """Give freed memory back and let the system's record of the highest resident set start from here."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _resident(field: str) -> int:
    """Bytes of the resident set: "VmRSS" now, "VmHWM" at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
