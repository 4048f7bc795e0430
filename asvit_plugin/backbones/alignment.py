"""Brings images and maps to the grids that detectors count on: strides that are powers of two, sizes that follow."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F


class StrideAlignment:
    """Strides of a trunk, and the power-of-two strides at which its maps lie once the image is resized for it.

    A trunk with patches of 14 pixels has strides 14, 28 and 56, which detectors cannot use (detectron2's ROIPooler
    refuses them). It gets the image at 14/16 of its size, so that its maps lie at strides 16, 32 and 64 of the image.
    Where strides are powers of two already, nothing is resized.

    Args:
        name: The trunk's name, for the sentence that refuses it.
        strides: All strides that the trunk has, in pixels of its own input, finest first.

    Raises:
        ValueError: if no one factor brings all of them to powers of two.
    """

    def __init__(self, name: str, strides: Sequence[int]) -> None:
        self.finest = strides[0]
        self.unit = 2 ** round(math.log2(self.finest))  # what the finest stride becomes
        if any(math.log2(stride / self.finest) % 1 for stride in strides):
            listed = ", ".join(map(str, sorted(set(strides))))
            raise ValueError(f"name is {name!r}; its strides are {listed} and must be powers of two times the first")

    def stride(self, stride: int) -> int:
        """The stride in pixels of the image of what has ``stride`` in pixels of the trunk's input."""
        return round(stride * self.unit / self.finest)

    def align(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W), padded right and bottom to whole cells of the finest map, as the trunk takes them."""
        height, width = math.ceil(x.shape[2] / self.unit), math.ceil(x.shape[3] / self.unit)
        pad = (0, width * self.unit - x.shape[3], 0, height * self.unit - x.shape[2])
        x = F.pad(x, pad) if any(pad) else x
        if self.unit == self.finest:
            return x
        size = (height * self.finest, width * self.finest)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def cover(feature: torch.Tensor, height: int, width: int, stride: int, coarseness: float = 1.0) -> torch.Tensor:
    """A map (B, C, h, w) with a cell for every ``stride`` pixels of an image of height x width, none beyond.

    While a schedule has the trunk see fewer tokens, ``coarseness`` times as far apart, its maps are enlarged to their
    announced stride. Overlapping patches without padding (PiT) leave the last row and column without a token of their
    own: their neighbours are repeated there, for pyramids add maps that must double in size exactly.
    """
    rows, columns = math.ceil(height / stride), math.ceil(width / stride)
    if coarseness != 1:
        own_rows, own_columns = int(feature.shape[2]), int(feature.shape[3])  # tracing holds sizes fixed
        size = (round(coarseness * own_rows), round(coarseness * own_columns))
        feature = F.interpolate(feature, size=size, mode="bilinear", align_corners=False)
    feature = feature[:, :, :rows, :columns]
    pad = (0, columns - int(feature.shape[3]), 0, rows - int(feature.shape[2]))
    return F.pad(feature, pad, mode="replicate") if any(pad) else feature
