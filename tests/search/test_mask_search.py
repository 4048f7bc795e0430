"""Gates that learn beside weights: what a batch goes through, steps against autograd, schedules, nets in budgets."""

import copy
import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from supernets import ONE_STAGE, TWO_STAGES, supernet
from torch import nn

from asvit_plugin.search.budget import Budget
from asvit_plugin.search.gated_net import GatedNet, GatedResNAS
from asvit_plugin.search.gated_vit import gate_vit
from asvit_plugin.search.mask_choice import judged_nets, most_probable, sampled
from asvit_plugin.search.mask_gates import Gates
from asvit_plugin.search.mask_search import GatedTask, MaskSearch, MaskSearchSettings
from asvit_plugin.search.network_space import NetworkSpace
from asvit_plugin.search.space import Space

DOUBLE = {"rtol": 1e-10, "atol": 1e-12}


def gated(networks: Any = ONE_STAGE) -> GatedNet:
    return GatedResNAS(supernet(networks).double()).double()


def begun(net: GatedNet | None = None, epochs: int = 10, **changed: Any) -> MaskSearch:
    net = gated() if net is None else net
    least, most = net.reach("macs")
    usual = {"cost": "macs", "high": (least + most) / 2, "low": least}
    return MaskSearch(net, MaskSearchSettings(**usual | changed), epochs)


def batch(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 3, 56, 56, dtype=torch.float64), torch.arange(count) % 5


# What weights learn through -------------------------------------------------------------------------------------------


def test_first_weights_learn_by_the_sandwich_rule() -> None:
    search = begun(gates_from=0.5)
    images, labels = batch()
    nets = []
    search.start_epoch(0)
    for _ in search.mixtures():
        nets.append(dict(search.net.gates.fixed))
    costs = [search.budget.cost(net) for net in nets]
    least, most = search.net.reach("macs")
    assert (len(nets), costs[0], costs[1]) == (3, most, least)
    assert search.net.space.allows(nets[2])
    search.start_epoch(0)  # the same nets again
    loss = GatedTask(search, nn.CrossEntropyLoss())(images, labels)["loss"]
    alone = [F.cross_entropy(search.net.extract(net)(images), labels) for net in nets]
    torch.testing.assert_close(loss, torch.stack(alone).mean(), **DOUBLE)
    loss.backward()
    assert all(parameter.grad is None for parameter in search.net.gates.parameters())
    assert search.net.network.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("hard", [True, False])
def test_then_through_what_the_gates_draw(hard: bool) -> None:
    search = begun(gates_from=0, hard=hard)
    images, labels = batch()
    task = GatedTask(search, nn.CrossEntropyLoss())
    loss = task(images, labels)["loss"]
    net = search.net.gates.present()
    assert (net is not None) == hard
    if hard:
        torch.testing.assert_close(loss, F.cross_entropy(search.net.extract(net)(images), labels), **DOUBLE)
    loss.backward()
    assert all(parameter.grad is None for parameter in search.net.gates.parameters())
    drawn = {tuple(task(images, labels)["loss"].unsqueeze(0).tolist()) for _ in range(8)}
    assert len(drawn) > 1  # another one for each batch


