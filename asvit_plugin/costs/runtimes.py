"""One model in several runtimes: eager, torch.compile, TorchScript, ONNX Runtime and OpenVINO."""

import copy
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checks import check_choice
from ..exporting import first_line, open_onnx, quiet, trace, write_onnx
from .training_step import kept_random_state, training_step

RUNTIMES = ("eager", "compile", "torchscript", "onnxruntime", "openvino")
STEPS = ("forward", "training")
TRAINING_RUNTIMES = ("eager", "compile")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PACKAGES = {"onnxruntime": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
_ONNX_DTYPES = ("float32", "float16")  # NumPy, which carries inputs to ONNX Runtime, has no bfloat16
_COMPILED_MODELS = 1024  # of one class; beyond torch's own limit of 8 a model would run eagerly without a word

Run = Callable[[torch.Tensor], Any]


def check_runtime(
    runtime: str, device: torch.device | str = "cpu", dtype: str = "float32", step: str = "forward"
) -> None:
    """Refuse what a runtime cannot do.

    Raises:
        ModuleNotFoundError: It is not installed; says what to install.
        ValueError: No such runtime, dtype or step, or the runtime does not take this device, dtype or step.
    """
    check_choice("runtime", runtime, RUNTIMES)
    check_choice("dtype", dtype, tuple(DTYPES))
    check_choice("step", step, STEPS)
    if step == "training" and runtime not in TRAINING_RUNTIMES:
        able = " and ".join(map(repr, TRAINING_RUNTIMES))
        raise ValueError(f"step is 'training'; runtime {runtime!r} runs models forward only, and {able} train them")
    missing = [name for name in PACKAGES.get(runtime, ()) if importlib.util.find_spec(name) is None]
    if missing:
        needed = " and ".join(missing)
        raise ModuleNotFoundError(f"runtime {runtime!r} needs {needed}: pip install 'asvit-plugin[latency]'")
    if runtime in PACKAGES and torch.device(device).type != "cpu":
        raise ValueError(f"device is '{device}'; runtime {runtime!r} is measured on 'cpu' only")
    taken = _dtypes_of(runtime)
    if dtype not in taken:
        raise ValueError(f"dtype is {dtype!r}; runtime {runtime!r} takes {', '.join(map(repr, taken))} here")


def make_run(model: nn.Module, example: torch.Tensor, runtime: str = "eager", step: str = "forward") -> Run:
    """A function of an input that runs a copy of the model; the model itself is left alone.

    Args:
        model: Any module of one tensor.
        example: Input whose shape, dtype and device those of every call must be.
        runtime: One of ``RUNTIMES``. It uses torch's number of threads at the time of this call.
        step: "forward", in eval mode, or "training", all in the input's dtype; see :func:`training_step`.

    Returns:
        What gives the model's output, or the loss of training; it is ready, that is compiled.

    Raises:
        ModuleNotFoundError: The runtime is not installed; says what to install.
        ValueError: The runtime does not take the device, dtype or step, or cannot run the model.
    """
    dtype = next((name for name, each in DTYPES.items() if each == example.dtype), str(example.dtype))
    check_runtime(runtime, example.device, dtype, step)
    with blamed(model, example, runtime):
        if step == "training":
            return _training(copy.deepcopy(model).to(example.device, example.dtype).train(), example, runtime)
        ready = copy.deepcopy(model).eval().requires_grad_(False)
        # OpenVINO is given single precision and told what to compute in.
        ready = ready.to(example.device, torch.float32 if runtime == "openvino" else example.dtype)
        return _MAKERS[runtime](ready, example)


def synchronize(device: torch.device | str) -> None:
    """Wait until a device has done what it was given; a CPU always has."""
    if torch.device(device).type != "cpu":
        torch.get_device_module(device).synchronize(device)


@contextmanager
def blamed(model: nn.Module, example: torch.Tensor, runtime: str) -> Iterator[None]:
    """Turn any error, for runtimes have many of their own, into a ValueError of one line."""
    try:
        yield
    except Exception as error:
        what = f"{type(model).__name__} of an input {list(example.shape)} in {str(example.dtype)[6:]}"
        raise ValueError(f"runtime {runtime!r} cannot run {what} on '{example.device}': {first_line(error)}") from error


def _eager(model: nn.Module, example: torch.Tensor) -> Run:
    def run(images: torch.Tensor) -> Any:
        with torch.inference_mode():
            return model(images)

    return run


def _compile(model: nn.Module, example: torch.Tensor) -> Run:
    return _compiled(_eager(torch.compile(model, dynamic=False), example), example)


def _training(model: nn.Module, example: torch.Tensor, runtime: str) -> Run:
    if runtime == "eager":
        return training_step(model, model)
    run = training_step(model, torch.compile(model, dynamic=False))
    with kept_random_state(example.device):
        return _compiled(run, example)


def _compiled(run: Run, example: torch.Tensor) -> Run:
    """The same function, after the call in which torch compiles."""
    limits = {"recompile_limit": _COMPILED_MODELS, "accumulated_recompile_limit": _COMPILED_MODELS}
    with torch._dynamo.config.patch(**limits, fail_on_recompile_limit_hit=True):
        run(example)
    return run


def _torchscript(model: nn.Module, example: torch.Tensor) -> Run:
    with quiet(), torch.no_grad():
        traced = torch.jit.trace(model, example, check_trace=False)
        run = _eager(torch.jit.optimize_for_inference(torch.jit.freeze(traced)), example)
        for _ in range(3):  # the first calls record shapes and specialise the graph
            run(example)
    return run


def _onnxruntime(model: nn.Module, example: torch.Tensor) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        session = open_onnx(_onnx_file(model, example, folder))
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _openvino(model: nn.Module, example: torch.Tensor) -> Run:
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[str(example.dtype)[6:]],
        "PERFORMANCE_HINT": "LATENCY",
    }
    with tempfile.TemporaryDirectory() as folder:
        compiled = core.compile_model(core.read_model(_onnx_file(model, example.float(), folder)), "CPU", settings)
    request = compiled.create_infer_request()

    def run(images: torch.Tensor) -> Any:
        return torch.from_numpy(request.infer([images.float().numpy()], share_inputs=True)[0])

    return run


def _onnx_file(model: nn.Module, example: torch.Tensor, folder: str) -> Path:
    path = Path(folder, "model.onnx")
    write_onnx(trace(model, example.shape, dtype=example.dtype), path, ["output"])
    return path


def _dtypes_of(runtime: str) -> tuple[str, ...]:
    if runtime == "onnxruntime":
        return _ONNX_DTYPES
    if runtime == "openvino":  # it would compute in single precision, without a word, what the CPU has no units for
        import openvino

        able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return tuple(
            name for name, each in (("float32", "FP32"), ("bfloat16", "BF16"), ("float16", "FP16")) if each in able
        )
    return tuple(DTYPES)


_MAKERS = {
    "eager": _eager,
    "compile": _compile,
    "torchscript": _torchscript,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
