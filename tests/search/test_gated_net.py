"""Gated ViT-ResNAS nets: one option of every gate is the net cut out, and mixtures are what their formula says."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from gated import settle
from supernets import LINEAR_STEM, ONE_STAGE, TWO_STAGES, add_to_whole, choices, supernet
from torch import nn

from asvit_plugin import NetworkDef
from asvit_plugin.search.gated_net import GatedResNAS, gate_network
from asvit_plugin.search.network_space import NetworkSpace
from asvit_plugin.search.supernet import MODES
from asvit_plugin.search.supernet_masks import ChannelMask, MaskedLayerNorm

# Space, arguments of the supernet, and whether the net is in training mode (its stem never is).
CASES: dict[str, tuple[NetworkSpace, dict[str, Any], bool]] = {
    "plain": (TWO_STAGES, {}, False),
    "average": (TWO_STAGES, {"global_pool": "avg", "in_chans": 1}, False),
    "two_heads": (TWO_STAGES, {"distilled": True}, True),
    "linear_stem": (LINEAR_STEM, {"patch_head": True}, True),
    "one_stage": (ONE_STAGE, {"distilled": True}, False),
}
HOW = ("fixed", "drawn")


def gated(networks: NetworkSpace = TWO_STAGES, training: bool = False, **kwargs: Any) -> GatedResNAS:
    net = GatedResNAS(supernet(networks, **kwargs)).double().train(training)
    net.network.patch_embed.eval()
    net.network.distilled_training = True
    return net


def teach(net: GatedResNAS) -> None:
    """Gates with logits of their own."""
    for gate in net.gates.values():
        nn.init.normal_(gate.logits)


def images(net: GatedResNAS, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, net.network.in_chans, 56, 56, dtype=torch.float64)


def tensors(output: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def gradients(model: nn.Module, output: Any, weights: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of the sum of all outputs times weights."""
    loss = sum((each * weight).sum() for each, weight in zip(tensors(output), weights))
    names, parameters = zip(*model.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss, parameters, materialize_grads=True)))


def assert_same(got: torch.Tensor, expected: torch.Tensor, what: str = "the output") -> None:
    error = (got - expected).abs().max().item()
    assert error <= 1e-10 * max(1.0, expected.abs().max().item()), f"{what} is off by {error}"


# One net --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("case", CASES)
def test_one_option_of_every_gate_is_the_net_cut_out(case: str, how: str) -> None:
    """In output, and in the gradients of all weights."""
    networks, kwargs, training = CASES[case]
    net = gated(networks, training, **kwargs)
    x = images(net)
    for choice in choices(networks, 3):
        settle(net, choice, how)
        output = tensors(net(x))
        alone = net.extract(choice)
        alone.patch_embed.eval()
        alone.distilled_training = True
        own = tensors(alone(x))
        assert len(own) == len(output)
        for got, expected in zip(output, own):
            assert_same(got, expected)
        weights = [torch.randn_like(each) for each in own]
        expected = {name: torch.zeros_like(each) for name, each in net.network.named_parameters()}
        add_to_whole(expected, gradients(alone, own, weights), NetworkDef.parse(alone.network_def))
        for name, gradient in gradients(net.network, output, weights).items():
            assert_same(gradient, expected[name], name)


def test_slices_compute_one_net_as_masks_do() -> None:
    net = gated(training=True)
    x = images(net)
    for how in HOW:
        settle(net, choices(TWO_STAGES, 2)[1], how)
        found = {}
        for mode in MODES:
            net.network.mode = mode
            with torch.set_grad_enabled(how == "fixed"):  # where drawn gates want gradients, masks must do
                found[mode] = net(x)
        assert_same(found["slices"], found["masks"])
        assert not torch.equal(found["slices"], net.network(x))


