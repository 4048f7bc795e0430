"""Costs of mixtures: the mean over all nets by their probabilities, and the counted cost where there is one net."""

import math
from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from supernets import LINEAR_STEM, ONE_STAGE, TWO_STAGES, choices, supernet

from asvit_plugin import NetworkDef
from asvit_plugin.costs import macs, params
from asvit_plugin.models.vit_resnas_costs import network_macs, network_params
from asvit_plugin.search.gated_costs import Nets, Table, cost_tables, size_tables
from asvit_plugin.search.gated_net import GatedResNAS
from asvit_plugin.search.network_space import NetworkSpace, load_network_space
from asvit_plugin.search.space import Choice, Space

SPACES = {"two_stages": TWO_STAGES, "linear_stem": LINEAR_STEM, "one_stage": ONE_STAGE}
# One gate for two stages' widths, one for the heads of both blocks, and two that add up in one width.
TIED = NetworkSpace(
    Space(
        "tied",
        "vit_resnas",
        {"dim": (12, 8), "heads": (3, 2, 1), "units": (8, 4), "more": (6, 3, 0)},
        {
            "network_def": "((0, {dim}), (1, ({dim}, {heads}, 4), ({dim}, {units + more}), 1), (3, {dim}, {2 * dim}), "
            "(1, ({2 * dim}, {heads}, 6), ({2 * dim}, {2 * units}), 1), (2, {2 * dim}, 5))"
        },
    )
)


def points(space: Space) -> list[Choice]:
    return [dict(zip(space.decisions, values)) for values in product(*space.decisions.values())]


def gated(networks: NetworkSpace, **kwargs: Any) -> GatedResNAS:
    net = GatedResNAS(supernet(networks, **kwargs))
    for gate in net.gates.values():
        torch.nn.init.normal_(gate.logits)
    return net


@pytest.mark.parametrize("name", ["macs", "params"])
@pytest.mark.parametrize("networks", [TIED, ONE_STAGE], ids=["tied", "one_stage"])
def test_the_expectation_is_exact(networks: NetworkSpace, name: str) -> None:
    """The sum over all nets of probability times cost, and its gradient."""
    net = gated(networks)
    probabilities = net.gates.probabilities()
    formula = {"macs": network_macs, "params": network_params}[name]
    expected = torch.zeros((), dtype=torch.float64)
    for choice in points(networks.space):
        odds = [probabilities[each][gate.options.index(choice[each])] for each, gate in net.gates.items()]
        expected = expected + math.prod(odds) * formula(networks.network(choice), 56, 3, 5)
    logits = [gate.logits for gate in net.gates.values()]
    assert net.cost(name).item() == pytest.approx(expected.item(), rel=1e-12)
    for got, gradient in zip(torch.autograd.grad(net.cost(name), logits), torch.autograd.grad(expected, logits)):
        torch.testing.assert_close(got, gradient, rtol=1e-5, atol=1e-2)  # logits are in single precision


@pytest.mark.parametrize("kwargs", [{}, {"distilled": True}, {"patch_head": True}, {"in_chans": 1}], ids=str)
@pytest.mark.parametrize("networks", SPACES.values(), ids=SPACES)
def test_one_net_costs_what_is_counted_to_the_unit(networks: NetworkSpace, kwargs: dict[str, Any]) -> None:
    net = gated(networks, **kwargs)
    for choice in choices(networks, 3):
        alone = net.extract(choice)
        counted = {"macs": macs(alone, (net.network.in_chans, 56, 56)), "params": params(alone)}
        net.gates.fix(choice)
        for name, cost in counted.items():
            assert net.cost(name, drawn=True).item() == cost
            assert net.cost_of(name, choice) == cost
        for each, gate in net.gates.items():
            gate.logits.data = torch.where(torch.arange(len(gate.options)) == gate.options.index(choice[each]), 0, -1e6)
        assert net.cost("macs").item() == counted["macs"]
        net.gates.draw()
        assert net.cost("params", drawn=True).item() == counted["params"]


def test_shipped_spaces_cost_what_the_formula_says() -> None:
    networks = load_network_space("digits_vit_resnas")
    nets = Nets(networks.space, networks.largest, networks.network)
    terms = cost_tables(nets, size_tables(nets), lambda net, stride: network_macs(net, 56))
    assert len(terms) == 1 + 9
    assert sum(table.values.numel() for table in terms) < 1000
    for choice in choices(networks, 20):
        places = {name: options.index(choice[name]) for name, options in networks.space.decisions.items()}
        total = sum(table.values[tuple(places[name] for name in table.names)].item() for table in terms)
        assert total == network_macs(networks.network(choice), 56)


