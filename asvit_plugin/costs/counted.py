"""What a model costs by counting: multiply-accumulates and parameters, on meta tensors."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from timm.models import get_model_input_config
from timm.utils import unwrap_model
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from ..exporting import first_line
from ..modes import evaluating


def params(model: nn.Module) -> int:
    """Number of parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, input: torch.Tensor | Sequence[int] | None = None) -> int:
    """Multiply-accumulates of one forward pass in eval mode: half of what torch's ``FlopCounterMode`` counts.

    Matrix products, convolutions and attention (fused or not) count; norms, activations and resampling do not.
    Nothing is computed: the model's parameters are replaced by meta tensors for the call, so the largest net costs
    neither time nor memory.

    Args:
        model: Any module; DDP and compile wrappers are looked through.
        input: A tensor, or the shape of one, (B, C, T, H, W) for clips; (C, H, W) stands for a batch of one image, None
            for the model's own input size.

    Returns:
        MACs for the whole batch.

    Raises:
        ValueError: for no input or shape, and for one that the model refuses.
    """
    counter = FlopCounterMode(display=False)
    with _fitting(model, input) as example, counter:
        run_on_meta(model, example)
    return counter.get_total_flops() // 2


@torch.no_grad()
def run_on_meta(model: nn.Module, input: torch.Tensor | Sequence[int] | None = None) -> None:
    """One forward pass in eval mode on meta tensors, for those that watch it; arguments as in :func:`macs`."""
    model = unwrap_model(model)
    state = {name: tensor.detach().to("meta") for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    with evaluating(model):
        functional_call(model, state, (example_input(model, input).to("meta"),))


def cost_table(model: nn.Module, input: torch.Tensor | Sequence[int] | None = None, max_depth: int = 3) -> str:
    """Parameters and MACs of every submodule as a text table, by fvcore; it runs the model once.

    A model on the meta device is run as an empty copy on the CPU. Counts what :func:`macs` counts (fvcore calls a
    multiply-accumulate a flop).

    Args:
        model: Any module; DDP and compile wrappers are looked through.
        input: As for :func:`macs`.
        max_depth: Levels of submodules to show.

    Raises:
        ModuleNotFoundError: without fvcore.
        ValueError: as :func:`macs`.
    """
    try:
        from fvcore.nn import FlopCountAnalysis, flop_count_table
        from fvcore.nn.jit_handles import elementwise_flop_counter
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("cost_table needs fvcore: pip install 'asvit-plugin[search]'") from error
    model = unwrap_model(model)
    if any(parameter.is_meta for parameter in model.parameters()):
        model = copy.deepcopy(model).to_empty(device="cpu")
    device = next((parameter.device for parameter in model.parameters()), None)
    with _fitting(model, input) as example, evaluating(model):
        analysis = FlopCountAnalysis(model, example.to(device))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
        analysis.set_op_handle(**{f"aten::{name}": elementwise_flop_counter(0, 0) for name in _UNCOUNTED})
        return flop_count_table(analysis, max_depth=max_depth)


# Counted by fvcore, but not by torch.
_UNCOUNTED = (
    "adaptive_avg_pool2d",
    "batch_norm",
    "grid_sampler",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "upsample_bilinear2d",
)


def _attention_macs(inputs: list, outputs: list) -> int:
    """MACs of q k^T and of the product with v, from the shapes (..., N, head_dim) of a traced attention call."""
    *batch, queries, head_dim = inputs[0].type().sizes()
    keys, value_dim = inputs[2].type().sizes()[-2:]
    return int(torch.Size(batch).numel()) * queries * keys * (head_dim + value_dim)


def example_input(model: nn.Module, input: torch.Tensor | Sequence[int] | None = None) -> torch.Tensor:
    """The given tensor, or zeros of the given shape or of the model's own input size; see :func:`macs`."""
    if isinstance(input, torch.Tensor):
        return input
    if input is None and getattr(model, "pretrained_cfg", None) is None:
        raise ValueError(f"input is None, and a {type(model).__name__} names no input size: give a tensor or a shape")
    given = get_model_input_config(model)["input_size"] if input is None else input
    shape = tuple(given) if isinstance(given, Sequence) else ()
    if len(shape) not in (3, 4, 5) or not all(isinstance(side, int) and side > 0 for side in shape):
        raise ValueError(
            f"input is {input!r}; it must be a tensor, or the shape (C, H, W) or (B, C, H, W) of one, or "
            "(B, C, T, H, W) of clips"
        )
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return torch.zeros(shape if len(shape) > 3 else (1, *shape), dtype=dtype)


@contextmanager
def _fitting(model: nn.Module, input: torch.Tensor | Sequence[int] | None) -> Iterator[torch.Tensor]:
    """Give the example input, and turn what a model raises for one that it does not take into one sentence."""
    model = unwrap_model(model)
    example = example_input(model, input)
    try:
        yield example
    except (NotImplementedError, torch.OutOfMemoryError):  # whatever the input
        raise
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        image = (
            ""
            if input is None or isinstance(input, torch.Tensor) or len(input) == example.ndim
            else " (three numbers mean one image)"
        )
        raise ValueError(
            f"{type(model).__name__} takes no input of shape {list(example.shape)}{image}: {first_line(error)}"
        ) from error