def test_the_largest_net_is_the_plain_one_to_the_last_bit() -> None:
    net = gated()
    plain = timm.create_model("vit_resnas", network_def=str(net.nets.largest), img_size=56, num_classes=5)
    plain = plain.double().eval()
    plain.load_state_dict(net.network.state_dict())
    x = images(net)
    net.gates.fix(net.largest_choice())
    assert torch.equal(net(x), plain(x))
    net.gates.fix(net.smallest_choice())
    net(x)
    assert torch.equal(net.network(x), plain(x))  # masks are off behind every batch
    names = {f"network.{name}" for name in plain.state_dict()} | {f"gates.{name}.logits" for name in net.gates}
    assert set(net.state_dict()) == names


# Mixtures -------------------------------------------------------------------------------------------------------------


def masked_norm(width: int, weights: torch.Tensor) -> MaskedLayerNorm:
    norm = MaskedLayerNorm(nn.LayerNorm(width, eps=1e-6), ChannelMask("embed", 0)).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.channels.weights = weights
    return norm


def test_norms_of_a_mixture_are_weighted() -> None:
    weights, x = torch.rand(9, dtype=torch.float64), torch.randn(2, 4, 9, dtype=torch.float64) + 3
    norm = masked_norm(9, weights)
    mean = sum(weights[j] * x[..., j] for j in range(9)) / weights.sum()
    variance = sum(weights[j] * (x[..., j] - mean) ** 2 for j in range(9)) / weights.sum()
    normal = (x - mean[..., None]) / (variance[..., None] + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), weights * (normal * norm.weight + norm.bias), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda x, w: masked_like(norm, w)(x), (x.requires_grad_(), weights.requires_grad_())
    )


def masked_like(norm: MaskedLayerNorm, weights: torch.Tensor) -> MaskedLayerNorm:
    norm.channels.weights = weights
    return norm


def test_a_mixture_of_widths_of_one_layer_is_the_mean_of_its_nets() -> None:
    """Behind heads and units all is linear, so there the mask is the sum over options that it stands for."""
    net = gated(ONE_STAGE)
    x, block, whole = images(net), net.network.stages[0].blocks[0], net.largest_choice()
    seen: list[torch.Tensor] = []
    block.mlp.register_forward_hook(lambda module, args, output: seen.append(output))
    for width in (20, 12, 7):
        net.gates.fix(whole | {"mlp_a": width})
        net(x)
    net.gates.fix(whole)
    net.gates.fixed = None
    net.gates["mlp_a"].draw(1.0, hard=False, generator=torch.Generator().manual_seed(0))
    parts = net.gates["mlp_a"].weights.detach()
    assert parts.min() > 0.05
    net(x)
    assert_same(seen[3], parts[0] * seen[0] + parts[1] * seen[1] + parts[2] * seen[2])


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_several_batches_learn_from_one_draw(hard: bool) -> None:
    net = gated(ONE_STAGE, training=True)
    net.gates.draw(1.0, hard, torch.Generator().manual_seed(0))
    x, gradients = images(net), []
    for _ in range(2):
        net.zero_grad()
        net(x).square().sum().backward()
        gradients.append({name: gate.logits.grad.clone() for name, gate in net.gates.items()})
    for name, first in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], first)
    assert max(each.abs().max() for each in gradients[0].values()) > 0


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_every_gate_learns(hard: bool) -> None:
    net = gated(training=True)
    teach(net)
    net.gates.draw(2.0, hard, torch.Generator().manual_seed(0))
    net(images(net)).square().sum().backward()
    for name, gate in net.gates.items():
        if not name.endswith(("_b", "_c", "_d")) or name.startswith("exists") or not hard:  # removed blocks say nothing
            assert gate.logits.grad.abs().max() > 0, name
    assert all(parameter.grad is not None for parameter in net.network.parameters())