def test_a_product_of_expectations_would_be_noticed() -> None:
    """A width that one gate gives to input and output of a layer: E[c^2] is not E[c]^2."""
    net = gated(TIED)
    odds = net.gates.probabilities()["dim"].detach()
    mean = (odds @ torch.tensor([12.0, 8.0], dtype=torch.float64)).item()
    squares = (odds @ torch.tensor([144.0, 64.0], dtype=torch.float64)).item()
    net.add_cost("squares", lambda definition, stride: definition.dims[0] ** 2)
    assert net.cost("squares").item() == pytest.approx(squares, rel=1e-12)
    assert squares > mean**2 + 1


def test_other_costs_are_asked_for_once_per_kind_of_block() -> None:
    """Such as seconds, measured: any sum over the blocks and the rest."""
    net, asked = gated(ONE_STAGE), Counter()

    def seconds(definition: NetworkDef, stride: int) -> float:
        asked[str(definition)] += 1
        blocks = [block for stage in definition.stages for block in stage]
        return 0.5 + sum(0.01 * block.num_heads + 1e-4 * block.mlp_hidden_dim**1.5 for block in blocks)

    net.add_cost("seconds", seconds)
    assert net.costs == ("macs", "params", "seconds")
    assert set(asked.values()) == {1}
    assert max(each.count("(1, (") for each in asked) == 1  # blocks
    choice = net.largest_choice()
    net.gates.fix(choice)
    expected = 0.5 + 2 * (0.03 + 1e-4 * 20**1.5)
    assert net.cost("seconds", drawn=True).item() == pytest.approx(expected, rel=1e-12)
    net.cost("seconds").backward()
    assert all(gate.logits.grad.abs().max() > 0 for name, gate in net.gates.items() if name != "dim_1")


@pytest.mark.parametrize("name", ["macs", "params"])
@pytest.mark.parametrize("networks", [TIED, ONE_STAGE], ids=["tied", "one_stage"])
def test_reach_is_from_the_cheapest_to_the_dearest_net(networks: NetworkSpace, name: str) -> None:
    net = gated(networks)
    costs = [net.cost_of(name, choice) for choice in points(networks.space)]
    assert net.reach(name) == (min(costs), max(costs))


def test_reach_knows_constraints() -> None:
    space = replace(TIED.space, constraints=("dim > 8 or heads > 2", "units + more <= 11"))
    net = gated(NetworkSpace(space))
    costs = [net.cost_of("macs", choice) for choice in points(space) if space.allows(choice)]
    assert net.reach() == (min(costs), max(costs))


def test_unknown_costs_and_choices_get_one_sentence() -> None:
    net = gated(ONE_STAGE)
    with pytest.raises(ValueError, match="cost is 'watts'; it must be one of 'macs', 'params'"):
        net.cost("watts")
    with pytest.raises(ValueError, match="cost is 'watts'"):
        net.reach("watts")
    with pytest.raises(ValueError, match="decision 'dim_1' is 7; it must be one of"):
        net.cost_of("macs", net.largest_choice() | {"dim_1": 7})


def test_what_tables_cannot_hold_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"a cost depends on 8 decisions together \(a, b, c, d, ...\), .* gates take at most"
    ):
        cost_tables(*eight_widths())


def eight_widths() -> tuple[Any, ...]:
    """A net of one stage whose width is the product of eight decisions of ten options."""
    names = "abcdefgh"
    tables = {("token_stride", 0, 0): Table((), torch.ones((), dtype=torch.float64))}
    nets = Nets(ONE_STAGE.space, replace(ONE_STAGE.largest, dims=(16,) * 8, stages=((),) * 8), ONE_STAGE.network)
    tables |= {("embed", stage, 0): Table((name,), torch.arange(1.0, 11).double()) for stage, name in enumerate(names)}
    return nets, tables, lambda net, stride: 0


def test_sizes_that_do_not_follow_decisions_one_by_one_are_noticed() -> None:
    """A width that two decisions give only together: changing either alone says nothing."""
    networks = ONE_STAGE

    def network(choice: Choice) -> NetworkDef:
        middle = choice["mlp_a"] == 12 and choice["mlp_b"] == 12
        return replace(networks.network(choice), dims=(9,) if middle else (16,))

    with pytest.raises(ValueError, match="embed of block 1 of stage 1 in space 'small' depends on decisions in a way"):
        size_tables(Nets(networks.space, networks.largest, network))