# What gates learn -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("part", [0.4, 0.99], ids=["above the budget", "below it"])
def test_a_step_follows_the_gradient_of_its_loss(hard: bool, part: float) -> None:
    net = gated()
    least, most = net.reach("macs")
    search = begun(net, high=least + part * (most - least), hard=hard, gates_from=0, cost_ramp=0, cost_weight=3.0)
    search.start_epoch(2)
    images, labels = batch()
    other = copy.deepcopy(net)
    generator = torch.Generator().set_state(search._generator.get_state())
    other.gates.draw(search.temperature, hard, generator)
    over = (other.cost("macs") / search.settings.high).log().clamp_min(0)
    loss = F.cross_entropy(other(images), labels) + 3.0 * over
    loss.backward()
    assert (over > 0) == (part < 0.5)
    weights = {name: each.clone() for name, each in net.network.state_dict().items()}
    slopes: dict[str, torch.Tensor] = {}
    search.optimizer.register_step_pre_hook(
        lambda *_: slopes.update({name: gate.logits.grad.clone() for name, gate in net.gates.items()})
    )
    found = search.step(images, labels)
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-10)
    for name, gate in net.gates.items():
        torch.testing.assert_close(slopes[name], other.gates[name].logits.grad, **DOUBLE)
        assert gate.logits.detach().abs().max() == pytest.approx(search.settings.gate_lr, rel=1e-3)  # Adam's first step
    assert all(torch.equal(each, weights[name]) for name, each in net.network.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_weights_alone_are_clipped() -> None:
    search = begun()
    task = GatedTask(search, nn.CrossEntropyLoss())
    names = {id(parameter): name for name, parameter in search.net.named_parameters()}
    found = [names[id(parameter)] for parameter in task.get_clip_parameters()]
    assert found == [name for name in names.values() if not name.startswith("gates.")]
    without_head = [names[id(parameter)] for parameter in task.get_clip_parameters(exclude_head=True)]
    assert (without_head, found[-2:]) == (found[:-2], ["network.head.weight", "network.head.bias"])


def test_gates_leave_out_a_block_that_only_harms() -> None:
    blocks = "(1, (16, 2, 4), (16, 8), 1), (1, (16, 2, 4), (16, 8), {exists})"
    net = gated(
        NetworkSpace(
            Space("two", "vit_resnas", {"exists": (1, 0)}, {"network_def": f"((4, 16), {blocks}, (2, 16, 5))"})
        )
    )
    images, _ = batch(8)
    labels = net.extract({"exists": 0})(images).argmax(1)
    with torch.no_grad():
        net.network.stages[0].blocks[1].mlp.fc2.weight *= 50
    search = begun(net, high=net.reach("macs")[1], gates_from=0, gate_lr=0.2, last_temperature=1.0)
    for epoch in range(10):
        search.start_epoch(epoch)
        for _ in range(3):
            search.step(images, labels)
    odds = dict(zip(net.gates["exists"].options, net.gates.probabilities()["exists"].tolist()))
    assert odds[0] > 0.9


def test_cost_is_driven_below_the_budget() -> None:
    net = gated()
    least, most = net.reach("macs")
    search = begun(net, high=least + 0.2 * (most - least), gates_from=0, cost_weight=1e3, cost_ramp=0, gate_lr=0.2)
    images, labels = batch(2)
    costs = []
    for epoch in range(10):
        search.start_epoch(epoch)
        costs += [search.step(images, labels)["cost"] for _ in range(3)]
    assert costs[0] > search.settings.high >= net.cost("macs").item()


def test_no_gate_learns_from_a_loss_that_is_not_finite() -> None:
    search = begun(gates_from=0)
    images, labels = batch()
    with pytest.raises(FloatingPointError, match="the loss of the gates became nan in epoch 0"):
        search.step(images * torch.nan, labels)
    assert not any(parameter.any() for parameter in search.net.gates.parameters())


def test_schedules() -> None:
    search = begun(epochs=20, gates_from=0.25, temperature=4.0, last_temperature=0.5, cost_weight=2.0, cost_ramp=0.2)
    learn, temperatures, weights = [], [], []
    for epoch in range(20):
        search.start_epoch(epoch)
        learn.append(search.gates_learn)
        temperatures.append(search.temperature)
        weights.append(search.cost_weight)
    assert learn == [False] * 5 + [True] * 15
    assert (temperatures[5], temperatures[-1]) == (4.0, pytest.approx(0.5))
    factors = np.array(temperatures[6:]) / np.array(temperatures[5:-1])
    assert np.allclose(factors, factors[0])
    assert weights[5:10] == [pytest.approx(value) for value in (0.5, 1.0, 1.5, 2.0, 2.0)]


def test_continued_gates_are_undisturbed_ones() -> None:
    images, labels = batch()

    def learn(search: MaskSearch, epochs: range) -> None:
        for epoch in epochs:
            search.start_epoch(epoch)
            search.step(images, labels)

    whole, first = begun(gates_from=0), begun(gates_from=0)
    learn(whole, range(4))
    learn(first, range(2))
    second = begun(gates_from=0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    learn(second, range(2, 4))
    for name, gate in whole.net.gates.items():
        assert torch.equal(second.net.gates[name].logits, gate.logits)
        assert gate.logits.any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"high": 1e3, "low": None}, r"no net has: those of space 'small' reach from \d+"),
        ({"high": 1e12, "low": None}, "no net has"),
        ({"gates_from": 0.95}, "gates_from is 0.95; of 10 epochs that leaves none for gates"),
        ({"gates_from": 1.0}, "gates_from is 1.0; allowed is at least 0 and below 1"),
        ({"temperature": 0.0}, "temperature is 0.0; allowed is a number above 0"),
        ({"gate_lr": float("inf")}, "gate_lr is inf"),
        ({"cost_ramp": 2}, "cost_ramp is 2; allowed is from 0 to 1"),
        ({"seed": -1}, "seed is -1"),
        ({"cost": "joules"}, "cost is 'joules'"),
    ],
    ids=["too-cheap", "too-dear", "late", "later", "temperature", "rate", "ramp", "seed", "cost"],
)
def test_refuses(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        begun(**changed)


def test_a_gap_between_nets_is_refused_before_anything_is_trained() -> None:
    net = gated()
    costs = sorted({net.cost_of("macs", choice) for choice in (net.smallest_choice(), net.largest_choice())})
    with pytest.raises(ValueError, match="no net is found within the budget of"):
        begun(net, high=costs[0] + 2, low=costs[0] + 1)


# Nets that are taken in the end ---------------------------------------------------------------------------------------

SPACE = Space(
    "made_up", "vit_resnas", {"a": (8, 6, 4, 2), "b": (3, 2, 1), "c": (5, 4, 3), "d": (1, 0)}, {}, ("a >= b + c - 1",)
)


def cost_of(choice: dict[str, int]) -> float:
    return choice["a"] ** 2 * (choice["b"] + 2 * choice["c"] * choice["d"]) + 10


def drawn_gates(seed: int, std: float = 2.0) -> Gates:
    gates = Gates(SPACE)
    torch.manual_seed(seed)
    for gate in gates.values():
        nn.init.normal_(gate.logits, std=std)
    return gates


def within(budget: Budget) -> list[dict[str, int]]:
    every = (dict(zip(SPACE.decisions, values)) for values in itertools.product(*SPACE.decisions.values()))
    return [each for each in every if SPACE.allows(each) and budget.low <= cost_of(each) <= budget.high]


@pytest.mark.parametrize("high", [100.0, 250.0, 600.0])
def test_most_probable_net_of_all_within_the_budget(high: float) -> None:
    budget = Budget("macs", cost_of, high, 0.7 * high)
    for seed in range(20):
        gates = drawn_gates(seed)
        found = most_probable(gates, budget)
        best = max(map(gates.log_probability, within(budget)))
        assert found in within(budget)
        assert gates.log_probability(found) == pytest.approx(best)


def test_argmax_within_the_budget_stays() -> None:
    gates = drawn_gates(3)
    cost = cost_of(gates.argmax())
    nets = judged_nets(gates, Budget("macs", cost_of, cost, 0.9 * cost), 3)
    assert nets[0] == ("argmax", gates.argmax())
    elsewhere = Budget("macs", cost_of, 0.89 * cost, 0.3 * cost)
    assert judged_nets(gates, elsewhere, 0) == [("moved", most_probable(gates, elsewhere))]


def test_sampled_nets_are_different_and_within_the_budget() -> None:
    gates, budget = drawn_gates(0, std=0.3), Budget("macs", cost_of, 600.0, 150.0)
    nets = sampled(gates, budget, 5, np.random.default_rng(0))
    assert len({tuple(net.values()) for net in nets}) == 5
    assert all(net in within(budget) for net in nets)
    assert nets == sampled(gates, budget, 5, np.random.default_rng(0))


def test_the_most_probable_net_is_not_drawn_again() -> None:
    gates, budget = drawn_gates(0, std=3.0), Budget("macs", cost_of, 600.0, 150.0)
    nets = judged_nets(gates, budget, 4)
    assert len(nets) == 5
    assert nets[0][1] not in [net for _, net in nets[1:]]


def test_sure_gates_find_a_net_behind_a_gap() -> None:
    """Single changes and draws by the gates lead to nets that are too cheap or too dear."""
    space = Space("gap", "vit_resnas", dict.fromkeys("abcdefghi", (9, 7, 5, 3, 1)), {})
    gates = Gates(space)
    for gate in gates.values():
        gate.logits.data[0] = 60.0

    def cost(choice: dict[str, int]) -> float:
        rare = sum(value in (3, 7) for value in choice.values())
        return 50.0 if rare == 5 else 100.0 if sum(choice.values()) > 45 else 10.0

    found = most_probable(gates, Budget("macs", cost, 51.0, 49.0))
    assert cost(found) == 50.0


def test_no_net_within_the_budget() -> None:
    with pytest.raises(ValueError, match="no net is found within the budget of 11 to 11.5 macs; the nearest has"):
        most_probable(drawn_gates(0), Budget("macs", cost_of, 11.5, 11.0))


def test_even_gates_of_deit_find_a_net() -> None:
    net = gate_vit(timm.create_model("deit_small_patch16_224", device="meta"))
    budget = Budget("macs", partial(net.cost_of, "macs"), 2e9)
    found = most_probable(net.gates, budget)
    assert net.space.allows(found)
    assert budget.low <= budget.cost(found) <= budget.high


def test_a_net_far_from_the_argmax() -> None:
    net = GatedResNAS(supernet(TWO_STAGES))
    torch.manual_seed(0)
    for gate in net.gates.values():
        gate.logits.data.copy_(5 * torch.rand(len(gate.options)).sort(descending=True)[0])  # the largest net is likely
    least, most = net.reach("macs")
    budget = Budget("macs", partial(net.cost_of, "macs"), least + 0.2 * (most - least))
    found = most_probable(net.gates, budget)
    assert budget.low <= budget.cost(found) <= budget.high
    log = net.gates.log_probability(found)
    for name, gate in net.gates.items():
        others = [found | {name: option} for option in gate.options]
        within_it = [each for each in others if budget.low <= budget.cost(each) <= budget.high]
        assert log == max(map(net.gates.log_probability, within_it))
    rng = np.random.default_rng(0)
    drawn = [
        each for each in (net.space.sample(rng) for _ in range(300)) if budget.low <= budget.cost(each) <= budget.high
    ]
    assert len(drawn) > 3
    assert log >= max(map(net.gates.log_probability, drawn))
