"""What proxies read from any timm model: its size, the pooled feature of the last stage, the outputs of its blocks."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.layers import to_2tuple
from timm.models import get_model_input_config
from timm.utils import unwrap_model
from torch import nn

BLOCK = re.compile(r"(.*\.)?(blocks\.\d+|layer\d\.\d+)")  # transformers and most of timm; ResNets
_ROUNDING = 1e-6  # relative, of a sum; layer norms give 1e-8 in single precision


def image_shape(model: nn.Module, img_size: int | tuple[int, int] | None) -> tuple[int, int, int]:
    """(C, H, W) of the images for a model; an ``img_size`` of None is the model's own."""
    model = unwrap_model(model)
    if getattr(model, "pretrained_cfg", {}) is None:
        raise ValueError(f"{model_name(model)} has None for a pretrained_cfg, which names a timm model's images")
    channels, *own_size = get_model_input_config(model)["input_size"]
    size = tuple(own_size) if img_size is None else to_2tuple(img_size)
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"img_size is {img_size!r}; it must be a number of pixels of at least 1, or (height, width)")
    return (channels, *size)


def model_name(model: nn.Module) -> str:
    """timm's name of a model, or its class."""
    model = unwrap_model(model)
    return (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__


def check_sums(model: nn.Module, outputs: torch.Tensor, what: str, remedy: str) -> None:
    """Refuse outputs (B, ...) whose sums are 0 whatever the weights, as behind a layer norm at its start.

    The gradients of such a sum are rounding errors.

    Raises:
        ValueError: They are.
    """
    rows = outputs.detach().flatten(1)
    if (rows.sum(1).abs() < _ROUNDING * rows.abs().sum(1)).all():
        raise ValueError(
            f"{what} of {model_name(model)} sum to 0 whatever the weights, as behind a layer norm, so there are no "
            f"gradients to measure; {remedy}"
        )


class PooledFeature(nn.Module):
    """A model up to the mean over the positions of its last stage, without the final norm and the head.

    Class and other prefix tokens are not among the positions.

    Args:
        model: Any timm model with ``forward_intermediates``.

    Raises:
        ValueError: for a model without.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not hasattr(model, "forward_intermediates"):
            raise ValueError(
                f"{model_name(model)} has no forward_intermediates, by which timm's models give the feature before "
                "the final norm; this proxy needs it"
            )
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to features (B, channels of the last stage)."""
        (feature,) = self.model.forward_intermediates(
            images, indices=1, norm=False, output_fmt="NCHW", intermediates_only=True
        )
        return feature.mean((2, 3))


@torch.no_grad()
def block_outputs(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Features behind every block of a model, each (tokens of all images, channels); prefix tokens count as tokens.

    Raises:
        ValueError: for a model without blocks under timm's usual names.
    """
    blocks = [module for name, module in model.named_modules() if BLOCK.fullmatch(name)]
    if not blocks:
        raise ValueError(f"{model_name(model)} has no modules named blocks.N or layerN.N, whose outputs are measured")
    outputs: list[torch.Tensor] = []
    handles = [block.register_forward_hook(lambda module, args, output: outputs.append(output)) for block in blocks]
    try:
        model.forward_features(images)
    finally:
        for handle in handles:
            handle.remove()
    channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    return [x.flatten(0, -2) if x.ndim == 3 or channels_last else x.movedim(1, -1).flatten(0, -2) for x in outputs]


@contextmanager
def measuring(proxy: str, model: nn.Module, shape: tuple[int, int, int]) -> Iterator[None]:
    """Arithmetic that every proxy uses, and errors of a model that cannot be measured as one sentence.

    Matrix products and convolutions are not rounded to TF32, and repeat themselves.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    cudnn = torch.backends.cudnn.flags(torch.backends.cudnn.enabled, deterministic=True, allow_tf32=False)
    try:
        with warnings.catch_warnings(), cudnn:
            warnings.filterwarnings(
                "ignore", "There is a performance drop because we have not yet implemented the batch"
            )
            yield
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, AttributeError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())
        size = " x ".join(map(str, shape))
        raise ValueError(f"{proxy} cannot measure {model_name(model)} on images of {size}: {reason}") from error
    finally:
        torch.set_float32_matmul_precision(precision)
