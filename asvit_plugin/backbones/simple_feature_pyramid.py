"""ViTDet's pyramid from one map, padded as it needs.

Li, Mao, Girshick, He: "Exploring Plain Vision Transformer Backbones for Object Detection", ECCV 2022 (arXiv
2203.16527).
"""

from collections.abc import Sequence

from torch import nn

from ._detectron2 import Backbone, SimpleFeaturePyramid

SCALES = (4.0, 2.0, 1.0, 0.5)


class TimmFeaturePyramid(SimpleFeaturePyramid):
    """detectron2's ``SimpleFeaturePyramid``, except that images are padded to what its coarsest map needs.

    detectron2's misspells the key under which it says so (``size_divisiblity``), and images of other sizes than a
    multiple reach the trunk unpadded (facebookresearch/detectron2#4676). It also runs with ``norm=""``.

    Args:
        net: A backbone.
        out_channels: Channels of every map of the pyramid.
        in_feature: Name of the map it is made from; None for the backbone's last.
        scale_factors: Sizes of the maps over that of ``in_feature``: 4, 2, 1 and 0.5, or some of them in a row.
        top_block: Makes coarser maps still, as in detectron2's FPN; None for none.
        norm: detectron2's name of a norm, or "" for none.
        square_pad: Pad images to squares of this many pixels; 0 for not.

    Raises:
        ValueError: for a map that the backbone has not, or other scale factors.
    """

    def __init__(
        self,
        net: Backbone,
        out_channels: int = 256,
        in_feature: str | None = None,
        scale_factors: Sequence[float] = SCALES,
        top_block: nn.Module | None = None,
        norm: str = "LN",
        square_pad: int = 0,
    ) -> None:
        names = list(net.output_shape())
        in_feature = names[-1] if in_feature is None else in_feature
        if in_feature not in names:
            raise ValueError(f"in_feature is {in_feature!r}; the backbone has {', '.join(names)}")
        scales = tuple(float(scale) for scale in scale_factors)
        start = SCALES.index(scales[0]) if scales and scales[0] in SCALES else 0
        if not scales or scales != SCALES[start : start + len(scales)]:
            raise ValueError(f"scale_factors is {scale_factors!r}; it must be {SCALES} or some of them in a row")
        super().__init__(net, in_feature, out_channels, scales, top_block=top_block, norm=norm, square_pad=square_pad)
        for stage in self.stages:
            for name in [name for name, module in stage._modules.items() if module is None]:
                setattr(stage, name, nn.Identity())  # detectron2 leaves a hole for norm="", which cannot be called

    @property
    def size_divisibility(self) -> int:
        """Stride of the coarsest map that is made from the trunk's."""
        return max(self._size_divisibility, self.net.size_divisibility)

    @property
    def padding_constraints(self) -> dict[str, int]:
        """What images are padded to."""
        return {"size_divisibility": self.size_divisibility, "square_size": self._square_pad}
