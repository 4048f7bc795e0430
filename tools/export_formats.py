"""The formats of tools/export.py: how each is written, read back from its file, and compared with the eager model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from asvit_plugin.exporting import first_line, open_onnx, quiet

SUFFIXES = {"onnx": ".onnx", "program": ".pt2", "torchscript": ".pt"}
Shape = tuple[int, int, int, int]
Run = Callable[[torch.Tensor], list[torch.Tensor]]


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


def smallest_size(program: ExportedProgram) -> list[int]:
    """The least height and width that the program allows."""
    images = program.graph_signature.user_inputs[0]
    shape = next(node.meta["val"].shape for node in program.graph.nodes if node.name == images)
    return [
        int(program.range_constraints[side.node.expr].lower) if isinstance(side, torch.SymInt) else int(side)
        for side in shape[2:]
    ]


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
    session = open_onnx(path)
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


def record(path: Path, differences: dict[str, float]) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "largest_differences": differences}
