"""Images for proxies that want some: Gaussian noise, scikit-learn's digits, a folder, or a tensor of one's own."""

from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F
from timm.data import ImageDataset, create_transform, resolve_model_data_config
from torch import nn

Images: TypeAlias = int | torch.Tensor | str | Path

BATCH = 16  # images of a batch from digits or a folder, as the authors take them


def check_images(images: Images, shape: tuple[int, int, int], at_least: int = 1) -> None:
    """Refuse what :func:`draw_images` cannot make ``at_least`` images of."""
    if isinstance(images, torch.Tensor):
        if tuple(images.shape[1:]) != shape or len(images) < at_least:
            wanted = ", ".join(map(str, shape))
            raise ValueError(
                f"images is a tensor of {tuple(images.shape)}; it must be (count, {wanted}), at least {at_least}"
            )
    elif isinstance(images, int):
        if images < at_least:
            raise ValueError(f"images is {images}; there must be at least {at_least}")
    elif images != "digits" and not Path(images).is_dir():
        raise ValueError(f"images is {str(images)!r}; it must be a count, a tensor, 'digits' or a folder of images")


def draw_images(
    images: Images, shape: tuple[int, int, int], model: nn.Module, generator: torch.Generator
) -> torch.Tensor:
    """One batch, (count, C, H, W).

    Args:
        images: A count of images of Gaussian noise; a tensor, which every draw gives back; "digits", or a folder with
            images (also in folders below), of which every draw picks 16 at random, without augmentation.
        shape: (C, H, W).
        model: Whose mean and standard deviation images of a folder are normalised with.
        generator: What the draw follows from.

    Raises:
        ValueError: for a folder with fewer than 16 images.
        ModuleNotFoundError: for "digits" without scikit-learn.
    """
    if isinstance(images, torch.Tensor):
        return images
    if isinstance(images, int):
        return torch.randn(images, *shape, generator=generator)
    return _digits(shape, generator) if images == "digits" else _folder(images, shape, model, generator)


def _digits(shape: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("images='digits' needs scikit-learn: pip install scikit-learn") from error
    pixels = torch.as_tensor(load_digits().images, dtype=torch.float32)  # (1797, 8, 8)
    chosen = torch.randperm(len(pixels), generator=generator)[:BATCH]
    batch = ((pixels - pixels.mean()) / pixels.std())[chosen]
    batch = F.interpolate(batch.unsqueeze(1), shape[1:], mode="bilinear", align_corners=False)
    return batch.repeat(1, shape[0], 1, 1)


def _folder(
    folder: str | Path, shape: tuple[int, int, int], model: nn.Module, generator: torch.Generator
) -> torch.Tensor:
    config = resolve_model_data_config(model) | {"input_size": shape}
    mode = {1: "L", 3: "RGB"}.get(shape[0])
    if mode is None:
        raise ValueError(f"images is a folder and the model has {shape[0]} channels; give a tensor of images instead")
    dataset = ImageDataset(str(folder), transform=create_transform(**config, is_training=False), input_img_mode=mode)
    if len(dataset) < BATCH:
        raise ValueError(f"images is {str(folder)!r} with {len(dataset)} images; there must be at least {BATCH}")
    return torch.stack([dataset[index][0] for index in torch.randperm(len(dataset), generator=generator)[:BATCH]])
