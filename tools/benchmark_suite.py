"""Groups of models of like cost that tools/benchmark.py times side by side, and the cells that they make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# By the GMACs of an image of 224 px. The last of a group is the peer that ratios are to. Models of one shape, such as
# castling_vit_small_patch16_224 and castling_deit_small_patch16_224, stand here once.
GROUPS: dict[str, tuple[str, ...]] = {
    "0.3G": (
        "fbnetv2_f2",
        "fbnetv2_f3",
        "fbnetv2_f4",
        "fbnetv2_l2",
        "efficientnet_b0",
        "efficientvit_m4",
        "levit_128s",
        "mobilenetv3_large_100",
    ),
    "1G": (
        "as_vit",
        "castling_deit_tiny_patch16_224",
        "castling_pit_ti_224",
        "castling_pit_xs_224",
        "scaled_pit",
        "scaled_vit",
        "efficientvit_b1",
        "fastvit_t12",
        "levit_256",
        "pit_xs_224",
        "xcit_tiny_12_p16_224",
        "deit_tiny_patch16_224",
    ),
    "3G": (
        "castling_pit_s_224",
        "vit_res_tiny",
        "vit_resnas_tiny",
        "vit_resnas_small",
        "efficientvit_b2",
        "fastvit_sa24",
        "levit_384",
        "xcit_tiny_24_p16_224",
        "pit_s_224",
    ),
    "5G": (
        "as_vit_small",
        "castling_deit_small_patch16_224",
        "vit_resnas_medium",
        "efficientvit_l1",
        "fastvit_sa36",
        "mvitv2_tiny",
        "swin_tiny_patch4_window7_224",
        "xcit_small_12_p16_224",
        "deit_small_patch16_224",
    ),
    "9G": (
        "as_vit_base",
        "efficientvit_l2",
        "fastvit_ma36",
        "mvitv2_small",
        "swin_small_patch4_window7_224",
        "xcit_small_24_p16_224",
        "deit3_medium_patch16_224",
    ),
    "18G": (
        "as_vit_large",
        "castling_deit_base_patch16_224",
        "mvitv2_base",
        "swin_base_patch4_window7_224",
        "xcit_medium_24_p16_224",
        "deit_base_patch16_224",
    ),
}
_PIXELS = 8 * 224**2  # of a batch


@dataclass(frozen=True)
class Cell:
    """What is timed side by side.

    Attributes:
        group: Name of the group.
        models: timm model names; the last is the peer of the ratios.
        img_size: Side of the square images in pixels.
        batch: Images at once.
        step: "forward" or "training".
        runtime: "eager" or "compile".
    """

    group: str
    models: tuple[str, ...]
    img_size: int
    batch: int
    step: str
    runtime: str

    @property
    def place(self) -> dict[str, Any]:
        """What tells it from the other cells of a file."""
        return {name: getattr(self, name) for name in ("group", "img_size", "step", "runtime")}

    def __str__(self) -> str:
        return f"{self.group}, {self.img_size} px, batch {self.batch}, {self.step}, {self.runtime}"


def cells(
    groups: Mapping[str, Sequence[str]],
    img_sizes: Sequence[int],
    steps: Sequence[str],
    runtimes: Sequence[str],
    batch: int | None = None,
) -> list[Cell]:
    """All cells of some groups, from small images to large ones.

    Args:
        groups: Models by the group's name.
        img_sizes: Sides in pixels.
        steps: Of "forward" and "training".
        runtimes: Of "eager" and "compile".
        batch: Images at once; None for about as many pixels as 8 images of 224 px have.
    """
    return [
        Cell(group, tuple(models), size, batch or batch_of(size), step, runtime)
        for step in dict.fromkeys(steps)
        for runtime in dict.fromkeys(runtimes)
        for size in sorted(set(img_sizes))
        for group, models in groups.items()
    ]


def batch_of(img_size: int) -> int:
    """Images of a size that have about as many pixels as 8 of 224 px; at least one."""
    return max(1, round(_PIXELS / img_size**2))
