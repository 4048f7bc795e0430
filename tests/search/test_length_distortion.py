"""Length distortion against the definition's own reverse-mode loop, and the net that it is measured on."""

import math

import pytest
import torch
import torch.nn.functional as F
from nets import AS_VIT, NETS, make, side
from torch import nn

from asvit_plugin.search import length_distortion
from asvit_plugin.search.distortion import circle, circle_frame, curve_length
from asvit_plugin.search.features import PooledFeature
from asvit_plugin.search.naive import naive_curve_length
from asvit_plugin.search.norms import remove_norms
from asvit_plugin.search.redrawing import draws


def test_equals_the_definitions_loop_at_64_px() -> None:
    model = make("as_vit", **AS_VIT)
    values = []
    for draw in draws(model, repeats=2, seed=5, device=None):
        feature = PooledFeature(remove_norms(draw.model))
        values.append(naive_curve_length(feature, circle_frame((3, 64, 64), draw.generator), points=10))
    score = length_distortion(model, img_size=64, repeats=2, seed=5)
    assert score.values == pytest.approx(values, rel=1e-6)


@pytest.mark.parametrize("name", NETS)
def test_equals_the_loop_on_other_families(name: str) -> None:
    shape = (3, side(name), side(name))
    draw = next(draws(make(name), repeats=1, seed=0, device=None))
    feature, frame = PooledFeature(remove_norms(draw.model)).double(), circle_frame(shape, draw.generator).double()
    assert curve_length(feature, frame, 4) == pytest.approx(naive_curve_length(feature, frame, 4, chunk=3), rel=1e-10)


def test_float32_is_enough() -> None:
    draw = next(draws(make("as_vit", **AS_VIT), repeats=1, seed=0, device=None))
    feature, frame = PooledFeature(remove_norms(draw.model)), circle_frame((3, 64, 64), draw.generator)
    single = curve_length(feature, frame, 10)
    assert single == pytest.approx(curve_length(feature.double(), frame.double(), 10), rel=1e-6)


def test_the_circle_has_radius_one() -> None:
    frame = circle_frame((3, 8, 8), torch.Generator().manual_seed(0))
    images = circle(frame, torch.linspace(0, 2 * math.pi, 10))
    torch.testing.assert_close(images.flatten(1).norm(dim=1), torch.ones(10))
    torch.testing.assert_close(frame.flatten(1) @ frame.flatten(1).T, torch.eye(2), atol=1e-6, rtol=0)


def test_a_linear_map_by_hand() -> None:
    """On the unit circle through (1, 0) and (0, 1), diag(3, 3) turns lengths into thrice themselves."""
    frame = torch.eye(2).reshape(2, 2, 1, 1)
    scaled = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    scaled[1].weight = nn.Parameter(3 * torch.eye(2))
    assert curve_length(scaled, frame, points=7) == pytest.approx(7 * 3)


@pytest.mark.parametrize("name", NETS)
def test_no_norm_is_left(name: str) -> None:
    model = remove_norms(make(name))
    left = [name for name, module in model.named_modules() if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d))]
    assert left == []


def test_a_merge_without_its_norm_is_the_unfolded_projection() -> None:
    model = make("as_vit", genotype="4,2,2|3,1,2|2,1,2|2,1,2|8,8")
    x = torch.randn(2, 8, 8, 8)
    weight = model.stages[1].downsample.reduction.weight.detach()
    merged = remove_norms(model).stages[1].downsample(x)
    patches = F.unfold(F.pad(x.permute(0, 3, 1, 2), (0, 1, 0, 1)), 3, stride=2)  # an odd kernel pads behind
    torch.testing.assert_close(merged.flatten(1, 2), patches.mT @ weight.T)


def test_too_few_points() -> None:
    with pytest.raises(ValueError, match="points is 1; a curve needs at least 2"):
        length_distortion(make("as_vit"), points=1)
