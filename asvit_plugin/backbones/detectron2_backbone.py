"""A timm model as detectron2's ``Backbone``, for yacs and for LazyConfig."""

import torch

from ._detectron2 import Backbone, ShapeSpec
from .trunk import FeatureTrunk


class TimmBackbone(FeatureTrunk, Backbone):
    """A timm model's maps by name: ``stage{i}``, where i is the map's index in timm.

    All arguments are those of :class:`FeatureTrunk`, plain values as LazyConfig wants them. Names that begin with p are
    left to the pyramid, which looks for its own maps here first.
    """

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images (B, C, H, W) to maps (B, C_i, ceil(H / stride_i), ceil(W / stride_i)), finest first."""
        return dict(zip(self.map_names, self.maps(x)))

    @property
    def map_names(self) -> tuple[str, ...]:
        """Names of the maps, finest first."""
        return tuple(f"stage{index}" for index in self.indices)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride, a power of two in pixels of the image, of every map."""
        shapes = zip(self.map_names, self.channels, self.strides)
        return {name: ShapeSpec(channels=channels, stride=stride) for name, channels, stride in shapes}

    @property
    def size_divisibility(self) -> int:
        """Image sides that are multiples of this give maps that double in size exactly from one to the next."""
        return max(self.strides)

    @property
    def padding_constraints(self) -> dict[str, int]:
        """The same, as detectron2's newer interface wants it."""
        return {"size_divisibility": self.size_divisibility, "square_size": 0}
