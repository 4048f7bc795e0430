"""The overlapping tokenizer: padding rule, strides and dilations, alignment to multiples."""

import pytest
import torch
import torch.nn.functional as F

from asvit_plugin.layers import OverlapPatchEmbed


def naive(layer: OverlapPatchEmbed, x: torch.Tensor, stride: int, dilation: int) -> torch.Tensor:
    """Tokens one by one: each kernel reaches over total // 2 pixels before its cell, zeros outside the image."""
    kernel = layer.proj.kernel_size[0]
    before = max(0, dilation * (kernel - 1) + 1 - stride) // 2
    reach = dilation * kernel
    canvas = F.pad(x, (before, reach, before, reach))
    rows = []
    for top in range(0, x.shape[2], stride):
        row = []
        for left in range(0, x.shape[3], stride):
            patch = canvas[:, :, top : top + reach : dilation, left : left + reach : dilation]
            row.append(torch.einsum("bcij,ocij->bo", patch, layer.proj.weight) + layer.proj.bias)
        rows.append(torch.stack(row, dim=1))
    return layer.norm(torch.stack(rows, dim=1))


@pytest.mark.parametrize(
    "kernel_size, padding", [(4, (0, 0)), (5, (0, 1)), (6, (1, 1)), (7, (1, 2)), (8, (2, 2))], ids=lambda v: str(v)
)
def test_padding_at_stride_4(kernel_size: int, padding: tuple[int, int]) -> None:
    layer = OverlapPatchEmbed(3, 5, kernel_size, stride=4, dtype=torch.float64)
    assert layer.kernel_pad == padding
    x = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    torch.testing.assert_close(layer(x), naive(layer, x, 4, 1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("stride, dilation", [(8, 1), (8, 2), (16, 1), (16, 2), (16, 4), (4, 2)])
@pytest.mark.parametrize("kernel_size", [4, 7, 8])
def test_coarser_sampling_keeps_the_weights(kernel_size: int, stride: int, dilation: int) -> None:
    layer = OverlapPatchEmbed(3, 5, kernel_size, stride=4, dtype=torch.float64)
    weights = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.set_tokenization(stride, dilation, (stride, stride))
    x = torch.randn(1, 3, 32, 64, dtype=torch.float64)
    tokens = layer(x)
    assert tokens.shape == (1, 32 // stride, 64 // stride, 5)
    torch.testing.assert_close(tokens, naive(layer, x, stride, dilation), rtol=0, atol=1e-10)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in layer.state_dict().items())


@pytest.mark.parametrize("height, width", [(32, 48), (33, 48), (31, 1), (1, 49)])
def test_image_is_padded_with_zeros_to_the_multiple(height: int, width: int) -> None:
    layer = OverlapPatchEmbed(3, 5, 8, stride=4)
    layer.set_tokenization(4, 1, (16, 24))
    x = torch.randn(1, 3, height, width)
    full_height, full_width = -(-height // 16) * 16, -(-width // 24) * 24
    tokens = layer(x)
    assert tokens.shape == (1, full_height // 4, full_width // 4, 5)
    by_hand = F.pad(x, (0, full_width - width, 0, full_height - height))
    assert torch.equal(tokens, layer(by_hand))
