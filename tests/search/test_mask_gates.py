"""Gates: what they draw, what they have learned, and nets that meet a space's constraints."""

import copy
import math
from itertools import product

import numpy as np
import pytest
import torch

from asvit_plugin.search.mask_gates import Gates, MaskGate
from asvit_plugin.search.space import Choice, Space

OPTIONS = {"a": (3, 1, 2), "b": (16, 8), "alone": (5,), "c": (4, 3, 2, 1)}
SPACE = Space("small", "scaled_vit", OPTIONS)
TIED = Space("tied", "scaled_vit", OPTIONS, constraints=("a + c <= 4", "b > 8 or c == 1"))


def taught(space: Space = SPACE) -> Gates:
    """Gates with logits of their own."""
    gates = Gates(space)
    for gate in gates.values():
        torch.nn.init.normal_(gate.logits)
    return gates


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def probability(gates: Gates, choice: Choice) -> float:
    return math.prod(
        float(gate.logits.double().softmax(0)[gate.options.index(choice[name])].detach())
        for name, gate in gates.items()
    )


def points(space: Space) -> list[Choice]:
    every = [dict(zip(space.decisions, values)) for values in product(*space.decisions.values())]
    return [choice for choice in every if space.allows(choice)]


# Draws ----------------------------------------------------------------------------------------------------------------


def test_there_is_a_gate_for_every_decision_with_options_and_all_mix_evenly_at_first() -> None:
    gates = Gates(SPACE)
    assert {name: gate.options for name, gate in gates.items()} == {n: OPTIONS[n] for n in ("a", "b", "c")}
    for name, weights in gates.weights.items():
        torch.testing.assert_close(weights, torch.full((len(OPTIONS[name]),), 1 / len(OPTIONS[name])))
        assert not weights.requires_grad
    assert gates.present() is None
    assert list(gates.state_dict()) == ["a.logits", "b.logits", "c.logits"]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_soft_draws_are_gumbel_softmax(temperature: float) -> None:
    gate = MaskGate((3, 2, 1))
    gate.logits.data = torch.tensor([0.5, -1.0, 2.0])
    gate.draw(temperature, hard=False, generator=generator())
    uniform = torch.exp(-torch.empty(3).exponential_(generator=generator()).double())
    expected = ((gate.logits.double() - (-uniform.log()).log()) / temperature).softmax(0)
    torch.testing.assert_close(gate.weights.double(), expected, rtol=1e-5, atol=1e-6)


def test_hard_draws_have_the_gates_probabilities() -> None:
    gate, source = MaskGate((3, 2, 1)), generator()
    gate.logits.data = torch.tensor([0.5, -1.0, 2.0])
    counts = torch.zeros(3)
    for _ in range(1000):
        gate.draw(0.7, hard=True, generator=source)
        assert set(gate.weights.tolist()) == {0.0, 1.0}
        counts += gate.weights.detach()
    assert counts / 1000 == pytest.approx(gate.probabilities.tolist(), abs=0.06)  # 4 standard deviations


def test_hard_draws_have_the_gradient_of_soft_ones() -> None:
    gate, values = MaskGate((3, 2, 1)), torch.tensor([1.0, 5.0, -2.0])
    gradients = []
    for hard in (False, True):
        gate.draw(2.0, hard, generator())
        gradients.append(torch.autograd.grad(gate.weights @ values, gate.logits)[0])
    assert gradients[0].abs().min() > 1e-3
    torch.testing.assert_close(*gradients)


def test_draws_depend_on_their_generator_alone() -> None:
    gates, state = taught(), torch.get_rng_state()
    gates.draw(1.0, hard=False, generator=generator(1))
    first = gates.weights
    torch.rand(3)
    gates.draw(1.0, hard=False, generator=generator(1))
    assert all(torch.equal(first[name], weights) for name, weights in gates.weights.items())
    gates.draw(1.0, hard=False, generator=generator(2))
    assert not all(torch.equal(first[name], weights) for name, weights in gates.weights.items())
    torch.set_rng_state(state)
    gates.draw()
    drawn = gates.present()
    torch.set_rng_state(state)
    gates.draw()
    assert gates.present() == drawn


