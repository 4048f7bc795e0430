"""SwitchTokenMix says of every token whose pixels it has, and the loss of the patch head learns from it."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from plugin_models import CHEAP
from timm.task import ClassificationTask
from timm.utils import random_seed

from asvit_plugin import PatchHeadCrossEntropy, SwitchTokenMix

DEFINITION = CHEAP["vit_resnas"]["network_def"]
CLASSES = 10
GRIDS = [(4, 4), (3, 5), (5, 2), (1, 4), (1, 1)]
HALVES = [(2, 1), (8, 4), (7, 3), (1, 0)]  # images, and how many of them are cut


def constants(count: int, size: tuple[int, int] = (8, 8), dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Images (count, 2, H, W), the i-th all i: a pixel tells whose it is."""
    return torch.arange(count, dtype=dtype).view(-1, 1, 1, 1).expand(-1, 2, *size).contiguous()


def mix(count: int, grid: tuple[int, int] = (4, 4), **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Constant images of labels 0 to ``count`` - 1, mixed: cells (B, grid), class targets and patch targets."""
    mixer = SwitchTokenMix(**{**dict(grid_size=grid, num_classes=count, label_smoothing=0.0), **kwargs})
    x, (classes, patches) = mixer(constants(count, (2 * grid[0], 3 * grid[1])), torch.arange(count))
    cells = x[:, 0, ::2, ::3]
    assert torch.equal(x, cells.repeat_interleave(2, 1).repeat_interleave(3, 2)[:, None].expand_as(x))  # whole cells
    return cells, classes, patches


def draw_boxes(grid: tuple[int, int], count: int) -> list[tuple[int, int, int, int]]:
    """Top, left, height and width of many boxes, as seen in the pixels of two images that swap them."""
    mixer = SwitchTokenMix(grid_size=grid, num_classes=1)
    boxes = []
    while len(boxes) < count:
        x, _ = mixer(constants(4, grid), torch.zeros(4, dtype=torch.long))
        rows, columns = np.nonzero((x[0, 0] != 0).numpy())
        # Where the permutation leaves both images with themselves, nothing can be seen.
        if len(rows):
            boxes.append((rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1))
    return boxes


def possible_boxes(grid: tuple[int, int]) -> dict[tuple[int, int, int, int], float]:
    """Every box and its probability, written down from the paper's rule: the area is uniform from 0 to cells - 1."""
    grid_h, grid_w = grid
    chances: dict[tuple[int, int, int, int], float] = Counter()
    for area in range(1, grid_h * grid_w):
        heights = range(1, min(grid_h, area) + 1)
        for first in heights:
            height, width = (first, area // first) if area // first <= grid_w else (area // grid_w, grid_w)
            offsets = [(y, x) for y in range(grid_h - height + 1) for x in range(grid_w - width + 1)]
            for y, x in offsets:
                chances[y, x, height, width] += 1 / (grid_h * grid_w * len(heights) * len(offsets))
    return chances


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)], ids=str)
def test_every_box_occurs_as_often_as_it_should(grid: tuple[int, int]) -> None:
    random_seed(0)
    count, chances = 4000, possible_boxes(grid)
    seen, total = Counter(draw_boxes(grid, count)), sum(chances.values())
    assert set(seen) <= set(chances)
    for part in range(4):  # top, left, height, width by themselves: enough draws for tight bounds
        share, expected = Counter(), Counter()
        for box, times in seen.items():
            share[box[part]] += times / count
        for box, chance in chances.items():
            expected[box[part]] += chance / total
        assert set(share) == set(expected)
        for value, chance in expected.items():
            assert share[value] == pytest.approx(chance, abs=5 * math.sqrt(chance * (1 - chance) / count))
    assert {box[2] for box in seen} == set(range(1, grid[0] + 1))
    assert {box[0] for box in seen} == set(range(grid[0]))
    assert {box[1] for box in seen} == set(range(grid[1]))


