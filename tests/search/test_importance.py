"""Re-ordering: important units first, in weights, moments and copies alike, and the whole net computes what it did."""

import copy

import pytest
import timm
import torch
from supernets import TWO_STAGES, choices, supernet
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

from asvit_plugin.search.importance import reorder

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}  # of the largest value
OPTIMIZERS = {"adamw": {"lr": 1e-2}, "sgd": {"lr": 1e-2, "momentum": 0.9}, "lookahead_adamw": {"lr": 1e-2}}


def images(count: int = 4, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, 3, 56, 56, generator=torch.Generator().manual_seed(7), dtype=dtype)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(4, 3, 56, 56, generator=torch.Generator().manual_seed(seed), dtype=model.cls_token.dtype)
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


def importance(model: nn.Module, block: str) -> tuple[list[float], list[float]]:
    """The authors' sums, of heads and of MLP units, entry by entry."""
    weights = {name: each.abs() for name, each in model.state_dict().items()}
    attn, heads, dim = (
        f"{block}.attn",
        model.get_submodule(block).attn.num_heads,
        model.get_submodule(block).attn.head_dim,
    )
    total = []
    for head in range(heads):
        own = slice(head * dim, (head + 1) * dim)
        parts = [
            weights[f"{attn}.qkv.{each}"].unflatten(0, (3, heads * dim))[:, own].sum() for each in ("weight", "bias")
        ]
        total.append(sum(parts) + weights[f"{attn}.proj.weight"][:, own].sum())
    fc1, bias, fc2 = (weights[f"{block}.mlp.{name}"] for name in ("fc1.weight", "fc1.bias", "fc2.weight"))
    units = [fc2[:, unit].sum() + fc1[unit].sum() + bias[unit] for unit in range(len(bias))]
    return [each.item() for each in total], [each.item() for each in units]


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    limit = TOLERANCE[expected.dtype] * max(1.0, expected.abs().max().item())
    assert (got - expected).abs().max().item() <= limit


def assert_same_weights(model: nn.Module, other: nn.Module) -> None:
    for (name, ours), theirs in zip(model.state_dict().items(), other.state_dict().values()):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("block", ["stages.0.blocks.0", "stages.0.blocks.1", "stages.1.blocks.1"])
def test_important_units_come_first(block: str) -> None:
    model = supernet().double()
    before = importance(model, block)
    assert before != tuple(sorted(each, reverse=True) for each in before)
    reorder(model)
    for was, now in zip(before, importance(model, block)):
        assert now == pytest.approx(sorted(was, reverse=True), rel=1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
@pytest.mark.parametrize("kwargs", [{}, {"distilled": True}, {"patch_head": True}], ids=str)
def test_whole_net_computes_the_same(kwargs: dict, dtype: torch.dtype) -> None:
    model = supernet(**kwargs).to(dtype)
    before, weights = model(images(dtype=dtype)), copy.deepcopy(model.state_dict())
    reorder(model)
    assert_close(model(images(dtype=dtype)), before)
    assert any(not torch.equal(weights[name], each) for name, each in model.state_dict().items())


def test_smaller_nets_change() -> None:
    """They take the first heads and units: now the important ones."""
    model = supernet()
    model.choose([choices(TWO_STAGES, 1)[0] | {f"heads_{each}": 1 for each in "abcd"}])
    before = model(images())
    reorder(model)
    assert (model(images()) - before).abs().max() > 1e-2


def test_sorting_twice_changes_nothing() -> None:
    model = supernet()
    optimizer = torch.optim.AdamW(model.parameters())
    train_step(model, optimizer, 0)
    reorder(model, optimizer)
    weights, state = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    reorder(model, optimizer)
    assert_same_weights(model, weights)
    for index, moments in optimizer.state_dict()["state"].items():
        assert all(torch.equal(each, state["state"][index][name]) for name, each in moments.items())


def test_equal_units_keep_their_order() -> None:
    """Heads and units that differ in sign alone are equally important."""
    model = supernet()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sign_()
    weights = copy.deepcopy(model)
    reorder(model)
    assert_same_weights(model, weights)


def test_average_moves_along() -> None:
    """Its units move as the model's do, whatever their own importance."""
    model = supernet()
    ema = ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        for parameter in ema.module.parameters():
            parameter.normal_(std=0.3)
    before, order = ema.module(images()), copy.deepcopy(ema.module.state_dict())
    reorder(model, copies=[ema.module])
    assert_close(ema.module(images()), before)
    changed = [name for name, each in ema.module.state_dict().items() if not torch.equal(each, order[name])]
    assert all(name.split(".")[-2] in ("qkv", "proj", "fc1", "fc2") for name in changed)
    assert len(changed) == 6 * 4  # blocks of the space


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_move_along(name: str) -> None:
    """A step after sorting gives the very net that sorting after the step gives."""
    first = supernet().double()
    second = copy.deepcopy(first)
    nets = [
        (model, create_optimizer_v2(model, name, weight_decay=0.1, **OPTIMIZERS[name])) for model in (first, second)
    ]
    for model, optimizer in nets:
        for seed in range(7):  # Lookahead looks every six
            train_step(model, optimizer, seed)
    sorted_before = copy.deepcopy(first)
    reorder(*nets[0])
    assert not torch.equal(first.stages[0].blocks[0].mlp.fc1.weight, sorted_before.stages[0].blocks[0].mlp.fc1.weight)
    for model, optimizer in nets:
        train_step(model, optimizer, seed=9)
    follow(sorted_before, second)
    for (name_, ours), theirs in zip(first.state_dict().items(), second.state_dict().values()):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=name_)


def follow(leader: nn.Module, model: nn.Module) -> None:
    """Sorts a model by the importance that another one has."""
    reorder(leader, copies=[model])


def test_moments_that_stay_behind_would_be_noticed() -> None:
    first = supernet().double()
    second = copy.deepcopy(first)
    nets = [(model, torch.optim.AdamW(model.parameters(), 1e-2)) for model in (first, second)]
    for model, optimizer in nets:
        train_step(model, optimizer, seed=0)
    leader = copy.deepcopy(first)
    reorder(first)
    for model, optimizer in nets:
        train_step(model, optimizer, seed=9)
    follow(leader, second)
    assert (first.stages[0].blocks[0].mlp.fc1.weight - second.stages[0].blocks[0].mlp.fc1.weight).abs().max() > 1e-3


def test_plain_net_with_removed_blocks() -> None:
    net = "((4, 16), (1, (16, 4, 8), (16, 32), 0), (1, (16, 4, 8), (16, 32), 1), (2, 16, 5))"
    model = timm.create_model("vit_resnas", network_def=net, img_size=56).eval()
    before = model(images())
    reorder(model)
    assert_close(model(images()), before)


def test_draws_nothing_and_leaves_no_graph() -> None:
    model = supernet()
    state = torch.get_rng_state()
    reorder(model, torch.optim.AdamW(model.parameters()))
    assert torch.equal(state, torch.get_rng_state())
    assert all(each.requires_grad and each.is_leaf for each in model.parameters())
