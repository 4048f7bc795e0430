"""Entropy of PCA spectra with known answers, and which outputs are measured."""

import math

import pytest
import torch
from nets import make

from asvit_plugin.search import spectrum_entropy
from asvit_plugin.search.features import block_outputs
from asvit_plugin.search.spectrum import entropy


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_directions_of_equal_variance(dims: int) -> None:
    """2 * dims tokens, +-1 along each of ``dims`` directions among 8 channels, off the origin."""
    tokens = torch.cat([torch.eye(8)[:dims], -torch.eye(8)[:dims]]) + 3.0
    assert entropy(tokens) == pytest.approx(math.log(dims), abs=1e-6)


def test_fewer_tokens_than_channels_give_the_same_spectrum() -> None:
    tokens = torch.randn(6, 20)
    variances = torch.linalg.svdvals((tokens - tokens.mean(0)).double()) ** 2
    shares = variances / variances.sum()
    assert entropy(tokens) == pytest.approx(torch.special.entr(shares).sum().item())
    assert entropy(torch.cat([tokens] * 10)) == pytest.approx(entropy(tokens))


def test_features_that_do_not_vary_or_are_not_finite_have_none() -> None:
    assert math.isnan(entropy(torch.ones(5, 3)))
    assert math.isnan(entropy(torch.full((5, 3), math.inf)))


@pytest.mark.parametrize(
    "name, shapes",
    [
        ("as_vit", [(2 * 64, 8), (2 * 16, 16), (2 * 4, 32), (2, 64)]),
        ("scaled_vit", [(2 * 17, 16)] * 2),
        ("resnet18", [(2 * 64, 8), (2 * 16, 8), (2 * 4, 16), (2, 16)]),
    ],
)
def test_every_block_is_measured(name: str, shapes: list[tuple[int, int]]) -> None:
    outputs = block_outputs(make(name), torch.randn(2, 3, 32, 32))
    assert [tuple(tokens.shape) for tokens in outputs] == shapes


def test_bounds() -> None:
    score = spectrum_entropy(make("scaled_vit"), images=4, repeats=1)
    assert 0.0 < score.value < 2 * math.log(16)
