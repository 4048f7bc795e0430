"""The linear-angular operator against its definition, written out with the N x N weights that it avoids."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from asvit_plugin.layers import linear_angular
from asvit_plugin.layers.linear_angular import add_local, depthwise_conv

SHAPE = (2, 3, 29, 8)  # batch, heads, tokens, head_dim


def heads(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator, dtype=dtype, requires_grad=True) for _ in range(3)]


def by_definition(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, half_term: str) -> torch.Tensor:
    cosine = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    if half_term == "mean":
        return (0.5 + cosine / math.pi) @ v / q.shape[2]
    return v / 2 + cosine @ v / math.pi


@pytest.mark.parametrize("half_term", ["identity", "mean"])
def test_equals_the_definition_with_gradients(half_term: str) -> None:
    ours, theirs = heads(), heads()
    got, expected = linear_angular(*ours, half_term=half_term), by_definition(*theirs, half_term)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    weight = torch.randn(SHAPE, dtype=torch.float64)
    (got * weight).sum().backward()
    (expected * weight).sum().backward()
    for mine, reference in zip(ours, theirs):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=0, atol=1e-12)


def test_is_the_linear_part_of_the_angular_kernel() -> None:
    """Mean form: what is missing of 1 - angle / pi is cubic in the cosine, at most 0.182 and small in the middle."""
    q, k, _ = (x.detach() for x in heads())
    cosine = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    angular = 1 - torch.arccos(cosine) / math.pi
    eye = torch.eye(SHAPE[2], dtype=torch.float64).expand(*SHAPE[:3], -1)
    linear = linear_angular(q, k, eye, half_term="mean") * SHAPE[2]
    missing = (angular - linear).abs()
    assert missing.max() < 0.1817
    assert missing[cosine.abs() < 0.5].max() < 0.0076


def test_gradcheck_of_the_whole_operator() -> None:
    q, k, v = (torch.randn(1, 2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    weight = torch.randn(2, 1, 3, 1, dtype=torch.float64, requires_grad=True)
    gain = torch.rand(2, dtype=torch.float64, requires_grad=True)

    def operator(*inputs: torch.Tensor) -> torch.Tensor:
        q, k, v, weight, gain = inputs
        return add_local(linear_angular(q, k, v), v, weight, gain, num_prefix_tokens=1)

    torch.autograd.gradcheck(operator, (q, k, v, weight, gain))


@pytest.mark.parametrize("half_term", ["identity", "mean"])
def test_no_image_gives_none(half_term: str) -> None:
    q = torch.randn(0, 2, 5, 3)
    y = linear_angular(q, q, torch.randn(0, 2, 5, 4), half_term)
    assert y.shape == (0, 2, 5, 4)
    assert add_local(y, y, torch.randn(2, 1, 3, 1)).shape == (0, 5, 8)


def test_reference_length_weighs_the_global_term() -> None:
    q, k, v = heads()
    whole, half = linear_angular(q, k, v), v / 2
    scaled = linear_angular(q, k, v, reference_length=4 * SHAPE[2])
    torch.testing.assert_close(scaled - half, 4 * (whole - half), rtol=0, atol=1e-12)
    torch.testing.assert_close(linear_angular(q, k, v, reference_length=SHAPE[2]), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_zeros_give_no_nan(dtype: torch.dtype) -> None:
    q = torch.zeros(SHAPE, dtype=dtype, requires_grad=True)
    weight = torch.ones(3, 1, 3, 1, dtype=dtype)
    y = add_local(linear_angular(q, q, q), q, weight)
    y.sum().backward()
    assert y.dtype == dtype
    assert torch.equal(y, torch.zeros_like(y))
    assert q.grad.isfinite().all()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_keeps_lengths_in_float32(dtype: torch.dtype, tolerance: float, autocast: bool) -> None:
    """Large values overflow a sum of squares in float16; under autocast the products must not fall back to it."""
    q, k, v = (200 * x.detach() for x in heads())
    weight = torch.zeros(3, 1, 3, 1)
    expected = add_local(linear_angular(q, k, v), v, weight.double())
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        inputs = [x.to(dtype) for x in (q, k, v)]
        y = add_local(linear_angular(*inputs), inputs[2], weight.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=tolerance)


def test_prefix_tokens_stay_out_of_the_convolution() -> None:
    x = torch.randn(2, 2 + 12, 6, dtype=torch.float64)
    weight = torch.randn(6, 1, 3, 3, dtype=torch.float64)
    y = depthwise_conv(x, weight, 2, (3, 4))
    image = x[:, 2:].transpose(1, 2).unflatten(2, (3, 4))
    torch.testing.assert_close(y[:, 2:], F.conv2d(image, weight, padding=1, groups=6).flatten(2).transpose(1, 2))
    assert torch.equal(y[:, :2], torch.zeros(2, 2, 6, dtype=torch.float64))
    changed = x.clone()
    changed[:, :2] += 1
    assert torch.equal(depthwise_conv(changed, weight, 2, (3, 4)), y)


def test_heads_share_a_filter_as_in_the_released_block() -> None:
    """There, heads are the channels of a (heads, N, head_dim) image and the filter is (heads, 1, K, 1)."""
    x, weight = torch.randn(2, 3, 20, 8, dtype=torch.float64), torch.randn(3, 1, 9, 1, dtype=torch.float64)
    released = F.conv2d(x, weight, padding=(4, 0), groups=3)
    y = depthwise_conv(x.transpose(1, 2).flatten(2), weight, 0, None)
    torch.testing.assert_close(y, released.transpose(1, 2).flatten(2))


class LargestTensor(TorchDispatchMode):
    """Numbers in the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_memory_is_linear_in_tokens() -> None:
    largest = {}
    for tokens in (512, 1024, 2048):
        q, k, v = (torch.randn(1, 2, tokens, 8, requires_grad=True) for _ in range(3))
        with LargestTensor() as mode:
            add_local(linear_angular(q, k, v), v, torch.zeros(2, 1, 9, 1)).sum().backward()
        largest[tokens] = mode.numel
    assert largest[1024] == 2 * largest[512]
    assert largest[2048] == 4 * largest[512]
