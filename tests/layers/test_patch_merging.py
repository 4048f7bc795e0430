"""PatchMerging against its definition: unfold, layer norm, linear."""

import pytest
import torch
import torch.nn.functional as F

from asvit_plugin.layers import PatchMerging

KERNELS = [2, 3, 4, 5]


def naive(layer: PatchMerging, x: torch.Tensor) -> torch.Tensor:
    """The layer as it is defined, on unfolded patches."""
    batch, height, width, _ = x.shape
    before, after = (layer.kernel_size - 2) // 2, (layer.kernel_size - 1) // 2
    padded = F.pad(x.permute(0, 3, 1, 2), (before, after, before, after))
    patches = F.unfold(padded, layer.kernel_size, stride=2).transpose(1, 2)  # (B, tokens, C * K * K)
    normed = F.layer_norm(patches, patches.shape[-1:], layer.norm.weight, layer.norm.bias, layer.norm.eps)
    return F.linear(normed, layer.reduction.weight).reshape(batch, height // 2, width // 2, -1)


def make(kernel_size: int, dtype: torch.dtype) -> PatchMerging:
    layer = PatchMerging(6, 10, kernel_size, dtype=dtype)
    torch.nn.init.normal_(layer.norm.weight, mean=1.0, std=0.3)
    torch.nn.init.normal_(layer.norm.bias, std=0.3)
    return layer


def run(function, x: torch.Tensor, layer: PatchMerging, upstream: torch.Tensor) -> list[torch.Tensor]:
    """Output and the gradients with respect to the input and every parameter."""
    x = x.clone().requires_grad_()
    out = function(x)
    return [out, *torch.autograd.grad(out, [x, *layer.parameters()], upstream)]


@pytest.mark.parametrize("offset", [0.0, 10.0], ids=["centred", "offset10"])
@pytest.mark.parametrize("kernel_size", KERNELS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["fp64", "fp32"])
def test_equals_definition(kernel_size: int, dtype: torch.dtype, tolerance: float, offset: float) -> None:
    """Forward and every gradient; the tolerance is relative to each tensor's largest number."""
    layer = make(kernel_size, dtype)
    x = torch.randn(3, 8, 14, 6, dtype=dtype) + offset
    upstream = torch.randn(3, 4, 7, 10, dtype=dtype)
    folded = run(layer, x, layer, upstream)
    double = make(kernel_size, torch.float64)
    double.load_state_dict(layer.state_dict())
    expected = run(lambda t: naive(double, t), x.double(), double, upstream.double())
    names = ["output", "x", *(name for name, _ in layer.named_parameters())]
    for name, ours, theirs in zip(names, folded, expected):
        error = (ours - theirs).abs().max() / theirs.abs().max()
        assert error < tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("kernel_size", KERNELS)
def test_constant_tokens(kernel_size: int) -> None:
    """A patch without any variance gives the shift alone, not infinities."""
    layer = make(kernel_size, torch.float32)
    out = layer(torch.full((1, 8, 8, 6), 3.0))
    inner = out[:, 1:-1, 1:-1]  # away from the zero padding
    shift = layer.reduction.weight @ layer.norm.bias
    torch.testing.assert_close(inner, shift.expand_as(inner), rtol=0, atol=2e-2)
    assert out.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision(dtype: torch.dtype) -> None:
    layer = make(3, torch.float32)
    x = torch.randn(2, 8, 8, 6) + 1.0
    expected = naive(layer, x)
    half = layer.to(dtype)(x.to(dtype))
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=0.05 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_autocast(dtype: torch.dtype) -> None:
    layer = make(3, torch.float32)
    x = torch.randn(2, 8, 8, 6) + 1.0
    with torch.autocast("cpu", dtype=dtype):
        out = layer(x)
    out.float().sum().backward()
    expected = naive(layer, x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=0.05 * expected.abs().max().item())
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_statistics_survive_large_values_in_half_precision() -> None:
    """Token sums of squares beyond float16's 65504 still give a finite, normalised output."""
    layer = make(4, torch.float16)
    x = (torch.randn(1, 8, 8, 6) * 300).half()
    expected = naive(layer.float(), x.float())
    torch.testing.assert_close(layer.half()(x).float(), expected, rtol=0, atol=0.05 * expected.abs().max().item())
