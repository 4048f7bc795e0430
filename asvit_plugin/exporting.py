"""Models as ``torch.export`` programs and ONNX files: what the export tool and the latencies of runtimes share."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from timm.layers import PatchEmbed
from torch import nn
from torch.export import Dim, ExportedProgram

DYNAMIC_AXES = {"size": {0: "batch", 2: "height", 3: "width"}, "batch": {0: "batch"}, "none": {}}
_LONGEST = 600  # characters of an error's line


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


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where that is nothing: exporters append pages of a graph."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."


def _whole_number_grid(self: PatchEmbed, img_size: tuple[int, int]) -> tuple[int, int]:
    """timm's ``PatchEmbed.dynamic_feat_size`` without ``math.ceil``, which torch.export.save cannot write."""
    more = [side - 1 if self.dynamic_img_pad else 0 for side in self.patch_size]
    return tuple((side + extra) // length for side, extra, length in zip(img_size, more, self.patch_size))


def trace(
    model: nn.Module, shape: Sequence[int], dynamic: str = "none", dtype: torch.dtype = torch.float32
) -> ExportedProgram:
    """``torch.export`` with the dimensions of ``dynamic`` free; the comparison shows that they are.

    ``Dim.AUTO``, because explicit ranges are refused for what is a guard on no result: sums of padding and strides
    that torch cannot prove for every size. A size is traced that is neither small nor a round number, so that no
    grid of one token and no absent padding is taken for a rule; tracing computes nothing.

    Args:
        model: In eval mode, on the CPU.
        shape: Of its input: (B, C, H, W), or any where nothing is dynamic.
        dynamic: "size", "batch" or "none"; see ``DYNAMIC_AXES``.
        dtype: Of its input.
    """
    if dynamic == "size":
        batch, channels, height, width = shape
        shape = (batch, channels, 2 * height + 1, 3 * width + 2 | 1)
    dims = dict.fromkeys(DYNAMIC_AXES[dynamic], Dim.AUTO)
    images = torch.randn(*shape, dtype=dtype)
    with quiet(), torch.no_grad(), patch.object(PatchEmbed, "dynamic_feat_size", _whole_number_grid):
        program = torch.export.export(model, (images,), dynamic_shapes=(dims,))
    if dynamic == "size":
        # With example inputs torch would check guards at every call, among them those on the strides of cropped
        # tensors, which hold at some sizes only and change no result. Ranges of the sizes are checked all the same.
        program.example_inputs = None
    return program


def write_onnx(program: ExportedProgram, path: Path, names: list[str], dynamic: str = "none") -> int:
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


def open_onnx(path: Path) -> Any:
    """ONNX Runtime's session of a file, on the CPU with torch's number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
