"""Spaces of ViT-ResNAS nets: those that come with the package, how nets nest, pools, and what is refused."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from network_spaces import SMALL, small

from asvit_plugin import NetworkDef
from asvit_plugin.costs import macs
from asvit_plugin.models.vit_resnas import NETWORKS
from asvit_plugin.models.vit_resnas_costs import network_macs
from asvit_plugin.search import load_space
from asvit_plugin.search.network_space import NetworkSpace, load_network_space
from asvit_plugin.search.space_schema import parse_space

SHIPPED = {  # nets, a removed block counted once; depths of the largest; stem width; GMACs of smallest and largest
    "sr_tiny_mh": (1.9e28, [6, 6, 6], 24, (0.75, 3.50)),
    "sr_small_mh": (4.2e32, [7, 7, 7], 24, (1.47, 6.26)),
    "sr_small": (4.2e32, [7, 7, 7], 32, None),
    "sr_tiny_666": (6.5e26, [6, 6, 6], 0, None),
    "sr_tiny": (5.4e21, [7, 7, 4], 0, None),
    "tiny": (4.1e17, [14], 0, None),
    "tiny_deep": (1.1e20, [16], 0, None),
    "small_deep": (1.1e20, [16], 0, None),
    "digits_vit_resnas": (3.5e11, [3, 3, 3], 8, None),
}


def num_networks(networks: NetworkSpace) -> int:
    """Nets of a shipped space, which names its decisions by stage and block."""
    options = {name: len(choices) for name, choices in networks.space.decisions.items()}
    total = math.prod(options[f"dim_{stage}"] for stage in range(1, len(networks.largest.dims) + 1))
    for name in (name for name, role in networks.roles.items() if role == "heads"):
        total *= options[name] * options[name.replace("heads", "mlp")] + (name.replace("heads", "exists") in options)
    return total


@pytest.mark.parametrize("name", SHIPPED)
def test_the_authors_spaces(name: str) -> None:
    size, depths, stem_width, reach = SHIPPED[name]
    networks = load_network_space(name)
    assert float(f"{num_networks(networks):.2g}") == size
    assert [len(stage) for stage in networks.largest.stages] == depths
    assert networks.largest.stem_width == stem_width
    assert networks.largest.num_classes == (10 if name.startswith("digits") else 1000)
    assert all(choices == tuple(sorted(choices, reverse=True)) for choices in networks.space.decisions.values())
    removed = {decision for decision, role in networks.roles.items() if role == "exists"}
    assert set(networks.space.pools) == (set() if name.startswith("digits") else removed)
    if reach:
        found = [network_macs(net) / 1e9 for net in (networks.smallest, networks.largest)]
        assert [round(each, 2) for each in found] == list(reach)


def test_the_digits_space_spans_a_factor_of_four() -> None:
    networks = load_network_space("digits_vit_resnas")
    smallest, largest = (network_macs(net, 56, in_chans=1) for net in (networks.smallest, networks.largest))
    assert largest >= 4 * smallest
    model = timm.create_model("vit_resnas", network_def=str(networks.smallest), img_size=56, in_chans=1, num_classes=10)
    assert smallest == macs(model, (1, 56, 56))


@pytest.mark.parametrize(
    ("name", "published", "removed"),
    [
        ("sr_tiny_mh", "vit_resnas_tiny", ["exists_1_6", "exists_3_6"]),
        ("sr_small_mh", "vit_resnas_small", ["exists_1_4", "exists_2_6", "exists_3_4", "exists_3_6"]),
        ("sr_small_mh", "vit_resnas_medium", []),
    ],
)
def test_the_published_nets_are_points(name: str, published: str, removed: list[str]) -> None:
    networks, net = load_network_space(name), NETWORKS[published]
    choice = networks.largest_choice() | dict.fromkeys(removed, 0)
    for stage, (dim, blocks) in enumerate(zip(net.dims, net.stages), start=1):
        choice[f"dim_{stage}"] = dim
        kept = [block for block in range(1, 8) if choice.get(f"exists_{stage}_{block}", 1)]
        for block, found in zip(kept, blocks):
            choice[f"heads_{stage}_{block}"], choice[f"mlp_{stage}_{block}"] = found.num_heads, found.mlp_hidden_dim
            if not found.exists:
                choice[f"exists_{stage}_{block}"] = 0
    drawn = networks.network(choice)
    networks.space.check(choice)
    assert network_macs(drawn) == network_macs(net)
    present = [[block for block in stage if block.exists] for stage in drawn.stages]
    assert present == [[block for block in stage if block.exists] for stage in net.stages]


def test_largest_smallest_and_roles() -> None:
    networks = small()
    assert networks.largest_choice()["heads_1_2"] == 3
    assert networks.smallest_choice()["heads_1_2"] == 1
    assert networks.largest == networks.network(networks.largest_choice())
    assert networks.smallest == networks.network(networks.smallest_choice())
    assert networks.smallest.dims == (24, 48)
    assert [block.exists for stage in networks.smallest.stages for block in stage] == [True, False] * 2
    roles = {"dim": "embed", "heads": "heads", "mlp": "mlp", "exists": "exists"}
    assert networks.roles == {name: roles[name.partition("_")[0]] for name in networks.space.decisions}


@pytest.mark.parametrize("name", ["sr_tiny_mh", "tiny", "digits_vit_resnas"])
def test_drawn_nets_are_those_of_the_space_and_nest(name: str) -> None:
    networks, rng = load_network_space(name), np.random.default_rng(0)
    for _ in range(20):
        choice = networks.space.sample(rng)
        net = networks.network(choice)
        assert net == NetworkDef.parse(networks.space.arguments(choice)[1]["network_def"])
        for stage, whole in zip(net.stages, networks.largest.stages, strict=True):
            for block, other in zip(stage, whole, strict=True):
                assert block.head_dim == other.head_dim
                assert block.num_heads <= other.num_heads
                assert block.mlp_hidden_dim <= other.mlp_hidden_dim


def test_widths_of_removed_blocks_make_no_other_net() -> None:
    networks = small()
    one = networks.largest_choice() | {"exists_1_2": 0, "heads_1_2": 1}
    other = one | {"mlp_1_2": 32}
    assert networks.network(one) != networks.network(other)
    assert networks.distinct_network(one) == networks.distinct_network(other)
    assert networks.distinct_network(one) != networks.distinct_network(other | {"mlp_1_1": 32})
    assert networks.distinct_network(one) != networks.distinct_network(networks.largest_choice())


def test_constraints_do_not_bind_the_corners() -> None:
    space = parse_space(SMALL + "constraints: [exists_1_2 + exists_2_2 == 1]", "small")
    networks = NetworkSpace(space)
    assert not space.allows(networks.largest_choice())
    assert all(block.exists for stage in networks.largest.stages for block in stage)
    assert networks.network(networks.largest_choice()) == networks.largest


def test_a_decision_may_be_about_several_blocks() -> None:
    text = SMALL.replace("exists_{stage}_2: [1, 0]", "depth: [3, 2, 1]")
    for stage, least in ((1, 2), (2, 3)):
        text = text.replace(f"{{exists_{stage}_2}}", f"{{1 if depth >= {least} else 0}}")
    networks = NetworkSpace(parse_space(text, "small"))
    assert networks.roles["depth"] == "exists"
    net = networks.network(networks.largest_choice() | {"depth": 2})
    assert [[block.exists for block in stage] for stage in net.stages] == [[True, True], [True, False]]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[64, 48]", "[64, 28]", "no net with dim_2=28 and the rest at their largest: .*D_out of at least 32"),
        ("[64, 48]", "[64, 16]", "no net with dim_2=16 and the rest at their largest"),
        ("dim_1: [32, 24]", "dim_1: [96, 24]", "no net with all decisions at their largest"),
        ("mlp_{stage}_{block}: [64, 32]", "mlp_{stage}_{block}: [64, 0]", "mlp_1_1=0 .*whole numbers from 1"),
        ("mlp_{stage}_{block}: [64, 32]", "mlp_{stage}_{block}: ['64', '32']", "'mlp_1_1' .* takes numbers only"),
        ("{mlp_1_2}), {exists_1_2}", "{mlp_1_2}), 1", "'exists_1_2' .* is about nothing of the net"),
        ("{mlp_1_2}), {exists_1_2}", "{mlp_1_2 + exists_1_2}), {exists_1_2}", "'exists_1_2' .* about mlp and exists"),
        ("{heads_1_1}, 8)", "{4 - heads_1_1}, {24 // heads_1_1})", "heads of 24 channels in block 1.* nest"),
        ("{heads_1_1}, 8)", "{4 - heads_1_1}, 8)", "a block 1 that is wider than the largest net's.* nest"),
        ("(4, {dim_1})", "(5, {dim_1}, {dim_1})", "dim_1=24 and .* has a stem or a number of classes of its own"),
        ("{dim_2}, 10)", "{dim_2}, {dim_2})", "dim_2=48 and .* has a stem or a number of classes of its own"),
        ("{exists_1_2}), (3", "{1 - exists_1_2}), (3", "exists_1_2=0 .* a block 2 that the largest net lacks"),
        ("model: vit_resnas", "model: vit_resnas_tiny", "of the model 'vit_resnas_tiny'"),
        ("network_def:", "net:", "the argument network_def"),
    ],
)  # fmt: skip
def test_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        small(old, new)
    assert "\n" not in str(error.value)


def test_nets_of_other_depths_are_refused() -> None:
    text = """
