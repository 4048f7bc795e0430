"""DistillationTask gives the losses of the papers and of timm's own tasks, for any pair of models, in timm's loop."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from plugin_models import CHEAP
from timm.optim import create_optimizer_v2
from timm.task import LogitDistillationTask, TokenDistillationTask
from timm.utils import unwrap_model
from torch import distributed, nn

from asvit_plugin import DistillationTask, castle

CLASSES = 10
BATCH = 3
PARTS = ("task_loss", "distill_loss", "tokens_loss")
VIT = dict(img_size=64, embed_dim=16, depth=4, num_heads=2)
SWIN = dict(img_size=64, embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), window_size=4)


def vit(**kwargs: Any) -> nn.Module:
    return build("vit_tiny_patch16_224", **{**VIT, **kwargs})


def build(name: str, **kwargs: Any) -> nn.Module:
    """A model with 10 classes and weights large enough that every block matters."""
    model = timm.create_model(name, **{"num_classes": CLASSES, **CHEAP.get(name, {}), **kwargs})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "vit": vit,
    "vit_patch8": lambda **kwargs: vit(patch_size=8, **kwargs),
    "castled": lambda **kwargs: castle(vit(**kwargs), mode="masked"),
    "deit": lambda **kwargs: build("deit_tiny_distilled_patch16_224", **{**VIT, **kwargs}),
    "as_vit": lambda **kwargs: build("as_vit", **kwargs),
    "vit_resnas": lambda **kwargs: build("vit_resnas", **kwargs),
    "vit_resnas_distilled": lambda **kwargs: build("vit_resnas", distilled=True, **kwargs),
    "scaled_pit": lambda **kwargs: build("scaled_pit", **kwargs),
    "scaled_pit_distilled": lambda **kwargs: build("scaled_pit", distilled=True, **kwargs),
    "resnet": lambda **kwargs: build("test_resnet", **kwargs),
    "convnext": lambda **kwargs: build("test_convnext", **kwargs),
    "swin": lambda **kwargs: build("swin_tiny_patch4_window7_224", **SWIN, **kwargs),
}
TWO_HEADS = ("deit", "vit_resnas_distilled", "scaled_pit_distilled")
PAIRS = [  # all families on both sides; grids, depths, widths and prefix tokens of every kind
    ("vit", "vit_patch8"),
    ("vit_patch8", "vit"),
    ("vit", "deit"),
    ("deit", "vit_resnas_distilled"),
    ("as_vit", "convnext"),
    ("vit_resnas", "resnet"),
    ("scaled_pit", "vit_resnas"),
    ("scaled_pit_distilled", "swin"),
    ("vit_resnas_distilled", "castled"),
    ("resnet", "as_vit"),
    ("convnext", "scaled_pit"),
    ("swin", "scaled_pit_distilled"),
    ("castled", "vit"),
]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def batch(dtype: torch.dtype = torch.float64, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(BATCH, channels, 64, 64, dtype=dtype), torch.tensor([1, 7, 4])


def make(student: nn.Module, teacher: nn.Module, train: bool = True, **kwargs: Any) -> DistillationTask:
    """A task in float64."""
    return DistillationTask(student.double(), teacher.double(), **kwargs).train(train)


def gradients(task: nn.Module, model: nn.Module, **options: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of the seed's batch and the student's gradients."""
    torch.manual_seed(1)
    loss = task(*batch(**options))["loss"]
    model.zero_grad()
    loss.backward()
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