@pytest.mark.parametrize("grid", [(4, 4), (5, 2)], ids=str)
def test_area_is_what_a_uniform_share_gives(grid: tuple[int, int]) -> None:
    """Read off the class targets, which two images that are each other's partners have exactly."""
    random_seed(1)
    mixer, cells, count = SwitchTokenMix(grid_size=grid, num_classes=50, label_smoothing=0.0), math.prod(grid), 4000
    areas = []
    for _ in range(count):
        _, (classes, _) = mixer(constants(100, grid), torch.arange(100) % 50)
        areas.append(round((1 - classes[:50].diagonal().min().item()) * cells))  # 50 images: some have another partner
    empty, mean = areas.count(0) / count, np.mean(areas)
    assert empty == pytest.approx(1 / cells, abs=5 * math.sqrt(1 / cells / count))
    expected = sum(box[2] * box[3] * chance for box, chance in possible_boxes(grid).items())
    assert mean == pytest.approx(expected, abs=5 * np.std(areas) / math.sqrt(count))
    assert 0.8 < expected / ((cells - 1) / 2) <= 1  # width is rounded down, hence a little below the uniform mean


@pytest.mark.parametrize("count, cut", HALVES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_cell_of_the_cut_half_has_the_target_of_its_pixels(grid: tuple[int, int], count: int, cut: int) -> None:
    random_seed(2)
    for _ in range(20):
        cells, classes, patches = mix(count, grid)
        owners = cells[:cut].flatten(1).long()
        assert torch.equal(patches[:cut], F.one_hot(owners, count).float())
        torch.testing.assert_close(classes[:cut], patches[:cut].mean(1))
        assert (owners < cut).all()  # partners are of the same half
        foreign = owners != torch.arange(cut)[:, None]  # one box for all: the same cells, but for own partners
        assert len(foreign[foreign.any(1)].unique(dim=0)) <= 1
        moved = [owner[mask].unique().tolist() for owner, mask in zip(owners, foreign) if mask.any()]
        assert all(len(partner) == 1 for partner in moved)
        assert len({partner[0] for partner in moved}) == len(moved)  # a permutation


@pytest.mark.parametrize("count, cut", HALVES, ids=str)
def test_blended_half(count: int, cut: int) -> None:
    random_seed(3)
    for _ in range(20):
        cells, classes, patches = mix(count)
        assert torch.equal(patches[cut:], classes[cut:, None].expand(-1, 16, -1))
        assert not classes[cut:, :cut].any()  # partners are of the same half
        expected = classes[cut:] @ torch.arange(count, dtype=torch.float32)
        torch.testing.assert_close(cells[cut:], expected.view(-1, 1, 1).expand(-1, 4, 4))
        shares = classes[cut:][(classes[cut:] > 0) & (classes[cut:] < 1)].unique()
        assert len(shares) <= 2 or shares.diff().sort().values[1:-1].max() < 1e-6  # one weight and its rest


def test_weight_of_the_blended_half_follows_its_distribution() -> None:
    random_seed(4)
    shares = []
    for _ in range(2000):
        own = mix(40)[1].diagonal()[20:]
        shares.append(own.min().item())  # of 20 images some have another partner
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.01)  # of Beta(0.8, 0.8)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_are_smoothed_distributions(grid: tuple[int, int], smoothing: float) -> None:
    random_seed(5)
    mixer = SwitchTokenMix(grid_size=grid, num_classes=CLASSES, label_smoothing=smoothing)
    _, targets = mixer(constants(6, grid), torch.arange(6))
    assert [tuple(target.shape) for target in targets] == [(6, CLASSES), (6, math.prod(grid), CLASSES)]
    for target in targets:
        assert target.dtype == torch.float32
        assert target.min() == pytest.approx(smoothing / CLASSES)
        torch.testing.assert_close(target.sum(-1), torch.ones(target.shape[:-1]))


def test_one_number_for_a_square_grid() -> None:
    assert SwitchTokenMix(grid_size=5).grid_size == (5, 5)


def test_seed_repeats() -> None:
    outcomes = []
    for seed in (7, 7, 8):
        random_seed(seed)
        outcomes.append(mix(8))
    assert all(torch.equal(a, b) for a, b in zip(outcomes[0], outcomes[1]))
    assert not torch.equal(outcomes[0][0], outcomes[2][0])


