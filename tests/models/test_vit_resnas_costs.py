"""ViT-ResNAS's analytic costs against counting on the built net."""

from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import nn

from asvit_plugin.costs import macs, params
from asvit_plugin.models.vit_resnas import NETWORKS
from asvit_plugin.models.vit_resnas_costs import network_macs, network_params
from asvit_plugin.models.vit_resnas_genotype import NetworkDef

DEFINITIONS = {
    "conv stem": "((4, 24), (1, (24, 2, 8), (24, 40), 1), (3, 24, 48), (1, (48, 3, 16), (48, 56), 1), (3, 48, 72), "
    "(1, (72, 4, 12), (72, 100), 1), (2, 72, 7))",
    "stem of its own width": "((5, 16, 10), (1, (16, 1, 8), (16, 24), 1), (3, 16, 16), (1, (16, 2, 8), (16, 8), 1), "
    "(3, 16, 40), (1, (40, 4, 8), (40, 56), 1), (2, 40, 11))",
    "linear stem": "((0, 24), (1, (24, 2, 8), (24, 40), 1), (3, 24, 48), (1, (48, 3, 16), (48, 56), 1), (2, 48, 7))",
    "one stage": "((4, 32), (1, (32, 2, 16), (32, 64), 1), (1, (32, 1, 16), (32, 96), 1), (2, 32, 5))",
    "removed blocks": "((4, 24), (1, (24, 2, 8), (24, 40), 0), (1, (24, 2, 8), (24, 32), 1), (3, 24, 48), "
    "(1, (48, 3, 16), (48, 56), 0), (3, 48, 48), (1, (48, 4, 12), (48, 100), 1), (2, 48, 7))",
    "no block left": "((0, 24), (1, (24, 2, 8), (24, 40), 0), (3, 24, 48), (1, (48, 3, 16), (48, 56), 0), (2, 48, 7))",
}
SIZES = [56, 100, 112, 224, 230, 280, 392, (56, 112), (100, 230), (1, 57)]


@cache
def built(definition: str, **kwargs: Any) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model("vit_resnas", network_def=definition, num_classes=classes_of(definition), **kwargs)


def classes_of(definition: str) -> int:
    return NetworkDef.parse(definition).num_classes


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("definition", DEFINITIONS.values(), ids=DEFINITIONS)
def test_equals_counting(definition: str, size: int | tuple[int, int]) -> None:
    net = NetworkDef.parse(definition)
    assert network_macs(net, size) == macs(built(definition), (3, *pair(size)))
    assert network_params(net, size) == params(built(definition, img_size=size))


@pytest.mark.parametrize(
    ("options", "costs"),
    [
        ({"distilled": True}, {"num_prefix_tokens": 2}),
        ({"patch_head": True}, {}),
        ({"in_chans": 1}, {"in_chans": 1}),
        ({"num_classes": 23}, {"num_classes": 23}),
        ({"num_classes": 0}, {"num_classes": 0}),
        ({"num_classes": 0, "patch_head": True}, {"num_classes": 0}),
        ({"num_classes": 23, "distilled": True, "in_chans": 5}, dict(num_classes=23, num_prefix_tokens=2, in_chans=5)),
        ({"global_pool": "avg"}, {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["conv stem", "linear stem", "removed blocks"])
def test_equals_counting_with_options(name: str, options: dict[str, Any], costs: dict[str, Any]) -> None:
    net = NetworkDef.parse(DEFINITIONS[name])
    with torch.device("meta"):
        model = timm.create_model(
            "vit_resnas", network_def=DEFINITIONS[name], img_size=112, **{"num_classes": net.num_classes, **options}
        )
    assert network_macs(net, 140, **costs) == macs(model, (options.get("in_chans", 3), 140, 140))
    heads = {"patch_head": True} if options.get("patch_head") else {}
    assert network_params(net, 112, **costs, **heads) == params(model)


@pytest.mark.parametrize(
    ("name", "expected_params", "expected_macs"),
    [
        ("vit_resnas_tiny", 40_793_552, 1.7826e9),
        ("vit_resnas_small", 63_724_108, 2.8455e9),
        ("vit_resnas_medium", 96_442_672, 4.5131e9),
        ("vit_res_tiny", 42_012_736, 1.7944e9),
    ],
)
def test_published_nets(name: str, expected_params: int, expected_macs: float) -> None:
    assert network_params(NETWORKS[name]) == expected_params
    assert round(network_macs(NETWORKS[name]) / 1e9, 4) == expected_macs / 1e9


@pytest.mark.parametrize(("size", "expected"), [(280, 7.2191), (336, 10.7391), (392, 15.2009)])
def test_medium_at_its_sizes_of_fine_tuning(size: int, expected: float) -> None:
    """Where the authors' rule counts the stem as at 224 px."""
    assert round(network_macs(NETWORKS["vit_resnas_medium"], size) / 1e9, 4) == expected
