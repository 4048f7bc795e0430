"""SwitchTokenMix: CutMix by whole tokens for half a batch, mixup for the other half; and the loss that goes with it."""

import numpy as np
import torch
from timm.data.mixup import one_hot
from timm.layers import to_2tuple
from timm.loss import SoftTargetCrossEntropy
from torch import nn

Box = tuple[int, int, int, int]


class SwitchTokenMix:
    """Mixes a batch so that the class of every token of the last stage is known, as ViT-ResNAS was trained.

    The first half of a batch (the smaller one, if it is odd) gets CutMix: one box of whole cells of the token grid,
    the same for all its images, is replaced by that of a partner. The second half gets mixup with one weight. Partners
    are a random permutation of each half. Everything is drawn from numpy's global generator, as by timm's ``Mixup``,
    in whose place this object stands: ``mixup_enabled = False`` turns the mixing off, smoothed targets remain.

    Source: Liao, Karaman, Sze, "Searching for Efficient Multi-Stage Vision Transformers", 2021, arXiv 2109.00642.
    Two slips of the authors' code are corrected, both an upper bound that their generator excludes: a box may here be
    as high as the grid and its area allow (theirs is one or two cells lower, unless it spans the grid's width), and may
    lie at every offset (theirs never touches the lower or right border, unless it spans the grid).

    Args:
        mixup_alpha: Mixup's weight is drawn from Beta(alpha, alpha); 0 leaves the second half unmixed.
        cutmix_alpha: The share of the grid that is cut is drawn from Beta(alpha, alpha); 0 leaves the first half
            unmixed.
        grid_size: Tokens of the model's last stage, (height, width) or one number for both: for ViT-ResNAS the image
            side / 56, 4 at 224 pixels.
        label_smoothing: Share of a target that is spread evenly over all classes.
        num_classes: Classes K.

    Raises:
        ValueError: for arguments out of range.
    """

    def __init__(
        self,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        grid_size: int | tuple[int, int] = (4, 4),
        label_smoothing: float = 0.1,
        num_classes: int = 1000,
    ) -> None:
        _check_from_zero("mixup_alpha", mixup_alpha)
        _check_from_zero("cutmix_alpha", cutmix_alpha)
        _check_smoothing("label_smoothing", label_smoothing)
        self.grid_size = tuple(to_2tuple(grid_size))
        if len(self.grid_size) != 2 or not all(isinstance(side, int) and side >= 1 for side in self.grid_size):
            raise ValueError(f"grid_size is {grid_size}; it must be a whole number from 1 up, or two: height and width")
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; it must be a whole number from 1 up")
        self.mixup_alpha, self.cutmix_alpha = mixup_alpha, cutmix_alpha
        self.label_smoothing, self.num_classes = label_smoothing, num_classes
        self.mixup_enabled = True

    def __call__(self, x: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Mix a batch, in place.

        Args:
            x: Images (B, C, H, W) of any float type; H and W are multiples of the grid's height and width.
            target: Labels (B,).

        Returns:
            The images, and the pair of class targets (B, K) and patch targets (B, grid height * grid width, K), rows
            of the grid one after the other, in float32 on the device of the images.

        Raises:
            ValueError: for images that the grid does not divide, and for targets that are not one label an image.
        """
        self._check(x, target)
        own = smoothed_one_hot(target.to(x.device), self.num_classes, self.label_smoothing)
        if not self.mixup_enabled:
            return x, (own, self._for_all_patches(own))
        half = len(x) // 2
        cut, blended = self._cut(x[:half], own[:half]), self._blend(x[half:], own[half:])
        return x, (torch.cat([cut[0], blended[0]]), torch.cat([cut[1], blended[1]]))

    def _cut(self, x: torch.Tensor, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put a box of each image's partner into it; the class (B, K) and patch targets (B, N, K) of the outcome."""
        top, left, height, width = self._draw_box()
        partners = _draw_partners(x)
        other = own[partners]
        inside = torch.zeros(self.grid_size, dtype=torch.bool, device=x.device)
        inside[top : top + height, left : left + width] = True

        cell_h, cell_w = (side // cells for side, cells in zip(x.shape[2:], self.grid_size))
        box = x[:, :, top * cell_h : (top + height) * cell_h, left * cell_w : (left + width) * cell_w]
        box.copy_(box[partners])
        share = height * width / inside.numel()
        return own * (1 - share) + other * share, torch.where(inside.view(1, -1, 1), other[:, None], own[:, None])

    def _blend(self, x: torch.Tensor, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix each image with its partner; the class (B, K) and patch targets (B, N, K) of the outcome."""
        share = np.random.beta(self.mixup_alpha, self.mixup_alpha) if self.mixup_alpha else 1.0  # noqa: NPY002
        partners = _draw_partners(x)
        other = x[partners]  # before x changes
        x.mul_(share).add_(other, alpha=1 - share)
        target = own * share + own[partners] * (1 - share)
        return target, self._for_all_patches(target)

    def _draw_box(self) -> Box:
        """Top, left, height and width of a box in cells, all offsets alike; height and width are 0 if it is empty."""
        grid_h, grid_w = self.grid_size
        share = np.random.beta(self.cutmix_alpha, self.cutmix_alpha) if self.cutmix_alpha else 0.0  # noqa: NPY002
        area = int(grid_h * grid_w * share)
        if not area:
            return 0, 0, 0, 0
        height = np.random.randint(1, min(grid_h, area) + 1)  # noqa: NPY002
        width = area // height
        if width > grid_w:
            height, width = area // grid_w, grid_w
        top = np.random.randint(grid_h - height + 1)  # noqa: NPY002
        left = np.random.randint(grid_w - width + 1)  # noqa: NPY002
        return top, left, height, width

    def _for_all_patches(self, target: torch.Tensor) -> torch.Tensor:
        """Class targets (B, K) as those of every patch (B, N, K)."""
        return target[:, None].repeat(1, self.grid_size[0] * self.grid_size[1], 1)

    def _check(self, x: torch.Tensor, target: torch.Tensor) -> None:
        """Refuse images without whole cells, and targets that are not labels."""
        if any(side % cells for side, cells in zip(x.shape[2:], self.grid_size)):
            raise ValueError(
                f"images have {x.shape[2]} x {x.shape[3]} pixels; both must be multiples of grid_size, "
                f"{self.grid_size[0]} x {self.grid_size[1]}"
            )
        if target.shape != x.shape[:1]:
            raise ValueError(f"target has shape {tuple(target.shape)}; it must be ({len(x)},), one label an image")


class PatchHeadCrossEntropy(nn.Module):
    """Cross entropy of the class logits plus that of the patch logits, averaged over images and patches.

    For a ViT-ResNAS with ``patch_head=True``, whose training mode gives (logits, patch logits), and the targets of
    :class:`SwitchTokenMix`. What a model gives in evaluation mode, logits alone, has the class term alone.

    Source: Liao, Karaman, Sze, arXiv 2109.00642; the authors weigh both terms alike.

    Args:
        patch_weight: Weight of the patch term beside the class term.
        smoothing: Label smoothing of targets that are given as labels; soft targets are taken as they are.

    Raises:
        ValueError: for arguments out of range.
    """

    def __init__(self, patch_weight: float = 1.0, smoothing: float = 0.0) -> None:
        super().__init__()
        _check_from_zero("patch_weight", patch_weight)
        _check_smoothing("smoothing", smoothing)
        self.patch_weight, self.smoothing = patch_weight, smoothing
        self.cross_entropy = SoftTargetCrossEntropy()

    def forward(
        self,
        output: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        target: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """The loss, a scalar.

        Args:
            output: Logits (B, K), or the pair of them and patch logits (B, N, K).
            target: The pair of class targets (B, K) and patch targets (B, N, K); or labels (B,) or soft targets (B, K),
                which then hold for every patch too.

        Raises:
            ValueError: for targets of another shape than the logits.
        """
        logits, patch_logits = output if isinstance(output, (tuple, list)) else (output, None)
        classes, patches = target if isinstance(target, (tuple, list)) else (target, None)
        if classes.ndim == 1:
            classes = smoothed_one_hot(classes, logits.shape[-1], self.smoothing)
        _check_shapes("class", classes, logits)
        loss = self.cross_entropy(logits, classes)
        if patch_logits is None:
            return loss
        if patches is None:
            patches = classes[:, None].expand(-1, patch_logits.shape[1], -1)
        _check_shapes("patch", patches, patch_logits)
        return loss + self.patch_weight * self.cross_entropy(patch_logits, patches)


def smoothed_one_hot(labels: torch.Tensor, num_classes: int, smoothing: float) -> torch.Tensor:
    """Labels (B,) as rows (B, num_classes) that sum to 1, ``smoothing`` of it spread evenly over all classes."""
    low = smoothing / num_classes
    return one_hot(labels, num_classes, on_value=1.0 - smoothing + low, off_value=low)


def _draw_partners(x: torch.Tensor) -> torch.Tensor:
    """A random permutation of the images of a batch, on their device."""
    return torch.from_numpy(np.random.permutation(len(x))).to(x.device)  # noqa: NPY002


def _check_from_zero(field: str, value: float) -> None:
    if not value >= 0:  # this way round, it refuses NaN as well
        raise ValueError(f"{field} is {value}; it must be a number from 0 up")


def _check_smoothing(field: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{field} is {value}; it must be at least 0 and below 1")


def _check_shapes(name: str, target: torch.Tensor, logits: torch.Tensor) -> None:
    if target.shape != logits.shape:
        raise ValueError(
            f"{name} target has shape {tuple(target.shape)}; it must be {tuple(logits.shape)}, that of the {name} "
            "logits: grid_size and num_classes of SwitchTokenMix are those of the model"
        )
