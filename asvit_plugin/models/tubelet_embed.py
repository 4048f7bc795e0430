"""Clips to tokens: a patch embedding whose patches last several frames."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, resample_patch_embed, to_2tuple
from torch import nn

from ..checks import check_whole


class TubeletEmbed(PatchEmbed):
    """timm's ``PatchEmbed`` with a third axis: one 3-D convolution, its stride the size of its kernel.

    Arnab et al., "ViViT: A Video Vision Transformer" (2021, arXiv 2103.15691), section 3.2. ``img_size``,
    ``grid_size`` and ``num_patches`` are those of one frame, as timm's ViT sizes its position table by them.

    Args:
        num_frames: Nominal number of frames of a clip, a multiple of ``tubelet_size``.
        tubelet_size: Frames that a token spans.
        in_chans: Channels of a frame.
        embed_dim: Channels of a token.
        bias: Whether the convolution has one.
        device: Where parameters are made.
        dtype: Type of the parameters.
        kwargs: Further arguments of timm's ``PatchEmbed``. With ``strict_img_size`` clips must have the nominal size;
            with ``dynamic_img_pad`` frames are padded with zeros on the right and at the bottom, and clips by repeating
            the last frame; with neither, all sides must divide. The output is always channels last.

    Raises:
        ValueError: naming the argument that is out of range.
    """

    def __init__(
        self,
        num_frames: int,
        tubelet_size: int,
        in_chans: int = 3,
        embed_dim: int = 768,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        check_whole("tubelet_size", tubelet_size)
        check_num_frames(num_frames, tubelet_size)
        dd = {"device": device, "dtype": dtype}
        super().__init__(in_chans=in_chans, embed_dim=embed_dim, bias=bias, **kwargs, **dd)
        self.num_frames = num_frames
        self.tubelet_size = tubelet_size
        self.proj = self._convolution(in_chans, embed_dim, bias, **dd)

    def _convolution(self, in_chans: int, embed_dim: int, bias: bool, **dd: Any) -> nn.Conv3d:
        kernel = (self.tubelet_size, *self.patch_size)
        return nn.Conv3d(in_chans, embed_dim, kernel, stride=kernel, bias=bias, **dd)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Change the nominal size of a frame, or the patches: the kernel is then resampled as timm does for images.

        Args:
            img_size: New nominal size in pixels; None keeps it.
            patch_size: New size of a patch in pixels; None keeps it.
        """
        if patch_size is not None and to_2tuple(patch_size) != self.patch_size:
            self.patch_size = to_2tuple(patch_size)
            self._resample_kernel()
        self.img_size, self.grid_size, self.num_patches = self._init_img_size(img_size or self.img_size)

    @torch.no_grad()
    def _resample_kernel(self) -> None:
        old, weight = self.proj, self.proj.weight
        dd = {"device": weight.device, "dtype": weight.dtype}
        new = self._convolution(old.in_channels, old.out_channels, old.bias is not None, **dd)
        images = resample_patch_embed(weight.flatten(1, 2), list(self.patch_size))  # every frame is a channel
        new.weight.copy_(images.unflatten(1, weight.shape[1:3]))
        if old.bias is not None:
            new.bias.copy_(old.bias)
        for name, parameter in new.named_parameters():
            parameter.requires_grad_(old.get_parameter(name).requires_grad)
        self.proj = new.train(old.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Clips (B, C, T, H, W) to tokens (B, T', H', W', embed_dim).

        Raises:
            ValueError: if the clips have a shape that the module does not take.
        """
        self._check_clips(x)
        if self.dynamic_img_pad:
            x = self._pad(x)
        return self.norm(self.proj(x).permute(0, 2, 3, 4, 1))

    def _pad(self, x: torch.Tensor) -> torch.Tensor:
        kernel = self.proj.kernel_size
        frames, bottom, right = ((side - size % side) % side for side, size in zip(kernel, x.shape[2:]))
        x = F.pad(x, (0, right, 0, bottom))
        return F.pad(x, (0, 0, 0, 0, 0, frames), mode="replicate")

    def _check_clips(self, x: torch.Tensor) -> None:
        channels = self.proj.in_channels
        if x.ndim != 5 or x.shape[1] != channels or x.shape[2] < 1:
            raise ValueError(f"the input has shape {tuple(x.shape)}; clips are (B, {channels}, T, H, W), T at least 1")
        nominal = (self.num_frames, *self.img_size)
        kernel = self.proj.kernel_size
        for field, size, wanted, step in zip(("frames", "height", "width"), x.shape[2:], nominal, kernel):
            if self.strict_img_size and size != wanted:
                raise ValueError(f"{field} of the clips is {size}; this model takes {wanted} only")
            if not self.strict_img_size and not self.dynamic_img_pad and size % step:
                raise ValueError(f"{field} of the clips is {size}; without dynamic_img_pad it must divide by {step}")


def check_num_frames(num_frames: int, tubelet_size: int) -> None:
    """Refuse a nominal number of frames that tubelets do not fill."""
    check_whole("num_frames", num_frames)
    if num_frames % tubelet_size:
        raise ValueError(f"num_frames is {num_frames}; it must be a multiple of tubelet_size, {tubelet_size}")
