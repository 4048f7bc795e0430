"""Clips of real handwritten digits that move over a black frame; the class is which digit it is and where it moves.

The digits are scikit-learn's (8 x 8 pixels), enlarged to 16 pixels. Each moves left, right, up or down at 1 to 3 pixels
a frame, and what leaves the frame on one side comes back on the other. It starts anywhere, so in any one frame of a
clip it may be anywhere, whatever its direction: a single frame shows the digit and says nothing about the direction,
which can only be guessed from it, one time in four. All frames in unknown order tell no more than the axis.
"""

from functools import cache

import torch
import torch.nn.functional as F

SPLITS = ("train", "val")
DIRECTIONS = ("left", "right", "up", "down")
STEPS = torch.tensor([[0, -1], [0, 1], [-1, 0], [1, 0]])  # (y, x) pixels of each direction
CLASSES = 10 * len(DIRECTIONS)
FRAMES = 8
SIZE = 32  # pixels per side of a frame
DIGIT_SIZE = 16
SPEEDS = (1, 3)  # slowest and fastest, pixels per frame


@cache
def split_digits(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The digits of a split: those that classification/train.py trains on, or those that it holds out, in its order.

    Args:
        split: "train" or "val".

    Returns:
        Grey levels from 0 to 1, (N, 8, 8), and labels, (N,).

    Raises:
        ValueError: There is no such split, or scikit-learn is missing.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(map(repr, SPLITS))}")
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise ValueError("the digits need scikit-learn: pip install scikit-learn") from None
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    indices = sorted(parts[SPLITS.index(split)])
    return torch.tensor(images[indices], dtype=torch.float32).view(-1, 8, 8) / 16, torch.tensor(labels[indices])


def training_clips(seed: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One clip of every training digit, in random order: a function of the arguments alone.

    Args:
        seed: Seed of the training.
        epoch: Number of the epoch; each has motions of its own.

    Returns:
        Clips (N, 1, FRAMES, SIZE, SIZE) with levels from 0 to 1, and their classes, ``4 * digit + direction``.
    """
    images, labels = split_digits("train")
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    order = torch.randperm(len(labels), generator=generator)
    directions = torch.randint(len(DIRECTIONS), (len(labels),), generator=generator)
    return _clips(images[order], labels[order], directions, generator)


@cache
def held_out_clips() -> tuple[torch.Tensor, torch.Tensor]:
    """Four clips of every held-out digit, one per direction; always the same. Shapes as of :func:`training_clips`."""
    images, labels = split_digits("val")
    directions = torch.arange(len(DIRECTIONS)).repeat(len(labels))
    generator = torch.Generator().manual_seed(0)
    return _clips(images.repeat_interleave(4, 0), labels.repeat_interleave(4), directions, generator)


def _clips(
    images: torch.Tensor, labels: torch.Tensor, directions: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    starts = torch.randint(SIZE, (len(labels), 2), generator=generator)
    speeds = torch.randint(SPEEDS[0], SPEEDS[1] + 1, (len(labels), 1), generator=generator)
    clips = draw_clips(images, starts, speeds * STEPS[directions], FRAMES)
    return clips, len(DIRECTIONS) * labels + directions


def draw_clips(images: torch.Tensor, starts: torch.Tensor, velocities: torch.Tensor, frames: int) -> torch.Tensor:
    """Draw digits on their way.

    Args:
        images: Digits, (N, h, w).
        starts: Top left pixel (y, x) of each in its first frame, (N, 2).
        velocities: Whole pixels (y, x) from a frame to the next, (N, 2).
        frames: Frames of a clip.

    Returns:
        Clips, (N, 1, frames, SIZE, SIZE).
    """
    large = F.interpolate(images[:, None], size=(DIGIT_SIZE, DIGIT_SIZE), mode="bilinear")[:, 0]
    canvas = F.pad(large, (0, SIZE - DIGIT_SIZE, 0, SIZE - DIGIT_SIZE))
    corners = starts[:, None] + velocities[:, None] * torch.arange(frames)[:, None]  # (N, T, 2)
    pixels = (torch.arange(SIZE) - corners[..., None]) % SIZE  # (N, T, 2, SIZE): where each row and column comes from
    clip = torch.arange(len(images))[:, None, None, None]
    return canvas[clip, pixels[:, :, 0, :, None], pixels[:, :, 1, None, :]][:, None]