def test_gradients_of_soft_gates_are_those_of_the_function() -> None:
    """Against differences of the output along a random direction of all logits."""
    net = gated()
    teach(net)
    x, generator = images(net), torch.Generator()
    direction = {name: torch.randn_like(gate.logits) for name, gate in net.gates.items()}

    def output(step: float) -> torch.Tensor:
        with torch.no_grad():
            for name, gate in net.gates.items():
                gate.logits += step * direction[name]
        net.gates.draw(2.0, False, generator.manual_seed(0))
        return net(x).square().sum()

    value = output(0.0)
    exact = torch.autograd.grad(value, [gate.logits for gate in net.gates.values()])
    slope = sum((gradient * direction[name]).sum() for name, gradient in zip(net.gates, exact))
    difference = (output(1e-5) - output(-2e-5)) / 2e-5
    assert slope.item() == pytest.approx(difference.item(), rel=1e-6)


@pytest.mark.parametrize("how", ["soft", "hard", "fixed"])
def test_gradient_checkpointing_changes_nothing(how: str) -> None:
    net = gated()
    teach(net)

    def step() -> list[torch.Tensor]:
        if how == "fixed":
            net.gates.fix(net.smallest_choice())
        else:
            net.gates.draw(1.0, how == "hard", torch.Generator().manual_seed(0))
        loss = net(x).square().sum()
        return torch.autograd.grad(loss, list(net.parameters()), materialize_grads=True, allow_unused=True)

    x = images(net)
    plain = step()
    net.network.set_grad_checkpointing()
    torch.testing.assert_close(step(), plain)


def saved_bytes(net: GatedResNAS) -> int:
    """Of different tensors that a draw of the gates keeps for its backward pass, without parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    net.gates.draw(1.0, False, torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = net(images(net, 8)).sum()
    del loss
    return sum(kept.values())


def test_memory_does_not_grow_with_the_options() -> None:
    """Ten times as many options of a width cost a few rows of zeros and ones, and nothing per image."""
    few = ONE_STAGE
    many = {name: tuple(range(max(each), max(each) - 9, -1)) for name, each in few.space.decisions.items()}
    many = {name: each if name.startswith(("dim", "mlp")) else few.space.decisions[name] for name, each in many.items()}
    networks = NetworkSpace(replace(few.space, decisions=many))
    options = [sum(map(len, each.space.decisions.values())) for each in (few, networks)]
    assert options[1] > options[0] + 15
    least, most = (saved_bytes(gated(each)) for each in (few, networks))
    assert most < 1.02 * least


# Copies and files -----------------------------------------------------------------------------------------------------


def test_copies_are_independent() -> None:
    net = gated()
    teach(net)
    net.gates.draw(1.0, False, torch.Generator().manual_seed(0))
    x = images(net)
    before = net(x)
    copied = copy.deepcopy(net)
    assert_same(copied(x), before)
    copied.gates.fix(copied.smallest_choice())
    copied(x)
    nn.init.zeros_(copied.network.head.weight)
    assert torch.equal(net(x), before)


def test_a_state_brings_back_weights_and_gates() -> None:
    net, other = gated(), gated()
    teach(net)
    other.load_state_dict(net.state_dict())
    assert other.gates.argmax() == net.gates.argmax()
    choice = net.gates.argmax()
    assert torch.equal(other.extract(choice).head.weight, net.extract(choice).head.weight)


def test_sorting_by_importance_leaves_the_whole_net_as_it_is() -> None:
    net = gated()
    x, smallest = images(net), net.smallest_choice()
    net.gates.fix(net.largest_choice())
    before = net(x)
    net.gates.fix(smallest)
    small = net(x)
    net.reorder()
    assert (net(x) - small).abs().max() > 1e-3
    net.gates.fix(net.largest_choice())
    assert_same(net(x), before)


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_mixtures_run_in_bfloat16(hard: bool) -> None:
    net = gate_network(TWO_STAGES, img_size=56).train()
    net.gates.draw(1.0, hard, torch.Generator().manual_seed(0))
    x = torch.randn(2, 3, 56, 56)
    expected = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        output = net(x)
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.02)
    output.sum().backward()
    assert all(each.grad.isfinite().all() for each in net.parameters() if each.grad is not None)


def test_a_space_of_other_models_is_refused() -> None:
    with pytest.raises(ValueError, match="need a space of the model 'vit_resnas'"):
        gate_network("plain_vit")
