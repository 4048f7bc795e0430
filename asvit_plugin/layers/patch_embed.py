"""A convolutional tokenizer whose stride and dilation can change while its weights stay."""

import torch
import torch.nn.functional as F
from torch import nn


class OverlapPatchEmbed(nn.Module):
    """Image to tokens by one strided convolution and a layer norm (As-ViT's stem).

    The image is padded once, on the right and at the bottom, to the multiple that the whole net needs
    (``pad_multiple``, set by the model), so nothing behind it has to pad. Around that the convolution gets the
    padding that centres its kernel: total d (K - 1) + 1 - s, the odd pixel on the right and at the bottom.

    Args:
        in_chans: Image channels.
        embed_dim: Channels of a token.
        kernel_size: Kernel side K in pixels, at every stride.
        stride: Pixels from one token to the next.
    """

    def __init__(
        self,
        in_chans: int,
        embed_dim: int,
        kernel_size: int,
        stride: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size, stride=stride, **dd)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-5, **dd)
        self.set_tokenization(stride, dilation=1, pad_multiple=(stride, stride))

    def set_tokenization(self, stride: int, dilation: int, pad_multiple: tuple[int, int]) -> None:
        """Change how densely the kernel samples the image; the weights keep their shape.

        Args:
            stride: Pixels from one token to the next.
            dilation: Pixels between two samples of the kernel.
            pad_multiple: The image is padded to multiples of this height and width, in pixels.
        """
        self.stride = stride
        self.pad_multiple = pad_multiple
        self.proj.stride = (stride, stride)
        self.proj.dilation = (dilation, dilation)
        total = max(0, dilation * (self.proj.kernel_size[0] - 1) + 1 - stride)
        self.kernel_pad = (total // 2, total - total // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to tokens (B, H', W', embed_dim), H' and W' those of the padded image."""
        before, after = self.kernel_pad
        pad_h = (self.pad_multiple[0] - x.shape[2] % self.pad_multiple[0]) % self.pad_multiple[0]
        pad_w = (self.pad_multiple[1] - x.shape[3] % self.pad_multiple[1]) % self.pad_multiple[1]
        x = F.pad(x, (before, after + pad_w, before, after + pad_h))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))
