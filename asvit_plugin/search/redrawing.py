"""Nets of a given architecture with weights drawn anew: what a score is averaged over."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from timm.layers import trunc_normal_
from timm.utils import unwrap_model
from torch import nn


@dataclass(frozen=True)
class Draw:
    """One repeat of a measurement.

    Attributes:
        model: A copy of the net with new weights: float32, train mode without dropout, no gradients asked for.
        generator: For the repeat's inputs; on the CPU, so that every device sees the same numbers.
    """

    model: nn.Module
    generator: torch.Generator


def draws(model: nn.Module, repeats: int, seed: int, device: torch.device | str | None) -> Iterator[Draw]:
    """Copies of a net, each with weights and a generator that follow from (seed, number of the repeat).

    The given model and the global random numbers stay as they are.

    Args:
        model: Any timm model; DDP and compile wrappers are looked through.
        repeats: How many; the first ones do not depend on it.
        seed: A whole number.
        device: Where the copies go; None for the model's own.

    Raises:
        ValueError: for no repeats, or a model on the meta device.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; there must be at least 1")
    model = unwrap_model(model)
    own_device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if own_device.type == "meta":
        raise ValueError("model is on the meta device; a score needs one with memory: build it on the CPU or a GPU")
    seeds = torch.randint(2**63 - 1, (repeats, 2), generator=torch.Generator().manual_seed(seed)).tolist()
    for weights_seed, inputs_seed in seeds:
        # Drawn on the CPU: a GPU's generator gives other numbers.
        net = without_dropout(copy.deepcopy(model).to("cpu", torch.float32))
        redraw(net, weights_seed)
        yield Draw(net.to(device or own_device), torch.Generator().manual_seed(inputs_seed))


@torch.no_grad()
def redraw(model: nn.Module, seed: int) -> None:
    """Draw all weights of a model on the CPU anew, by one rule for every family, in place.

    As-ViT's rule: linear weights from a normal distribution (0.02, cut at 2) and biases 0, convolutions as PyTorch
    does, norms and layer scales at their start. Parameters that a module holds itself (position embeddings, class
    tokens) are drawn as linear weights are, and left alone where all their numbers are equal (layer scales).

    Args:
        model: Changed in place.
        seed: Of this draw.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            else:
                _redraw_loose(module)
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _redraw_loose(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        if parameter.numel() > 1 and not (parameter == parameter.flatten()[0]).all():
            trunc_normal_(parameter, std=0.02)


def without_dropout(model: nn.Module) -> nn.Module:
    """Train mode with every kind of dropout off, without checkpointing and gradients; in place."""
    model.train().requires_grad_(False)
    if hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing(False)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0  # attention hands this number to its fused kernel
            module.eval()
        if hasattr(module, "drop_prob"):  # timm's DropPath and DropBlock
            module.drop_prob = 0.0
    return model
