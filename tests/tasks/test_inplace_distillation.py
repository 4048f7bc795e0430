"""In-place distillation: the loss by hand, the whole net as a teacher that notices nothing, and timm's loop."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from asvit_plugin import PatchHeadCrossEntropy, SwitchTokenMix
from asvit_plugin.search.architectures import Architectures
from asvit_plugin.search.supernet import MODES, SuperNet
from asvit_plugin.tasks.inplace_distillation import InplaceDistillationTask

sys.path.append(str(Path(__file__).parents[1] / "search"))

from supernets import supernet

BATCH, CLASSES = 8, 5


def make(criterion: nn.Module | None = None, **kwargs: object) -> tuple[SuperNet, InplaceDistillationTask]:
    """A supernet in training mode, four of whose nets learn in each step, and its task."""
    model = supernet(**kwargs).train()
    for parameter in model.parameters():
        parameter.data.mul_(0.5)
    Architectures(model, BATCH // 4, warmup_epochs=0, sandwich=True).step(BATCH)
    return model, InplaceDistillationTask(model, criterion or LabelSmoothingCrossEntropy(0.1)).train()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, 3, 56, 56, generator=generator), torch.arange(BATCH) % CLASSES


def whole_logits(model: SuperNet, images: torch.Tensor) -> torch.Tensor:
    nets = model.nets
    model.choose(None)
    with torch.no_grad():
        logits = model.eval()(images)
    model.nets = nets
    model.train()
    return logits


def soft_cross_entropy(logits: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
    return SoftTargetCrossEntropy()(logits, taught.softmax(-1))


@pytest.mark.parametrize("mode", MODES)
def test_loss_by_hand(mode: str) -> None:
    model, task = make()
    model.mode = mode
    images, target = batch()
    logits = model(images)  # first: it moves the statistics that the teacher normalises with
    taught = whole_logits(model, images)
    result = task(images, target)
    others = [1, 2, 3, 5, 6, 7]  # of the four nets, examples 0 and 4 are the whole one's
    task_loss = LabelSmoothingCrossEntropy(0.1)(logits[::4], target[::4])
    distill_loss = soft_cross_entropy(logits[others], taught[others])
    torch.testing.assert_close(result["task_loss"], task_loss)
    torch.testing.assert_close(result["distill_loss"], distill_loss)
    torch.testing.assert_close(result["loss"], (2 * task_loss + 6 * distill_loss) / 8)
    assert torch.equal(result["output"], logits)


def test_patches_learn_as_well() -> None:
    model, task = make(PatchHeadCrossEntropy(), patch_head=True)
    images, labels = batch()
    mixed, target = SwitchTokenMix(grid_size=2, num_classes=CLASSES)(images, labels)
    target = (target[0], target[1][:, :4])
    taught = whole_logits(model, mixed)
    logits, patches = model(mixed)
    result = task(mixed, target)
    others = [1, 2, 3, 5, 6, 7]
    class_loss = soft_cross_entropy(logits[others], taught[others])
    torch.testing.assert_close(
        result["task_loss"], task.criterion((logits[::4], patches[::4]), [e[::4] for e in target])
    )
    patch_loss = result["distill_loss"] - class_loss
    assert patch_loss.item() == pytest.approx(whole_patch_loss(model, mixed, patches, others), rel=1e-4)


def whole_patch_loss(model: SuperNet, images: torch.Tensor, patches: torch.Tensor, others: list[int]) -> float:
    model.choose(None)
    tokens = model.eval().forward_features(images)[:, 1:]
    return soft_cross_entropy(patches[others], model.patch_head(tokens)[others]).item()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_loss(mode: str, checkpointing: bool) -> None:
    """The teacher has none, and recomputed activations are those of the chosen nets."""
    model, task = make()
    model.mode = mode
    images, target = batch()
    logits = model(images)
    taught = whole_logits(model, images)
    others = [1, 2, 3, 5, 6, 7]
    parts = (
        F.cross_entropy(logits[::4], target[::4], label_smoothing=0.1),
        soft_cross_entropy(logits[others], taught[others]),
    )
    expected = torch.autograd.grad((2 * parts[0] + 6 * parts[1]) / 8, list(model.parameters()))
    model.set_grad_checkpointing(checkpointing)
    task(images, target)["loss"].backward()
    for (name, parameter), gradient in zip(model.named_parameters(), expected):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_teacher_leaves_no_trace() -> None:
    """Statistics are those of one pass, no random numbers are drawn for it, and modes and nets are as before."""
    model, task = make(drop_path_rate=0.2)
    model.stages[0].eval()  # as something frozen
    images, target = batch()
    nets, modes = model.nets, [module.training for module in model.modules()]
    torch.manual_seed(3)
    model(images)
    state, statistics = torch.get_rng_state(), model.patch_embed.conv1.bn.running_mean.clone()
    model.patch_embed.conv1.bn.reset_running_stats()
    torch.manual_seed(3)
    task(images, target)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.patch_embed.conv1.bn.running_mean, statistics)
    assert model.nets == nets
    assert [module.training for module in model.modules()] == modes


def test_mixed_precision_trains_all_weights() -> None:
    """What autocast remembers of the teacher's pass, without gradients, is not what the nets learn with."""
    model, task = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task(*batch())["loss"]
    loss.backward()
    unused = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert unused == []


def test_nets_that_are_all_whole_learn_the_targets_alone() -> None:
    model, task = make()
    images, target = batch()
    for choices in (None, [model.networks.largest_choice()] * 4):
        model.choose(choices)
        result = task(images, target)
        torch.testing.assert_close(result["loss"], LabelSmoothingCrossEntropy(0.1)(model(images), target))
        assert result["distill_loss"] == 0


def test_small_nets_learn_what_the_whole_one_says() -> None:
    """Labels reach two of eight examples; the others learn the class all the same."""
    model, task = make(nn.CrossEntropyLoss())
    images, _ = batch()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(30):
        result = task(images, torch.zeros(BATCH, dtype=torch.long))
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
    assert result["task_loss"] < 0.05
    assert (result["output"].softmax(1)[:, 0] > 0.9).all()


def test_mistakes_give_one_sentence() -> None:
    with pytest.raises(ValueError, match="distilled is True with in-place distillation; its nets have one classifier"):
        make(distilled=True)
    model, task = make()
    model.choose([model.networks.smallest_choice()] * 2)
    with pytest.raises(ValueError, match="none of the 2 chosen nets is the whole one"):
        task(*batch())
