"""Nets that scaling begins with: their names, the spaces around them stage by stage, and what their points cost."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import timm

from asvit_plugin.costs import macs, params
from asvit_plugin.models.as_vit_genotype import AsViTGenotype
from asvit_plugin.search.measuring import count_costs
from asvit_plugin.search.scaling_bases import BASES, find_base
from asvit_plugin.search.scaling_costs import Pricing, Target
from asvit_plugin.search.scaling_formulas import count
from asvit_plugin.search.scaling_space import extreme, space_yaml
from asvit_plugin.search.space_schema import parse_space

SEED = "8,2,3|4,1,2|4,1,4|4,1,6|32"
DEIT = {f"deit_{size}": f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")}
PIT = {f"pit_{size}": f"pit_{size}_224" for size in ("ti", "xs", "s")}
STOCK = {**DEIT, **PIT, "scaled_vit": "scaled_vit", "scaled_pit": "scaled_pit"}
STOCK |= {name: name for name in ("as_vit", "as_vit_small", "as_vit_base", "as_vit_large")}


@pytest.mark.parametrize("name", BASES)
def test_is_the_net_of_its_name(name: str) -> None:
    base, theirs = find_base(name), timm.create_model(STOCK[name], device="meta")
    ours = timm.create_model(base.model, **base.arguments, device="meta")
    assert (base.name, base.space.model) == (name, base.model)
    assert base.space.arguments(base.choice) == (base.model, base.arguments)
    assert [tuple(each.shape) for each in ours.parameters()] == [tuple(each.shape) for each in theirs.parameters()]
    assert macs(ours) == macs(theirs)
    assert count(base.model, base.arguments) == {"params": params(theirs), "macs": macs(theirs)}


def test_stages_of_a_pit_have_decisions_of_their_own() -> None:
    base = find_base("pit_ti")
    stages = [f"{name}_{stage}" for name in ("depth", "num_heads", "mlp_ratio") for stage in (1, 2, 3)]
    assert list(base.space.decisions) == [*stages, "head_dim", "img_size", "patch_size"]
    assert list(base.choice.values()) == [2, 6, 4, 2, 4, 8, 4, 4, 4, 32, 224, 16]
    _, arguments = base.space.arguments({**base.choice, "depth_2": 9, "mlp_ratio_3": 2, "patch_size": 28})
    assert (arguments["depth"], arguments["mlp_ratio"]) == ([2, 9, 4], [4, 4, 2])
    assert (arguments["patch_size"], arguments["stride"]) == (28, 14)


def test_a_pits_stride_is_the_same_part_of_another_patch() -> None:
    found = find_base("pit_ti", {"patch_size": 8, "img_size": 64}).arguments
    assert (found["patch_size"], found["stride"]) == (8, 4)
    assert find_base("pit_ti", {"patch_size": 8, "stride": 8, "img_size": 64}).arguments["stride"] == 8


def test_stages_of_an_as_vit_keep_kernels_and_splits() -> None:
    base = find_base("as_vit_small")
    stages = [f"{name}_{stage}" for name in ("depth", "mlp_ratio") for stage in (1, 2, 3, 4)]
    assert list(base.space.decisions) == [*stages, "num_heads", "width", "img_size"]
    _, arguments = base.space.arguments({**base.choice, "depth_3": 6, "width": 96, "num_heads": 16, "img_size": 256})
    assert arguments == {"genotype": "8,2,3,3|4,1,2,1|4,1,4,6|4,1,6,2|16,96", "img_size": 256}
    assert all(side % 32 == 0 for side in base.space.decisions["img_size"])  # no padding
    assert find_base(SEED).arguments["genotype"] == str(AsViTGenotype.parse(SEED))


def test_a_factor_is_that_of_all_stages_and_one_stage_may_differ() -> None:
    space = find_base("pit_ti", factors={"depth_3": (5, 6), "depth": (1, 2), "head_dim": None}).space
    assert {name: space.decisions[name] for name in ("depth_1", "depth_2", "depth_3")} == {
        "depth_1": (1, 2), "depth_2": (1, 2, 6), "depth_3": (4, 5, 6),
    }  # fmt: skip
    assert set(space.decisions) == {"depth_1", "depth_2", "depth_3", "head_dim"}
    assert space.template["num_heads"] == [2, 4, 8]
    assert space.constraints == ()
    one = find_base("as_vit", factors={"depth_2": (3,)}).space
    assert dict(one.decisions) == {"depth_2": (1, 3)}
    assert one.arguments({"depth_2": 3})[1]["genotype"] == "8,2,3,1|4,1,2,3|4,1,4,1|4,1,6,1|32,32"


def test_what_is_no_factor_stays() -> None:
    vit = find_base("deit_tiny", {"class_token": False, "global_pool": "avg"}, {"depth": (6,)})
    assert vit.space.arguments({"depth": 6})[1] == {**vit.arguments, "depth": 6}
    assert vit.arguments["class_token"] is False
    pit = find_base("scaled_pit", {"embed_dims": (64, 128, 256), "stride": 4, "depth": (1, 1, 2)})
    assert pit.space.constraints == ("img_size % patch_size == 0", "patch_size % 4 == 0")  # widths are given
    assert pit.space.template["stride"] == "{patch_size * 1 // 4}"
    net = find_base(SEED, {"stem_stride": 2, "img_size": 32, "pos_embed": False})
    assert {"stem_stride": 2, "pos_embed": False}.items() <= net.arguments.items()
    assert net.space.decisions["img_size"] == (16, 32, 48, 64)


@pytest.mark.parametrize("name", ["deit_small", "pit_s", "as_vit_base", SEED])
def test_all_points_can_be_built_and_are_counted_exactly(name: str) -> None:
    space, rng = find_base(name, {"img_size": 96}).space, np.random.default_rng(0)
    assert parse_space(space_yaml(space), "read").fingerprint == space.fingerprint
    for _ in range(3):
        model, arguments = space.arguments(space.sample(rng))
        assert count(model, arguments) == count_costs(model, arguments)


def test_padded_as_vits_are_counted_exactly() -> None:
    others = {"stem_stride": 2, "in_chans": 1, "num_classes": 7, "pos_embed": False}
    for img_size in (100, 128):
        arguments = {"genotype": "3,3,2,1|2,2,3,2|3,1,1,1|2,1,2,1|20,12", "img_size": img_size, **others}
        assert count("as_vit", arguments) == count_costs("as_vit", arguments)
    bare = {"genotype": SEED, "img_size": 64, "num_classes": 0}
    assert count("as_vit", bare) == count_costs("as_vit", bare)


SMALL: dict[str, Any] = {
    "pit_ti": {"depth": (1, 3), "num_heads": (2, 3), "mlp_ratio_2": (1,), "img_size": (32, 56), "patch_size": (14, 28)},
    "as_vit": {"depth_3": (2,), "num_heads": (12, 64), "width": (6, 20), "img_size": (64, 100)},
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("budget", ["macs", "params"])
def test_extremes_are_those_of_all_points(name: str, budget: str) -> None:
    base = find_base(name, {"img_size": 64}, SMALL[name])
    counted = Pricing(base.space, Target(budget)).counted
    points = (dict(zip(base.space.decisions, values)) for values in itertools.product(*base.space.decisions.values()))
    costs = [counted(point)[budget] for point in points if base.space.allows(point)]
    found = [extreme(base.space, base.choice, lambda c: counted(c)[budget], largest) for largest in (False, True)]
    assert [counted(each)[budget] for each in found] == [min(costs), max(costs)]
    assert len(costs) < math.prod(map(len, base.space.decisions.values()))  # constraints have a part in it


@pytest.mark.parametrize("name", ["pit_s", "as_vit_large"])
def test_extremes_of_large_spaces_are_found_by_few_counts(name: str) -> None:
    base, calls = find_base(name), []
    extreme(base.space, base.choice, lambda c: calls.append(c) or count(*base.space.arguments(c))["macs"])
    assert base.space.size > 1e8
    assert len(calls) < 2000


@pytest.mark.parametrize(
    ("net", "arguments", "factors", "message"),
    [
        ("deit_giant", {}, None, "base is 'deit_giant'; it must be one of deit_tiny, .*, or a genotype of As-ViT"),
        ("8,2|4", {}, None, "genotype '8,2|4' has 1 stages before its last field"),
        ("as_vit", {"stem_stride": 0}, None, "stem_stride is 0; it must be a whole number of pixels"),
        ("as_vit", {}, {"head_dim": None}, "factors is 'head_dim'; it must be one of 'depth', .*'width', 'img_size'"),
        ("as_vit", {}, {"mlp_ratio": (2.5,)}, "mlp_ratio_1 is 2.5; as a scaling factor it must be a whole number"),
        ("as_vit", {}, {"depth_5": None}, "factors is 'depth_5'; it must be one of 'depth', .*'depth_4'"),
        ("deit_tiny", {}, {"depth_1": None}, "factors is 'depth_1'; it must be one of 'depth', 'num_heads'"),
        ("pit_ti", {"num_heads": (2, 3, 8)}, None, r"embed_dims is \[64, 96, 256\] .*a multiple of the one before"),
        ("pit_ti", {"depth": 3}, None, "depth is 3; it must be whole numbers of at least 1, one per stage"),
        ("pit_ti", {"head_dim": (16, 32, 32)}, None, r"head_dim is \(16, 32, 32\); as a scaling factor it must be"),
        ("pit_ti", {"img_size": 100}, None, "choice breaks the constraint 'img_size % patch_size == 0'"),
        ("deit_tiny", {"patch_size": 0}, None, "patch_size is 0; as a scaling factor it must be a whole number"),
        ("deit_tiny", {"patch_size": 16.5}, None, "patch_size is 16.5; as a scaling factor it must be a whole number"),
        ("pit_ti", {"patch_size": 8, "stride": 9}, None, "stride is 9; it must be a whole number from 1 to patch_size"),
    ],
)
def test_refuses(net: str, arguments: dict[str, Any], factors: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("|", r"\|") if "|" in net else message):
        find_base(net, arguments, factors)
