"""One step of training as something to time: forward in train mode, cross entropy, backward, AdamW."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def training_step(model: nn.Module, forward: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function of an input that trains a model on labels of its own choice and gives the loss.

    AdamW steps with a learning rate of 0: the arithmetic is that of any other, and however often it is timed the
    hundredth step is still the first.

    Args:
        model: In train mode; parameters that need no gradient stay out, as frozen ones do.
        forward: What computes the model's output, such as the model itself or a compiled form of it.

    Raises:
        ValueError: No parameter needs a gradient.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not learning:
        raise ValueError("no parameter needs a gradient, so there is nothing to train")
    optimizer = torch.optim.AdamW(learning, lr=0.0)

    def run(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            optimizer.zero_grad()
            loss = mean_cross_entropy(forward(images))
            loss.backward()
            optimizer.step()
        return loss.detach()

    return run


def mean_cross_entropy(outputs: Any) -> torch.Tensor:
    """Cross entropy with labels 0, 1, 2, ... of the batch, averaged over the outputs of a model that gives several.

    Args:
        outputs: Logits (B, classes, ...), or a nested tuple, list or dict of such.
    """
    losses = [F.cross_entropy(logits.float(), _labels(logits)) for logits in _tensors(outputs)]
    if not losses:
        raise ValueError("the model gave no logits to train on")
    return torch.stack(losses).mean()


def optimizer_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes that a training step keeps beside the weights: a gradient and AdamW's two moments of each that learns."""
    return 3 * dtype.itemsize * sum(each.numel() for each in model.parameters() if each.requires_grad)


@contextmanager
def kept_random_state(device: torch.device | str) -> Iterator[None]:
    """Random numbers that are drawn meanwhile, as by dropout, are as if they had not been."""
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        yield


def _tensors(outputs: Any) -> Iterator[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for each in outputs.values():
            yield from _tensors(each)
    elif isinstance(outputs, Sequence):
        for each in outputs:
            yield from _tensors(each)


def _labels(logits: torch.Tensor) -> torch.Tensor:
    if logits.ndim < 2:
        raise ValueError(f"logits have the shape {list(logits.shape)}; they must be (batch, classes, ...)")
    batch, classes, *rest = logits.shape
    labels = torch.arange(batch, device=logits.device) % classes
    return labels.view(-1, *(1 for _ in rest)).expand(batch, *rest)