@pytest.mark.parametrize("alphas", [(0.0, 0.0), (0.8, 0.0), (0.0, 1.0)], ids=str)
def test_an_alpha_of_zero_leaves_its_half_alone(alphas: tuple[float, float]) -> None:
    random_seed(9)
    changed = torch.zeros(2, dtype=torch.bool)
    for _ in range(10):
        cells, classes, patches = mix(8, mixup_alpha=alphas[0], cutmix_alpha=alphas[1])
        off = (cells - torch.arange(8).view(-1, 1, 1)).abs().amax((1, 2)) > 1e-5
        assert torch.equal(classes.diagonal() < 1 - 1e-6, off)
        assert torch.equal((patches.diagonal(dim1=0, dim2=2) < 1 - 1e-6).any(0), off)
        changed |= off.view(2, 4).any(1)
    assert changed.tolist() == [alphas[1] > 0, alphas[0] > 0]


def test_disabled_it_smooths_and_nothing_else() -> None:
    mixer = SwitchTokenMix(num_classes=CLASSES)
    mixer.mixup_enabled = False
    images, labels = torch.randn(5, 3, 8, 8), torch.tensor([1, 0, 9, 3, 3])
    x, (classes, patches) = mixer(images.clone(), labels)
    assert torch.equal(x, images)
    torch.testing.assert_close(classes, F.one_hot(labels, CLASSES) * 0.9 + 0.01)
    assert torch.equal(patches, classes[:, None].expand(-1, 16, -1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types(dtype: torch.dtype) -> None:
    mixer, outcomes = SwitchTokenMix(num_classes=8), []
    for each in (torch.float32, dtype):
        random_seed(10)
        outcomes.append(mixer(constants(8, dtype=each), torch.arange(8)))
    (wanted, targets), (got, others) = outcomes
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), wanted, rtol=0.01, atol=0.01)
    assert all(torch.equal(a, b) for a, b in zip(targets, others))


def test_targets_are_made_on_the_device_of_the_images() -> None:
    x, targets = SwitchTokenMix()(torch.zeros(4, 3, 8, 8, device="meta"), torch.arange(4))
    assert {each.device.type for each in (x, *targets)} == {"meta"}


