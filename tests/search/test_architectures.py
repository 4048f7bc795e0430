"""Drawing nets: without replacement, the large ones first, whatever else is random, and the same again on resuming."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from supernets import TWO_STAGES, supernet
from timm.data import Mixup

from asvit_plugin.search.architectures import Architectures
from asvit_plugin.search.network_space import NetworkSpace
from asvit_plugin.search.space import Choice, Space
from asvit_plugin.search.supernet import SuperNet, make_supernet

BATCH, EACH = 32, 8  # four nets a step
FIVE = (6, 5, 4, 3, 2)


def one_block(dims: tuple[int, ...] = FIVE, **space: object) -> SuperNet:
    """A supernet of one stage with five widths, five numbers of heads and a second block that may be removed."""
    block = "(1, ({{dim}}, {{heads}}, 2), ({{dim}}, 8), {0})"
    definition = f"((5, {{dim}}, 4), {block.format(1)}, {block.format('{exists}')}, (2, {{dim}}, 3))".replace("{{", "{")
    decisions = {"dim": dims, "heads": FIVE, "exists": (1, 0)}
    template = {"network_def": definition.replace("}}", "}")}
    whole = Space("one_block", "vit_resnas", decisions, template, pools={"exists": (2, 2)})
    return make_supernet(NetworkSpace(replace(whole, **space)), img_size=14)


@pytest.fixture(scope="module")
def net() -> SuperNet:
    return one_block()


def drawn(net: SuperNet, epoch: int, steps: int = 1, rank: int = 0, **kwargs: object) -> list[list[Choice]]:
    each = Architectures(net, **{"examples_per_arch": EACH, "seed": 3, "warmup_epochs": 30, **kwargs})
    each.start_epoch(epoch, rank)
    return [each.step(BATCH) for _ in range(steps)]


def values(steps: list[list[Choice]], name: str) -> Counter:
    return Counter(choice[name] for step in steps for choice in step)


# Section 3.4 of the authors' recipe: five widths are enabled from epochs 0, 8, 15, 23 and 30 on; removal from 20 on.
@pytest.mark.parametrize(
    "epoch, widths, removed", [(0, 1, 0), (7, 1, 0), (8, 2, 0), (14, 2, 0), (15, 3, 0), (19, 3, 0), (20, 3, 1 / 3)]
)
def test_small_nets_are_let_in_one_by_one(epoch: int, widths: int, removed: float, net: SuperNet) -> None:
    steps = drawn(net, epoch, 300)
    assert set(values(steps, "dim")) == set(values(steps, "heads")) == set(FIVE[:widths])
    assert values(steps, "exists")[0] / (300 * 4) == pytest.approx(removed, abs=0.04)


@pytest.mark.parametrize("epoch, warmup_epochs", [(30, 30), (31, 30), (1000, 30), (0, 0), (1, 1)])
def test_all_nets_are_drawn_at_the_end(epoch: int, warmup_epochs: int, net: SuperNet) -> None:
    steps = drawn(net, epoch, 300, warmup_epochs=warmup_epochs)
    counts = values(steps, "dim")
    assert set(counts) == set(FIVE)
    assert all(count / 1200 == pytest.approx(1 / 5, abs=0.04) for count in counts.values())
    assert values(steps, "exists")[0] / 1200 == pytest.approx(1 / 2, abs=0.04)


def test_pools_weigh_choices(net: SuperNet) -> None:
    rare = drawn(one_block(pools={"exists": (3, 1), "heads": (1, 0, 0, 0, 4)}), 30, 300)
    assert values(rare, "exists")[0] / 1200 == pytest.approx(1 / 4, abs=0.04)
    assert values(rare, "heads")[2] / 1200 == pytest.approx(4 / 5, abs=0.04)
    assert set(values(rare, "heads")) == {6, 2}


def test_choices_need_no_order() -> None:
    mixed = drawn(one_block(dims=(3, 6, 2, 5, 4)), 8, 100)
    assert set(values(mixed, "dim")) == {6, 5}


@pytest.mark.parametrize("batch, most", [(32, 1), (40, 1), (48, 2), (80, 2), (88, 3)])
def test_draws_without_replacement(batch: int, most: int, net: SuperNet) -> None:
    each = Architectures(net, EACH, warmup_epochs=0)
    for _ in range(50):
        step = each.step(batch)
        assert len(step) == batch // EACH
        assert max(values([step], "dim").values()) <= most


def test_decisions_are_drawn_independently(net: SuperNet) -> None:
    steps = drawn(net, 30, 500)
    pairs = Counter((choice["dim"], choice["heads"]) for step in steps for choice in step)
    assert len(pairs) == 25
    assert max(abs(count / 2000 - 1 / 25) for count in pairs.values()) < 0.02


def test_supernet_computes_what_is_drawn(net: SuperNet) -> None:
    each = Architectures(net, EACH, warmup_epochs=0)
    choices = each.step(BATCH)
    assert list(net.nets) == [net.networks.network(choice) for choice in choices]
    assert net.train()(torch.randn(BATCH, 3, 14, 14)).shape == (BATCH, 3)


def test_goes_on_drawing_under_mixup(net: SuperNet) -> None:
    """The authors' draws stand still here: nothing advances the generator of PyTorch that they draw from."""
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=3)
    each = Architectures(net, EACH, warmup_epochs=0)
    steps = []
    for _ in range(6):
        mixup(torch.randn(BATCH, 3, 14, 14), torch.zeros(BATCH, dtype=torch.long))
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        steps.append(str(each.step(BATCH)))
    assert len(set(steps)) == 6