def test_fixed_gates_are_that_net_until_the_next_draw() -> None:
    gates, choice = taught(), {"a": 1, "b": 8, "alone": 5, "c": 3}
    gates.fix(choice)
    assert gates.present() == gates.fixed == choice
    assert gates.weights["a"].tolist() == [0.0, 1.0, 0.0]
    assert not any(weights.requires_grad for weights in gates.weights.values())
    gates.draw(1.0, hard=False, generator=generator())
    assert gates.fixed is None
    assert gates.present() is None
    gates.fix(choice)
    gates.uniform()
    assert gates.fixed is None
    assert gates.weights["b"].tolist() == [0.5, 0.5]


def test_weights_follow_the_type_of_the_logits() -> None:
    gates = taught()
    gates.fix({"a": 1, "b": 8, "alone": 5, "c": 3})
    assert {each.dtype for each in gates.double().weights.values()} == {torch.float64}


def test_copies_take_the_draw_along() -> None:
    gates = taught()
    gates.draw(1.0, hard=False, generator=generator())
    copied = copy.deepcopy(gates)
    assert all(torch.equal(copied.weights[name], weights) for name, weights in gates.weights.items())
    copied.draw(1.0, generator=generator(3))
    assert gates.present() is None
    assert not {id(each) for each in gates.parameters()} & {id(each) for each in copied.parameters()}


# Nets -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("space", [SPACE, TIED], ids=["free", "tied"])
def test_argmax_is_the_most_probable_net_that_meets_the_constraints(space: Space, seed: int) -> None:
    torch.manual_seed(seed)
    gates = taught(space)
    best = max(points(space), key=lambda choice: probability(gates, choice))
    assert gates.argmax() == best
    assert gates.log_probability(best) == pytest.approx(math.log(probability(gates, best)))


def test_sampled_nets_meet_the_constraints_and_have_the_gates_probabilities() -> None:
    gates, rng = taught(TIED), np.random.default_rng(0)
    allowed = points(TIED)
    whole = sum(probability(gates, choice) for choice in allowed)
    drawn = [gates.sample_choice(rng) for _ in range(600)]
    for choice in allowed:
        expected = probability(gates, choice) / whole
        assert drawn.count(choice) / 600 == pytest.approx(expected, abs=0.08)
    assert all(choice in allowed for choice in drawn)


def test_constraints_that_hide_all_probable_nets_get_one_sentence() -> None:
    many = {f"d{number}": (0, 1) for number in range(17)}
    gates = Gates(Space("far", "scaled_vit", many, constraints=(f"{' + '.join(many)} >= 14",)))
    for gate in gates.values():
        gate.logits.data = torch.tensor([6.0, 0.0])
    with pytest.raises(ValueError, match="none of the 10000 most probable nets meets the constraints of space 'far'"):
        gates.argmax()
    with pytest.raises(ValueError, match="none of 10000 drawn nets meets the constraints of space 'far'"):
        gates.sample_choice(np.random.default_rng(0))


def test_probabilities_learn() -> None:
    gates = Gates(SPACE)
    optimizer = torch.optim.Adam(gates.parameters(), 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        probabilities = gates.probabilities()
        (probabilities["a"][1] + probabilities["c"][3]).log().neg().backward()
        optimizer.step()
    assert gates.argmax() | {"b": 0} == {"a": 1, "b": 0, "alone": 5, "c": 1}


@pytest.mark.parametrize("temperature", [0, -1.0, math.inf, math.nan])
def test_temperatures_out_of_range_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature is .*; it must be positive and finite"):
        Gates(SPACE).draw(temperature)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="decision 'a' is 4; it must be one of"):
        Gates(SPACE).fix({"a": 4, "b": 8, "alone": 5, "c": 3})


def test_spaces_without_options_are_refused() -> None:
    with pytest.raises(
        ValueError, match="space 'one' has no decision of at least two options; gates choose between options"
    ):
        Gates(Space("one", "scaled_vit", {"a": (1,), "b": (2,)}))
