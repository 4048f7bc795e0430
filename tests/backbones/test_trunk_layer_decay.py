"""Learning rates that fall towards the image, by the groups of timm's models."""

import pytest
import torch
from timm.models import group_parameters
from torch import nn
from trunks import TRUNKS, make_trunk

from asvit_plugin.backbones import FeatureTrunk, layer_decay_factors, lr_factor_func


class Detector(nn.Module):
    def __init__(self, trunk: FeatureTrunk) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"bottom_up": trunk})
        self.head = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize("name", list(TRUNKS))
def test_every_parameter_has_its_factor(name: str) -> None:
    detector = Detector(make_trunk(name, norm="LN"))
    factors = layer_decay_factors(detector, 0.5)
    assert set(factors) == {key for key, _ in detector.named_parameters()}
    trunk = detector.backbone["bottom_up"].model
    layers = group_parameters(trunk, trunk.group_matcher(), reverse=True)
    depth = max(layers.values()) + 1
    for key, factor in factors.items():
        inner = key.removeprefix("backbone.bottom_up.model.")
        assert factor == (1.0 if inner == key else 0.5 ** (depth - layers[inner]))
    assert max(factors[f"backbone.bottom_up.model.{key}"] for key in layers) == 0.5
    factor = lr_factor_func(detector, 0.5)
    assert all(factor(key) == value for key, value in factors.items())
    assert factor(".scale") == 1.0  # how detectron2 writes it


def test_plain_vits_get_the_rates_of_vitdet() -> None:
    """Stem and positions 0.7^4 before three blocks, then 0.7^3 to 0.7, then 1."""
    factors = layer_decay_factors(make_trunk("vit_tiny_patch16_224"), 0.7)
    assert factors["model.pos_embed"] == factors["model.patch_embed.proj.weight"] == pytest.approx(0.7**4)
    assert [factors[f"model.blocks.{i}.mlp.fc1.weight"] for i in range(3)] == pytest.approx([0.343, 0.49, 0.7])


def test_a_final_norm_goes_with_the_last_layer() -> None:
    factors = layer_decay_factors(make_trunk("as_vit", norm="trunk"), 0.5)
    assert factors["model.norm.weight"] == factors["model.stages.3.blocks.0.norm1.weight"] == 0.5


def test_refusals() -> None:
    trunk = make_trunk("as_vit")
    with pytest.raises(ValueError, match=r"layer_decay is 0; it must be above 0 and at most 1"):
        layer_decay_factors(trunk, 0)
    with pytest.raises(ValueError, match=r"'head.weight' is no parameter of the FeatureTrunk"):
        lr_factor_func(trunk, 0.5)("head.weight")
    with pytest.raises(ValueError, match=r"poolformer_s12 does not say what its layers are"):
        layer_decay_factors(FeatureTrunk("poolformer_s12"), 0.5)
