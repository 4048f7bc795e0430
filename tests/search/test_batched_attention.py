"""Fused attention under vmap on the CPU: the same gradients, in one call for all images."""

import warnings
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, vmap

from asvit_plugin.search.batched_attention import BatchedAttention

SHAPE = (3, 2, 2, 9, 4)  # images, windows, heads, tokens, head_dim


def gradients(inputs: tuple[torch.Tensor, ...], batched: bool, **options: object) -> tuple[torch.Tensor, ...]:
    def loss(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, **options).square().sum()

    with BatchedAttention() if batched else nullcontext(), warnings.catch_warnings():
        warnings.simplefilter("error" if batched else "ignore")  # vmap warns where it goes image by image
        return vmap(grad(loss, argnums=(0, 1, 2)))(*inputs)


@pytest.mark.parametrize("options", [{}, {"scale": 0.3}], ids=str)
def test_gradients_are_the_same(options: dict) -> None:
    inputs = torch.randn(3, *SHAPE).double().unbind()
    for fast, slow in zip(gradients(inputs, True, **options), gradients(inputs, False, **options)):
        torch.testing.assert_close(fast, slow)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_other_attention_is_left_alone() -> None:
    inputs = torch.randn(3, *SHAPE).double().unbind()
    expected = vmap(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))(*inputs)
    with BatchedAttention():
        found = vmap(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))(*inputs)
    torch.testing.assert_close(found, expected)