def test_leaves_other_random_numbers_alone(net: SuperNet) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    drawn(net, 30, 5)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_draws_follow_from_seed_epoch_and_rank(net: SuperNet) -> None:
    first = drawn(net, 40, 3)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    assert drawn(net, 40, 3) == first
    others = [drawn(net, 41, 3), drawn(net, 40, 3, rank=1), drawn(net, 40, 3, seed=4), drawn(net, 1, 3, rank=40)]
    assert all(other != first for other in others)


def test_epoch_begins_anew_after_any_other(net: SuperNet) -> None:
    each = Architectures(net, EACH, seed=3)
    for epoch in range(35):
        each.start_epoch(epoch)
        first = each.step(BATCH)
    assert drawn(net, 34) == [first]


def test_ranks_draw_different_nets(net: SuperNet) -> None:
    """Eight processes of two nets each train 16 different nets in a step, as the authors'."""
    nets = [str(choice) for rank in range(8) for choice in drawn(supernet(), 30, rank=rank, examples_per_arch=16)[0]]
    assert len(set(nets)) == 16


@pytest.mark.parametrize(
    "constraint, epoch", [("heads <= dim", 30), ("heads < dim", 0), ("dim == 2 and heads == 5", 30)]
)
def test_constraints_hold(constraint: str, epoch: int) -> None:
    """Also where no net that is let in yet meets them, and where nearly none at all does."""
    net = one_block(constraints=(constraint,))
    for sandwich in (False, True):
        for step in drawn(net, epoch, 20, sandwich=sandwich):
            assert all(map(net.networks.space.allows, step[sandwich:]))


def test_sandwich_trains_the_ends(net: SuperNet) -> None:
    largest, smallest = net.networks.largest_choice(), net.networks.smallest_choice()
    for step in drawn(net, 30, 20, sandwich=True):
        assert step[:2] == [largest, smallest]
        assert len(step) == 4
    assert drawn(net, 0, sandwich=True) == [[largest] * 4]
    assert drawn(net, 15, sandwich=True)[0][1] == {"dim": 4, "heads": 4, "exists": 1}  # the smallest let in so far
    assert len({str(step[2:]) for step in drawn(net, 30, 20, sandwich=True)}) > 15


def test_sandwich_of_two_draws_nothing_else(net: SuperNet) -> None:
    steps = drawn(net, 30, sandwich=True, examples_per_arch=16)
    assert steps == [[net.networks.largest_choice(), net.networks.smallest_choice()]]


@pytest.mark.parametrize(
    "kwargs, batch, words",
    [
        ({"examples_per_arch": 0}, 32, "examples_per_arch is 0; it must be a whole number from 1 up"),
        ({"seed": -1}, 32, "seed is -1"),
        ({"warmup_epochs": -1}, 32, "warmup_epochs is -1"),
        ({"examples_per_arch": 5}, 32, "examples_per_arch is 5; it must divide the batch of 32"),
        ({"examples_per_arch": 64}, 32, "examples_per_arch is 64; it must divide the batch of 32"),
        ({}, 0, "it must divide the batch of 0"),
        ({"examples_per_arch": 32, "sandwich": True}, 32, "with sandwich a batch of 32 must make two nets or more"),
    ],
)
def test_mistakes_give_one_sentence(kwargs: dict, batch: int, words: str, net: SuperNet) -> None:
    with pytest.raises(ValueError, match=words):
        Architectures(net, **{"examples_per_arch": EACH, **kwargs}).step(batch)


def test_shared_space_is_drawn_whole() -> None:
    """Every net of a space with two stages, removable blocks and free widths comes up."""
    each = Architectures(supernet(TWO_STAGES), 4, warmup_epochs=0)
    steps = [each.step(24) for _ in range(200)]
    for name, choices in TWO_STAGES.space.decisions.items():
        assert set(values(steps, name)) == set(choices)
