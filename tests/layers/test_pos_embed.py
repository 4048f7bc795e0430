"""Resampling of position tables."""

import pytest
import torch
from timm.layers import resample_abs_pos_embed_nhwc

from asvit_plugin.layers import resample_pos_embed

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(7, 7), (5, 9), (1, 4)], ids=str)
def test_own_size_is_identity_to_the_bit(size: tuple[int, int], dtype: torch.dtype) -> None:
    table = torch.randn(1, *size, 6).to(dtype)
    out = resample_pos_embed(table, *size)
    assert out.dtype == dtype
    assert torch.equal(out, table)


@pytest.mark.parametrize("size", [(14, 14), (3, 11), (9, 4), (1, 1)], ids=str)
def test_equals_timm(size: tuple[int, int]) -> None:
    table = torch.randn(1, 7, 5, 6)
    expected = resample_abs_pos_embed_nhwc(table, list(size))
    torch.testing.assert_close(resample_pos_embed(table, *size), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_half_precision_is_the_rounded_single_precision_result(dtype: torch.dtype) -> None:
    table = torch.randn(1, 7, 7, 6).to(dtype)
    assert torch.equal(resample_pos_embed(table, 4, 10), resample_pos_embed(table.float(), 4, 10).to(dtype))


def test_gradient_reaches_the_table() -> None:
    table = torch.randn(1, 4, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: resample_pos_embed(t, 3, 6), table)
