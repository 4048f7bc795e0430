"""The tangent kernel against the definition's loop, its parameters, and kernels that have no condition number."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import NETS, make, side
from PIL import Image

from asvit_plugin.search import ntk, ntk_condition
from asvit_plugin.search.features import PooledFeature
from asvit_plugin.search.naive import naive_tangent_kernel
from asvit_plugin.search.redrawing import draws


def drawn_feature(name: str) -> PooledFeature:
    return PooledFeature(next(draws(make(name), repeats=1, seed=0, device=None)).model)


@pytest.mark.parametrize("name", NETS)
def test_kernel_equals_the_loops(name: str) -> None:
    feature, images = drawn_feature(name).double(), torch.randn(3, 3, side(name), side(name)).double()
    ntk.freeze_batch_norms(feature, images)
    torch.testing.assert_close(ntk.tangent_kernel(feature, images), naive_tangent_kernel(feature, images))


def test_parameters_may_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    feature, images = drawn_feature("as_vit"), torch.randn(3, 3, 32, 32)
    together = ntk.tangent_kernel(feature, images)
    monkeypatch.setattr(ntk, "GRADIENT_NUMBERS", 3000)
    torch.testing.assert_close(ntk.tangent_kernel(feature, images), together)


def test_gradients_are_those_of_the_authors_parameters() -> None:
    feature = drawn_feature("as_vit").requires_grad_()
    feature(torch.randn(2, 3, 32, 32)).sum().backward()
    with_gradient = {
        name.removeprefix("model.")
        for name, parameter in feature.named_parameters()
        if parameter.grad is not None and "weight" in name
    }
    weights = {name.removeprefix("model.") for name in ntk.measured_weights(feature)}
    assert not any("bias" in name or "pos_embed" in name for name in weights)
    assert weights - with_gradient == {"norm.weight", "head.pre_logits.fc.weight", "head.fc.weight"}


def test_condition_by_hand() -> None:
    assert ntk.condition(torch.diag(torch.tensor([2.0, 8.0, 4.0]).double())) == pytest.approx(4.0)


@pytest.mark.parametrize("smallest", [0.0, -1.0, 1e-9, math.nan, math.inf])
def test_kernels_without_a_condition_number(smallest: float) -> None:
    assert math.isnan(ntk.condition(torch.diag(torch.tensor([1.0, smallest]).double())))


def test_equal_images_have_none() -> None:
    score = ntk_condition(make("as_vit"), images=torch.ones(4, 3, 32, 32), repeats=1)
    assert math.isnan(score.value)


def test_every_repeat_has_noise_of_its_own_but_a_tensor_is_shared() -> None:
    images = torch.randn(4, 3, 32, 32)
    score = ntk_condition(make("as_vit"), images=images, repeats=2)
    assert score == ntk_condition(make("as_vit"), images=images.clone(), repeats=2)
    assert score != ntk_condition(make("as_vit"), images=4, repeats=2)


def test_digits() -> None:
    pytest.importorskip("sklearn")
    score = ntk_condition(make("as_vit"), images="digits", repeats=2)
    assert math.isfinite(score.value)
    assert score.value > ntk_condition(make("as_vit"), repeats=2).value  # smooth images are more alike than noise


def test_folder(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "cats").mkdir()
    for i in range(17):
        pixels = generator.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "cats" / f"{i}.png")
    score = ntk_condition(make("as_vit"), images=tmp_path, repeats=2)
    assert score == ntk_condition(make("as_vit"), images=str(tmp_path), repeats=2)
    assert math.isfinite(score.value)
    for i in (3, 4):
        (tmp_path / "cats" / f"{i}.png").unlink()
    with pytest.raises(ValueError, match="with 15 images; there must be at least 16"):
        ntk_condition(make("as_vit"), images=tmp_path, repeats=1)


@pytest.mark.parametrize(
    "images, message",
    [
        (1, "images is 1; there must be at least 2"),
        ("photos", "images is 'photos'; it must be a count, a tensor, 'digits' or a folder of images"),
        (torch.zeros(4, 3, 16, 16), r"images is a tensor of \(4, 3, 16, 16\); it must be \(count, 3, 32, 32\)"),
        (torch.zeros(1, 3, 32, 32), "at least 2"),
    ],
    ids=["count", "folder", "shape", "too few"],
)
def test_refusals(images: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ntk_condition(make("as_vit"), images=images)
