"""The formats of tools/export.py: how each is written, read back from its file, and compared with the eager model."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from timm.layers import PatchEmbed
from torch import nn
from torch.export import Dim, ExportedProgram

SUFFIXES = {"onnx": ".onnx", "program": ".pt2", "torchscript": ".pt"}
DYNAMIC_AXES = {"size": {0: "batch", 2: "height", 3: "width"}, "batch": {0: "batch"}, "none": {}}
Shape = tuple[int, int, int, int]
Run = Callable[[torch.Tensor], list[torch.Tensor]]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' progress and warnings; errors are raised as ever."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def blamed(what: str) -> Iterator[None]:
    """Turn any error, for exporters and runtimes have many of their own, into a RuntimeError of one line."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"{what}: {first_line(error)}") from error


def as_list(outputs: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


def shapes_to_compare(shape: Shape, dynamic: str) -> list[Shape]:
    """The exported shape; where dynamic, one image of it, and another batch of another, odd, oblong size."""
    batch, channels, height, width = shape
    if dynamic == "none":
        return [shape]
    if dynamic == "batch":
        return [shape, (1, channels, height, width), (batch + 1, channels, height, width)]
    tall, wide = height + 11 | 1, width * 3 // 2 | 1
    return [shape, (1, channels, height, width), (batch + 1, channels, tall, wide + 2 if wide == tall else wide)]


def _whole_number_grid(self: PatchEmbed, img_size: tuple[int, int]) -> tuple[int, int]:
    """timm's ``PatchEmbed.dynamic_feat_size`` without ``math.ceil``, which torch.export.save cannot write."""
    more = [side - 1 if self.dynamic_img_pad else 0 for side in self.patch_size]
    return tuple((side + extra) // length for side, extra, length in zip(img_size, more, self.patch_size))


def trace(model: nn.Module, shape: Shape, dynamic: str) -> ExportedProgram:
    """``torch.export`` with the dimensions of ``dynamic`` free; the comparison shows that they are.

    ``Dim.AUTO``, because explicit ranges are refused for what is a guard on no result: sums of padding and strides
    that torch cannot prove for every size. A size is traced that is neither small nor a round number, so that no
    grid of one token and no absent padding is taken for a rule; tracing computes nothing.
    """
    batch, channels, height, width = shape
    if dynamic == "size":
        height, width = 2 * height + 1, 3 * width + 2 | 1
    dims = dict.fromkeys(DYNAMIC_AXES[dynamic], Dim.AUTO)
    images = torch.randn(batch, channels, height, width)
    with quiet(), torch.no_grad(), patch.object(PatchEmbed, "dynamic_feat_size", _whole_number_grid):
        program = torch.export.export(model, (images,), dynamic_shapes=(dims,))
    if dynamic == "size":
        # With example inputs torch would check guards at every call, among them those on the strides of cropped
        # tensors, which hold at some sizes only and change no result. Ranges of the sizes are checked all the same.
        program.example_inputs = None
    return program


def smallest_size(program: ExportedProgram) -> list[int]:
    """The least height and width that the program allows."""
    images = program.graph_signature.user_inputs[0]
    shape = next(node.meta["val"].shape for node in program.graph.nodes if node.name == images)
    return [
        int(program.range_constraints[side.node.expr].lower) if isinstance(side, torch.SymInt) else int(side)
        for side in shape[2:]
    ]


def write_onnx(program: ExportedProgram, path: Path, names: list[str], dynamic: str) -> int:
    """Write a file with all weights inside; returns its opset."""
    shapes = {program.graph_signature.user_inputs[0]: DYNAMIC_AXES[dynamic]} if DYNAMIC_AXES[dynamic] else None
    with quiet():
        done = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=names,
            dynamic_shapes=shapes,
        )
        done.save(path, external_data=False)
    return done.model.opset_imports[""]


def write_program(program: ExportedProgram, path: Path) -> None:
    with quiet():
        torch.export.save(program, path)


def write_torchscript(model: nn.Module, path: Path) -> None:
    with quiet():
        torch.jit.save(torch.jit.script(model), path)


def read_back(fmt: str, path: Path) -> Run:
    """What the file computes, as a function of a batch of images."""
    if fmt == "onnx":
        return _read_onnx(path)
    with quiet():
        module = torch.export.load(path).module() if fmt == "program" else torch.jit.load(path)

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        with quiet(), torch.no_grad():
            return as_list(module(images))

    return run


def _read_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(each) for each in session.run(None, {"images": images.numpy()})]


def compare(model: nn.Module, run: Run, shapes: list[Shape]) -> dict[str, float]:
    """Largest absolute difference to the eager model for each shape of images.

    Raises:
        RuntimeError: where the file takes no such images, or gives other shapes.
    """
    differences = {}
    generator = torch.Generator().manual_seed(0)
    for shape in shapes:
        images = torch.randn(shape, generator=generator)
        with torch.no_grad():
            wanted = as_list(model(images))
        name = "x".join(map(str, shape))
        with blamed(f"it takes no images of {name}"):
            found = run(images)
        if [each.shape for each in found] != [each.shape for each in wanted]:
            raise RuntimeError(f"for images of {name} it gives {_sizes(found)}; the model gives {_sizes(wanted)}")
        # Not max(): NaN must win.
        differences[name] = torch.stack([(a - b).abs().max() for a, b in zip(found, wanted)]).amax().item()
    return differences


def _sizes(tensors: list[torch.Tensor]) -> str:
    return ", ".join(str(list(each.shape)) for each in tensors)


def first_line(error: BaseException) -> str:
    """What an error says, in a line: exporters append pages of their graph."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def record(path: Path, differences: dict[str, float]) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "largest_differences": differences}