# Logits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("distill_type", ["soft", "hard", "none"])
def test_logits_by_hand(distill_type: str, temperature: float) -> None:
    student, teacher = vit(), vit(depth=2)
    task = make(student, teacher, distill_type=distill_type, temperature=temperature)
    images, target = batch()
    ours, theirs = student(images), teacher(images)
    result = task(images, target)
    task_loss = -ours.log_softmax(1)[range(BATCH), target].mean()
    torch.testing.assert_close(result["task_loss"], task_loss)
    assert torch.equal(result["output"], ours)
    if distill_type == "none":
        assert "distill_loss" not in result
        torch.testing.assert_close(result["loss"], task_loss / 2)
        return
    if distill_type == "soft":
        p, q = (theirs / temperature).softmax(1), (ours / temperature).softmax(1)
        expected = temperature**2 * (p * (p / q).log()).sum(1).mean()
    else:
        expected = -ours.log_softmax(1)[range(BATCH), theirs.argmax(1)].mean()
    torch.testing.assert_close(result["distill_loss"], expected)
    torch.testing.assert_close(result["loss"], (task_loss + expected) / 2)
    assert set(result) == {"loss", "output", "task_loss", "distill_loss"}


@pytest.mark.parametrize("name", ["vit", "vit_resnas", "resnet"])
def test_soft_loss_of_one_head_is_timms(name: str) -> None:
    student, teacher = FAMILIES[name]().double(), vit(depth=2).double()
    teacher.pretrained_cfg = {**teacher.pretrained_cfg, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    twin, weights = copy.deepcopy(student), dict(task_loss_weight=0.3, distill_loss_weight=1.4, temperature=2.0)
    theirs = LogitDistillationTask(twin, copy.deepcopy(teacher), **weights, dtype=torch.float64, verbose=False).train()
    ours = make(student, teacher, **weights)
    torch.testing.assert_close(gradients(ours, student), gradients(theirs, twin), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("distill_type", ["soft", "hard"])
@pytest.mark.parametrize("name", TWO_HEADS)
def test_loss_of_two_heads_is_timms(name: str, distill_type: str) -> None:
    student, teacher = FAMILIES[name]().double(), vit(depth=2).double()
    twin, kwargs = copy.deepcopy(student), dict(distill_type=distill_type, task_loss_weight=0.3, temperature=2.0)
    theirs = TokenDistillationTask(twin, copy.deepcopy(teacher), **kwargs, dtype=torch.float64, verbose=False).train()
    ours = make(student, teacher, **kwargs)
    torch.testing.assert_close(gradients(ours, student), gradients(theirs, twin), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradients(ours.eval(), student)[0], gradients(ours, student)[0])  # the mean of both


@pytest.mark.parametrize("distill_type, separate", [("soft", True), ("hard", True), ("none", False)])
@pytest.mark.parametrize("name", TWO_HEADS)
def test_two_heads_are_trained_apart_where_the_teacher_has_one_to_teach(
    name: str, distill_type: str, separate: bool
) -> None:
    student = FAMILIES[name]()
    task = make(student, vit(), distill_type=distill_type)
    assert isinstance(student(batch()[0]), tuple) == separate
    assert all(gradient.any() for key, gradient in gradients(task, student)[1].items() if key.startswith("head"))


@pytest.mark.parametrize(
    "kwargs, weights",
    [
        (dict(), (0.5, 0.5, 0.0)),
        (dict(task_loss_weight=0.2), (0.2, 0.8, 0.0)),
        (dict(task_loss_weight=0.2, distill_loss_weight=3.0), (0.2, 3.0, 0.0)),
        (dict(distill_loss_weight=0.0, tokens_weight=2.0), (0.5, 0.0, 2.0)),
        (dict(task_loss_weight=1, tokens_weight=0.1), (1.0, 0.0, 0.1)),
        (dict(task_loss_weight=0, tokens_weight=10), (0.0, 1.0, 10.0)),
    ],
    ids=str,
)
def test_weights(kwargs: dict[str, float], weights: tuple[float, ...]) -> None:
    result = make(vit(), vit(), **kwargs)(*batch())
    expected = sum(weight * result.get(part, 0) for part, weight in zip(PARTS, weights))
    torch.testing.assert_close(result["loss"], expected)
    assert ("tokens_loss" in result) == bool(weights[2])


def test_criterion_takes_mixed_targets() -> None:
    images, labels = batch()
    target = F.one_hot(labels, CLASSES) * 0.7 + 0.03
    student = vit()
    result = make(student, vit(), criterion=nn.CrossEntropyLoss())(images, target)
    torch.testing.assert_close(result["task_loss"], -(target * student(images).log_softmax(1)).sum(1).mean())


# Tokens -----------------------------------------------------------------------------------------------------------


def record(model: nn.Module) -> list[torch.Tensor]:
    """A list that holds the outputs of the model's blocks after it has run."""
    found: list[torch.Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, output: found.append(output))
    return found


@pytest.mark.parametrize(
    "ours, theirs, pairs",
    [
        (dict(depth=4), dict(depth=4), [(0, 0), (1, 1), (2, 2), (3, 3)]),
        (dict(depth=2), dict(depth=6), [(0, 2), (1, 5)]),
        (dict(depth=6), dict(depth=3), [(1, 0), (3, 1), (5, 2)]),
        (dict(depth=3), dict(depth=4), [(0, 0), (1, 2), (2, 3)]),
        (dict(depth=1), dict(depth=5), [(0, 4)]),
        (dict(depth=2), dict(depth=2, embed_dim=24), [(0, 0), (1, 1)]),
        (dict(depth=2), dict(depth=2, patch_size=8), [(0, 0), (1, 1)]),
        (dict(depth=2, patch_size=8), dict(depth=2), [(0, 0), (1, 1)]),
        (dict(depth=2), dict(depth=2, reg_tokens=3), [(0, 0), (1, 1)]),
        (dict(depth=2, reg_tokens=2), dict(depth=2, reg_tokens=2), [(0, 0), (1, 1)]),
        (dict(depth=2, class_token=False, global_pool="avg"), dict(depth=2), [(0, 0), (1, 1)]),
    ],
    ids=str,
)
def test_tokens_by_hand(ours: dict[str, Any], theirs: dict[str, Any], pairs: list[tuple[int, int]]) -> None:
    student, teacher = vit(**ours), vit(**theirs)
    task = make(student, teacher, tokens_weight=1.0)
    seen, taught = record(student), record(teacher)
    loss = task(*batch())["tokens_loss"]
    maps = task.get_trainable_module().projection
    counts = [model.num_prefix_tokens for model in (student, teacher)]
    expected = []
    for pair, (i, j) in enumerate(pairs):
        a, b, shared = maps[pair](seen[i]), taught[j], counts[0]
        if counts[0] != counts[1]:
            a, b, shared = a[:, counts[0] :], b[:, counts[1] :], 0
        if a.shape[1] != b.shape[1]:
            here, there = (math.isqrt(tokens.shape[1] - shared) for tokens in (a, b))
            grid = b[:, shared:].transpose(1, 2).unflatten(2, (there, there))
            grid = F.interpolate(grid, size=(here, here), mode="bilinear", antialias=True)
            b = torch.cat([b[:, :shared], grid.flatten(2).transpose(1, 2)], 1)
        a, b = (
            (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            for tokens in (a, b)
        )
        expected.append((a - b).square().mean())
    assert len(maps) == len(pairs)
    torch.testing.assert_close(loss, torch.stack(expected).mean())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_copy_of_the_teacher_has_nothing_to_learn(name: str) -> None:
    teacher = FAMILIES[name]()
    result = make(copy.deepcopy(teacher), teacher, train=False, tokens_weight=1.0)(*batch())
    assert result["tokens_loss"] < 1e-12
    assert abs(result["distill_loss"]) < 1e-12


def test_castled_at_blend_0_has_nothing_to_learn_until_it_switches() -> None:
    teacher = vit()
    student = castle(copy.deepcopy(teacher))
    task = make(student, teacher, tokens_weight=1.0)
    assert task(*batch())["tokens_loss"] < 1e-12
    castle(linear := copy.deepcopy(teacher), mode="linear")
    assert make(linear, teacher, tokens_weight=1.0)(*batch())["tokens_loss"] > 1e-3


def test_scale_of_the_tokens_does_not_matter() -> None:
    """All that a block adds to its tokens is four times as large in the teacher, its layer norms take that out."""
    student = vit()
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if any(part in name for part in ("patch_embed", "cls_token", "pos_embed", "attn.proj", "mlp.fc2")):
                parameter.mul_(4)
    seen, taught = record(student), record(teacher)
    task = make(student, teacher, tokens_weight=1.0)
    assert task(*batch())["tokens_loss"] < 1e-6
    torch.testing.assert_close(4 * seen[-1], taught[-1], rtol=0.01, atol=0.01)


@pytest.mark.parametrize("ours, theirs", PAIRS)
def test_any_pair_of_families(ours: str, theirs: str) -> None:
    student, teacher = FAMILIES[ours](), FAMILIES[theirs]()
    task = make(student, teacher, tokens_weight=1.0, distill_type="hard")
    trained = task.get_trainable_module()
    loss, _ = gradients(task, trained)  # every parameter has a gradient, also every map
    assert loss.isfinite()
    assert all(gradient.any() for key, gradient in gradients(task, trained)[1].items() if "projection" in key)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    images, target = batch()
    with torch.no_grad():
        result = task.eval()(images, target)
        torch.testing.assert_close(result["output"], student.eval()(images))
        soft = make(student, teacher, train=False, distill_type="hard")(images, target)  # no tokens: model(images)
        torch.testing.assert_close(result["distill_loss"], soft["distill_loss"])


@pytest.mark.parametrize("ours, theirs", [("vit", "vit_patch8"), ("vit_resnas", "resnet")])
def test_without_its_weight_no_token_is_looked_at(ours: str, theirs: str) -> None:
    student = FAMILIES[ours]()
    task = make(student, FAMILIES[theirs]())
    assert task.get_trainable_module() is student
    assert task.get_task_state() == {}


def test_prefix_tokens_that_are_not_to_be_had_stay_out() -> None:
    """cait has a class token, but only after its last block."""
    cait = build("cait_xxs24_224", img_size=64, embed_dim=16, depth=2, num_heads=2)
    for student, teacher in ((cait, vit()), (vit(), copy.deepcopy(cait))):
        assert make(student, teacher, train=False, tokens_weight=1.0)(*batch())["tokens_loss"].isfinite()


# The teacher ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens_weight", [0.0, 1.0])
@pytest.mark.parametrize("theirs", ["resnet", "vit_resnas_distilled"])
def test_the_teacher_stays_as_it_is(theirs: str, tokens_weight: float) -> None:
    teacher = FAMILIES[theirs]().train()
    task = make(vit(), teacher, tokens_weight=tokens_weight)
    before = copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1, weight_decay=0.1)  # of all, the teacher's too
    for mode in (True, False, True):
        task.train(mode)
        assert not any(module.training for module in teacher.modules())
        optimizer.zero_grad()
        task(*batch())["loss"].backward()
        optimizer.step()
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert any(key.endswith("running_mean") for key in before)


@pytest.mark.parametrize("tokens_weight", [0.0, 1.0])
def test_images_are_normalised_anew(tokens_weight: float) -> None:
    student, teacher = vit(), vit()
    teacher.pretrained_cfg = {**teacher.pretrained_cfg, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    images, target = batch()
    means, stds = (torch.tensor(each, dtype=torch.float64).view(3, 1, 1) for each in ((4, 5, 6), (0.7, 0.8, 0.9)))
    theirs = teacher.pretrained_cfg["mean"], teacher.pretrained_cfg["std"]
    mean, std = (torch.tensor(each, dtype=torch.float64).view(3, 1, 1) for each in theirs)
    task = make(student, teacher, mean=(4, 5, 6), std=(0.7, 0.8, 0.9), distill_type="soft", tokens_weight=tokens_weight)
    expected = teacher.double()((images * stds + means - mean) / std).log_softmax(1)
    ours = student(images).log_softmax(1)
    torch.testing.assert_close(task(images, target)["distill_loss"], (expected.exp() * (expected - ours)).sum(1).mean())


@pytest.mark.parametrize("given", [dict(), dict(mean=[0.4], std=[0.2])], ids=["default", "given"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("tokens_weight", [0.0, 1.0])
def test_grey_student(tokens_weight: float, channels: int, given: dict[str, Any]) -> None:
    """Grey images are normalised with the average of the colours' numbers, as timm's loader does."""
    student, teacher = vit(in_chans=1), vit(in_chans=channels)
    cfg = teacher.pretrained_cfg
    images, target = batch(channels=1)
    result = make(student, teacher, tokens_weight=tokens_weight, **given)(images, target)
    mean, std = (sum(cfg[key]) / 3 for key in ("mean", "std"))
    grey = images * given.get("std", [std])[0] + given.get("mean", [mean])[0]
    if channels == 1:
        image = (grey - mean) / std
    else:
        pairs = zip(cfg["mean"], cfg["std"])
        image = torch.cat([(grey - mean) / std for mean, std in pairs], 1)
    expected = F.kl_div(student(images).log_softmax(1), teacher(image).softmax(1), reduction="batchmean")
    torch.testing.assert_close(result["distill_loss"], expected)


# Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "student, teacher, kwargs, message",
    [
        (vit, lambda: vit(num_classes=5), {}, "teacher VisionTransformer has 5 classes and the student 10"),
        (vit, lambda: vit(in_chans=1), {}, "teacher takes images of 1 channels and the student of 3"),
        (lambda: vit(in_chans=4), vit, {}, "teacher takes images of 3 channels and the student of 4"),
        (vit, vit, dict(distill_type="warm"), "distill_type is 'warm'; it must be one of 'soft', 'hard', 'none'"),
        (lambda: build("vit_resnas", patch_head=True), vit, {}, "patch_head is True with a teacher"),
        (vit, vit, dict(task_loss_weight=-0.5), "task_loss_weight is -0.5; .* from 0 up"),
        (
            vit,
            vit,
            dict(task_loss_weight=1.5),
            "task_loss_weight is 1.5; above 1, distill_loss_weight must be given too",
        ),
        (vit, vit, dict(distill_loss_weight=-1), "distill_loss_weight is -1; .* from 0 up"),
        (vit, vit, dict(tokens_weight=float("nan")), "tokens_weight is nan; .* from 0 up"),
        (vit, vit, dict(temperature=0), "temperature is 0; .* above 0"),
        (vit, vit, dict(temperature=-1.0), "temperature is -1.0; .* above 0"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_does_not_fit_gets_one_sentence(
    student: Callable[[], nn.Module], teacher: Callable[[], nn.Module], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        DistillationTask(student(), teacher(), **kwargs)
    assert "\n" not in str(caught.value)


class Plain(nn.Module):
    """A model of which nothing is known but classes."""

    num_classes = CLASSES

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 64 * 64, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.flatten(1))


@pytest.mark.parametrize("plain_student", [True, False])
def test_any_model_but_for_tokens(plain_student: bool) -> None:
    models = (Plain(), vit()) if plain_student else (vit(), Plain())
    assert make(*models)(*batch())["loss"].isfinite()
    with pytest.raises(
        ValueError, match="tokens_weight is above 0; the (student|teacher) Plain does not offer its tokens"
    ):
        DistillationTask(*models, tokens_weight=1.0)


# In a training loop -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distill_type", ["soft", "hard"])
def test_training_lowers_every_part(distill_type: str) -> None:
    teacher = vit(embed_dim=24)
    images, _ = batch(torch.float32)
    target = teacher.eval()(images).argmax(1)
    task = DistillationTask(vit(), teacher, distill_type=distill_type, tokens_weight=1.0).train()
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt="adamw", lr=3e-3, weight_decay=0.01)
    history = []
    for _ in range(8):
        result = task(images, target)
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
        history.append([result[part].item() for part in PARTS])
    assert all(after < 0.95 * before for before, after in zip(history[0], history[-1]))


@pytest.mark.parametrize("name", ["vit", "deit", "as_vit", "vit_resnas", "scaled_pit", "castled", "swin"])
def test_groups_of_the_optimizer_are_the_students(name: str) -> None:
    student = FAMILIES[name]()
    task = DistillationTask(student, vit(embed_dim=24), tokens_weight=1.0)
    groups = []
    for model in (student, task.get_trainable_module()):
        optimizer = create_optimizer_v2(model, opt="adamw", lr=0.1, weight_decay=0.05, layer_decay=0.7)
        settings = [(group["params"], (group["lr_scale"], group["weight_decay"])) for group in optimizer.param_groups]
        groups.append({parameter: setting for parameters, setting in settings for parameter in parameters})
    bare, wrapped = groups
    assert all(wrapped[parameter] == bare[parameter] for parameter in student.parameters())
    assert len({scale for scale, _ in bare.values()}) > 3
    kept = [parameter for key, parameter in student.named_parameters() if key in student.no_weight_decay()]
    assert all(wrapped[parameter][1] == 0 for parameter in kept)
    maps = {key: each for key, each in task.get_trainable_module().named_parameters() if "projection" in key}
    assert len(wrapped) == len(bare) + len(maps) > len(bare)
    assert all(wrapped[each] == (1.0, 0.0 if key.endswith("bias") else 0.05) for key, each in maps.items())


@pytest.mark.parametrize("tokens_weight", [0.0, 1.0])
def test_state_round_trip(tokens_weight: float) -> None:
    teacher = vit(embed_dim=24).double()
    first, second = (make(vit(), teacher, tokens_weight=tokens_weight) for _ in range(2))
    losses = [task(*(data := batch()))["loss"] for task in (first, second)]
    assert losses[0] != losses[1]
    state = copy.deepcopy(first.get_checkpoint_state())
    assert set(state["state_dict"]) == set(vit().state_dict())
    assert ("task_state" in state) == bool(tokens_weight)
    second.load_checkpoint_state(state["state_dict"], state.get("task_state"))
    assert torch.equal(first(*data)["loss"], second(*data)["loss"])


def test_state_without_maps() -> None:
    """Equal widths have none, and a run that goes on without tokens has no use for those of its checkpoint."""
    teacher = vit()
    assert make(vit(), teacher, tokens_weight=1.0).get_task_state() == {}
    task = make(vit(), teacher)
    task.load_task_state(make(vit(embed_dim=8), teacher, tokens_weight=1.0).get_task_state())
    task.load_task_state(None)


@pytest.mark.parametrize("tokens_weight", [0.0, 1.0])
def test_student_of_a_task(tokens_weight: float) -> None:
    student = vit()
    task = make(student, vit(embed_dim=24), tokens_weight=tokens_weight)
    assert task.get_eval_model() is student
    own = list(student.parameters())
    maps = [each for key, each in task.get_trainable_module().named_parameters() if "projection" in key]
    assert len(maps) == (8 if tokens_weight else 0)
    for exclude_head, expected in ((False, own + maps), (True, own[:-2] + maps)):
        clipped = list(task.get_clip_parameters(exclude_head=exclude_head))
        assert list(map(id, clipped)) == list(map(id, expected))


@pytest.mark.parametrize("tokens_weight", [0.0, 1.0])
def test_ema(tokens_weight: float) -> None:
    student = vit()
    task = make(student, vit(embed_dim=24), tokens_weight=tokens_weight)
    task.setup_ema(decay=0.75)
    before = copy.deepcopy(student.state_dict())
    gradients(task, task.get_trainable_module())
    torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.1).step()
    task.update_ema()
    averaged = unwrap_model(task.get_eval_model(ema=True))
    assert type(averaged) is type(student)
    after = student.state_dict()
    expected = {key: 0.75 * value + 0.25 * after[key] for key, value in before.items()}
    torch.testing.assert_close(dict(averaged.state_dict()), expected)
    assert task.get_eval_model(ema=True)(batch()[0]).shape == (BATCH, CLASSES)
    state = task.get_checkpoint_state(ema=True)
    assert set(state) == {"state_dict_ema"}  # the average of the maps is of no use
    assert set(state["state_dict_ema"]) == set(before)
    task.load_checkpoint_state(state["state_dict_ema"], state.get("task_state_ema"), ema=True)


@pytest.mark.parametrize("tokens_weight", [0.0, 1.0])
def test_compiled(tokens_weight: float) -> None:
    student, teacher = FAMILIES["deit"](depth=2), vit(depth=2, embed_dim=24)
    task = make(student, teacher, tokens_weight=tokens_weight)
    expected = gradients(task, student)
    trained, state = task.get_trainable_module(), task.get_checkpoint_state()
    task.setup_ema()
    graphs = []

    def eager(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(module)
        return module.forward

    compiled = task.compile(backend=eager)
    assert task.get_trainable_module() is not trained
    assert task.get_eval_model() is compiled
    torch.testing.assert_close(gradients(task, student), expected, rtol=1e-9, atol=1e-12)
    assert len(graphs) == 2  # the student and the teacher, each in one piece
    images, _ = batch()
    torch.testing.assert_close(compiled.eval()(images), student.eval()(images))
    assert unwrap_model(task.compile_ema(backend="eager"))(images).shape == (BATCH, CLASSES)
    again = task.get_checkpoint_state()
    assert {key: set(value) for key, value in again.items()} == {key: set(value) for key, value in state.items()}
    task.load_checkpoint_state(again["state_dict"], again.get("task_state"))
    assert len(list(task.get_clip_parameters())) == len(list(trained.parameters()))
    task.update_ema()


@pytest.fixture
def group() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("distill_type", ["soft", "hard", "none"])
@pytest.mark.parametrize("tokens_weight", [0.0, 1.0])
@pytest.mark.parametrize("ours", ["vit", "vit_resnas_distilled", "deit"])
@pytest.mark.usefixtures("group")
@pytest.mark.filterwarnings("ignore:Grad strides do not match bucket view strides")
def test_shared_between_processes(ours: str, tokens_weight: float, distill_type: str) -> None:
    student = FAMILIES[ours]()
    task = make(student, FAMILIES["resnet"](), tokens_weight=tokens_weight, distill_type=distill_type)
    expected = gradients(task, task.get_trainable_module())
    trained = task.get_trainable_module()
    task.prepare_distributed()
    for _ in range(2):  # the second one fails where the first has left a parameter without gradient
        torch.testing.assert_close(gradients(task, trained), expected, rtol=1e-9, atol=1e-12)
    with task.no_sync():
        gradients(task, trained)
    assert unwrap_model(task.get_eval_model()) is student
    assert set(task.get_checkpoint_state()["state_dict"]) == set(student.state_dict())
    assert len(list(task.get_clip_parameters())) == len(list(trained.parameters()))


@pytest.mark.parametrize("ours, theirs", [("vit", "vit_patch8"), ("vit_patch8", "deit"), ("vit_resnas", "convnext")])
def test_bfloat16(ours: str, theirs: str) -> None:
    task = DistillationTask(FAMILIES[ours](), FAMILIES[theirs](), tokens_weight=1.0).train()
    images, target = batch(torch.float32)
    expected = task(images, target)["loss"].item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = task(images, target)["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=0.1)
    assert all(parameter.grad.isfinite().all() for parameter in task.get_trainable_module().parameters())