model: vit_resnas
for_each: {block: [1, 2]}
decisions: {depth: [2, 1], dim: [32, 24]}
arguments:
  network_def:
    join: ", "
    of:
      - "((4, {dim})"
      - {for: block, if: "{block} <= depth", of: "(1, ({dim}, 2, 8), ({dim}, 64), 1)", join: ", "}
      - "(2, {dim}, 10))"
"""
    with pytest.raises(ValueError, match=r"depth=1 and the rest at their largest has \[1\] blocks .* \[2\]"):
        NetworkSpace(parse_space(text, "deep"))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"dim_1": 28}, "'dim_1' is 28; it must be one of"), ({"more": 1}, "choice has the decisions")],
)
def test_choices_that_are_none(change: dict[str, Any], message: str) -> None:
    networks = small()
    with pytest.raises(ValueError, match=message):
        networks.network(networks.largest_choice() | change)


def test_pools() -> None:
    plain = parse_space(SMALL, "small")
    pooled = parse_space(SMALL + "pools: {'exists_{stage}_2': [2, 1], dim_1: [1, 0]}", "small")
    assert plain.pools == {}
    assert pooled.pools == {"exists_1_2": (2, 1), "exists_2_2": (2, 1), "dim_1": (1, 0)}
    assert pooled.fingerprint != plain.fingerprint
    assert replace(pooled, pools={}).fingerprint == plain.fingerprint


def test_fingerprints_of_before_pools_have_not_changed() -> None:
    assert load_space("as_vit").fingerprint == "2c67b39015fd55cc"
    assert load_space("plain_vit").fingerprint == "a875e078ce0abac1"


@pytest.mark.parametrize(
    ("pools", "message"),
    [
        ("{exists_1_2: [1]}", r"pool of decision 'exists_1_2' .* is \[1\]; it must be a whole number of at least 0"),
        ("{exists_1_2: [1, 2, 3]}", r"is \[1, 2, 3\]"),
        ("{exists_1_2: [1, -1]}", r"is \[1, -1\]"),
        ("{exists_1_2: [1, 0.5]}", r"is \[1, 0.5\]"),
        ("{exists_1_2: [true, 1]}", r"is \[True, 1\]"),
        ("{exists_1_2: [0, 0]}", r"is \[0, 0\]"),
        ("{exists_1_2: 3}", "pool of decision 'exists_1_2' is 3; it must be a list"),
        ("{exists_1_2: [1, 1], 'exists_{stage}_2': [1, 1]}", "pool of decision 'exists_1_2' .* declared twice"),
        ("{nosuch: [1, 1]}", "pools of space 'small' name 'nosuch', which is no decision"),
        ("[1, 2]", "pools of space 'small' is .*; it must be a mapping"),
    ],
)
def test_refused_pools(pools: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_space(SMALL + f"pools: {pools}", "small")


def test_variables_side_by_side() -> None:
    text = (
        "model: m\nfor_each: {odd: [1, 3], even: [2, 4], all: [1, 2, 3, 4]}\ndecisions: {'a_{all}': [1, 2]}\n"
        "arguments: {x: {for: [odd, even], join: ' ', of: '{a_{odd}}/{a_{even}}'}}\n"
    )
    choice = {"a_1": 1, "a_2": 2, "a_3": 1, "a_4": 1}
    assert parse_space(text, "s").arguments(choice) == ("m", {"x": "1/2 1/1"})
    with pytest.raises(ValueError, match=r"argument 'x' repeats over \['odd', 'all'\] together"):
        parse_space(text.replace("for: [odd, even]", "for: [odd, all]"), "s")
    with pytest.raises(ValueError, match="argument 'x' repeats over 'nosuch'"):
        parse_space(text.replace("for: [odd, even]", "for: [odd, nosuch]"), "s")


def test_a_net_of_the_space_runs() -> None:
    networks = load_network_space("digits_vit_resnas")
    net = networks.network(networks.space.sample(np.random.default_rng(0)))
    model = timm.create_model("vit_resnas", network_def=str(net), img_size=56, in_chans=1, num_classes=10)
    assert model(torch.zeros(2, 1, 56, 56)).shape == (2, 10)