@pytest.mark.parametrize("contiguous", [True, False])
def test_it_works_in_place_in_any_memory_format(contiguous: bool) -> None:
    images = constants(8).to(memory_format=torch.contiguous_format if contiguous else torch.channels_last)
    assert SwitchTokenMix(num_classes=8)(images, torch.arange(8))[0] is images


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(mixup_alpha=-0.1), "mixup_alpha is -0.1; .* from 0 up"),
        (dict(cutmix_alpha=float("nan")), "cutmix_alpha is nan; .* from 0 up"),
        (dict(label_smoothing=1.0), "label_smoothing is 1.0; .* below 1"),
        (dict(grid_size=0), "grid_size is 0; .* from 1 up"),
        (dict(grid_size=(4, 4, 4)), r"grid_size is \(4, 4, 4\); .* height and width"),
        (dict(grid_size=(4, 2.5)), "grid_size is .*2.5.*whole number"),
        (dict(num_classes=0), "num_classes is 0; .* from 1 up"),
    ],
    ids=str,
)
def test_bad_arguments_get_one_sentence(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        SwitchTokenMix(**kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "size, labels, message",
    [
        ((8, 10), torch.zeros(2), "8 x 10 pixels; both must be multiples of grid_size, 4 x 4"),
        ((6, 8), torch.zeros(2), "6 x 8 pixels"),
        ((8, 8), torch.zeros(3), r"target has shape \(3,\); it must be \(2,\)"),
        ((8, 8), torch.zeros(2, 10), r"target has shape \(2, 10\)"),
    ],
)
def test_bad_batches_get_one_sentence(size: tuple[int, int], labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SwitchTokenMix()(constants(2, size), labels.long())


# The loss ---------------------------------------------------------------------------------------------------------


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return -(target * logits.softmax(-1).log()).sum() / (logits.numel() / logits.shape[-1])


@pytest.mark.parametrize("weight", [1.0, 0.5, 0.0])
def test_loss_by_hand(weight: float) -> None:
    logits, patch_logits = torch.randn(3, CLASSES), torch.randn(3, 4, CLASSES)
    classes, patches = torch.randn(3, CLASSES).softmax(-1), torch.randn(3, 4, CLASSES).softmax(-1)
    criterion = PatchHeadCrossEntropy(patch_weight=weight)
    class_term, patch_term = cross_entropy(logits, classes), cross_entropy(patch_logits, patches)
    expected = class_term + weight * patch_term
    torch.testing.assert_close(criterion((logits, patch_logits), (classes, patches)), expected)
    torch.testing.assert_close(criterion(logits, (classes, patches)), class_term)
    torch.testing.assert_close(criterion(logits, classes), class_term)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_plain_targets_hold_for_every_patch(smoothing: float) -> None:
    output, labels = (torch.randn(3, CLASSES), torch.randn(3, 4, CLASSES)), torch.tensor([0, 9, 4])
    expected = F.cross_entropy(output[0], labels, label_smoothing=smoothing)
    expected = expected + F.cross_entropy(
        output[1].transpose(1, 2), labels[:, None].expand(-1, 4), label_smoothing=smoothing
    )
    torch.testing.assert_close(PatchHeadCrossEntropy(smoothing=smoothing)(output, labels), expected)
    soft = F.one_hot(labels, CLASSES) * (1 - smoothing) + smoothing / CLASSES
    torch.testing.assert_close(PatchHeadCrossEntropy(smoothing=0.3)(output, soft), expected)


@pytest.mark.parametrize(
    "target, message",
    [
        ((torch.zeros(3, 10), torch.zeros(3, 16, 10)), r"patch target has shape \(3, 16, 10\); .* \(3, 4, 10\)"),
        ((torch.zeros(3, 5), torch.zeros(3, 4, 5)), r"class target has shape \(3, 5\); .* \(3, 10\)"),
    ],
)
def test_targets_of_another_shape_get_one_sentence(target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        PatchHeadCrossEntropy()((torch.zeros(3, CLASSES), torch.zeros(3, 4, CLASSES)), target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["patch_weight", "smoothing"])
def test_bad_loss_arguments(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is -1"):
        PatchHeadCrossEntropy(**{name: -1})


@pytest.mark.parametrize("size, grid", [((112, 112), (2, 2)), ((168, 112), (3, 2))], ids=str)
def test_it_trains_a_patch_head(size: tuple[int, int], grid: tuple[int, int]) -> None:
    random_seed(0)
    model = timm.create_model("vit_resnas", network_def=DEFINITION, img_size=size, num_classes=CLASSES, patch_head=True)
    task = ClassificationTask(model, criterion=PatchHeadCrossEntropy(), verbose=False).train()
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1, momentum=0.9)
    images, labels = torch.randn(8, 3, *size), torch.arange(8)
    x, target = SwitchTokenMix(grid_size=grid, num_classes=CLASSES)(images, labels)
    losses = []
    for _ in range(12):
        loss = task(x, target)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert losses[0] == pytest.approx(2 * math.log(CLASSES), rel=0.1)
    assert losses[-1] < 0.95 * losses[0]
    assert task.eval()(images, labels)["loss"].ndim == 0


def test_its_grid_is_the_models() -> None:
    """Of all cells, a patch's logits depend most on its own: the orders of tokens and of cells agree."""
    random_seed(0)
    model = timm.create_model("vit_resnas", network_def=DEFINITION, img_size=(112, 168), num_classes=6, patch_head=True)
    image = torch.randn(2, 3, 112, 168, requires_grad=True)
    patch_logits = model.train()(image)[1]
    assert patch_logits.shape == (2, 6, 6)
    for patch in range(6):
        (gradient,) = torch.autograd.grad(patch_logits[:, patch].square().sum(), image, retain_graph=True)
        cells = gradient.abs().sum((0, 1)).view(2, 56, 3, 56).sum((1, 3)).flatten()
        assert cells.argmax() == patch
