"""Progressive tokenization on As-ViT and on timm's plain ViTs."""

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from timm.utils import ModelEmaV3

from asvit_plugin import Phase, ProgressiveTokenization

AS_VIT = ("as_vit", dict(genotype="4,2,2|2,1,2|2,1,2|2,1,2|16,16", num_classes=5))
PLAIN_VITS = [
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_xsmall_patch16_clip_224",
    "vit_base_patch16_siglip_224",
]
PATCH = {"scaled_vit": dict(patch_size=16, num_heads=2, head_dim=8)}
REFUSED = {
    "swin_tiny_patch4_window7_224": "relative positions",
    "beit_base_patch16_224": "relative positions",
    "vit_relpos_small_patch16_224": "relative positions",
    "samvit_base_patch16_224": "relative positions",
    "vit_small_r26_s32_224": "HybridEmbed",
    "eva02_tiny_patch14_224": "rotary positions",
    "pit_ti_224": "no patch embedding",
    "resnet18": "no patch embedding",
}


def make(name: str = AS_VIT[0], **kwargs: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **(AS_VIT[1] if name == AS_VIT[0] else {}), **kwargs)


def test_default_phases_are_the_papers() -> None:
    schedule = ProgressiveTokenization(make())
    assert [phase.stride for phase in schedule.phases] == [16, 8, 4]
    assert [phase.dilation for phase in schedule.phases] == [5, 2, 1]  # the paper's figure, K1 = 4
    assert [schedule.phase_at(epoch / 300).stride for epoch in (0, 79, 80, 131, 132, 299, 300)] == [
        *(16, 16, 8, 8, 4, 4, 4)
    ]


def test_larger_kernels_dilate_less() -> None:
    model = timm.create_model("as_vit_large", device="meta")
    assert [phase.dilation for phase in ProgressiveTokenization(model).phases] == [2, 1, 1]


@pytest.mark.parametrize(
    "progress, grids",
    [(0.0, [(8, 8), (4, 4), (2, 2)]), (0.3, [(16, 16), (8, 8), (4, 4)]), (1.0, [(32, 32), (16, 16), (8, 8)])],
)
def test_as_vit_grids_follow_the_phase(progress: float, grids: list[tuple[int, int]]) -> None:
    model = make(img_size=128, features_only=True).eval()
    ProgressiveTokenization(model).step(progress)
    assert [tuple(feature.shape[2:]) for feature in model(torch.zeros(1, 3, 128, 128))][:3] == grids


def test_as_vit_at_224_pads_the_image_and_crops_its_features() -> None:
    model = make().eval()
    schedule = ProgressiveTokenization(model)
    sides = []
    for progress in (0.0, 0.3, 1.0):
        schedule.step(progress)
        sides.append(model.forward_features(torch.zeros(1, 3, 224, 224)).shape[1])
    assert sides == [2, 4, 7]


@pytest.mark.parametrize("name", PLAIN_VITS)
def test_plain_vits_see_fewer_tokens_and_end_as_they_were(name: str) -> None:
    model = make(name, img_size=112).eval()
    image = torch.randn(1, 3, 112, 112)
    patch = model.patch_embed.patch_size[0]
    with torch.no_grad():
        before = model(image)
        schedule = ProgressiveTokenization(model)
        tokens = []
        for progress in (0.0, 0.3, 1.0):
            schedule.step(progress)
            tokens.append(model.forward_features(image).shape[1] - model.num_prefix_tokens)
        assert tokens == [math.ceil(112 / (factor * patch)) ** 2 for factor in (4, 2, 1)]
        assert torch.equal(model(image), before)


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"cannot drive {name} .*{REFUSED[name]}"):
        ProgressiveTokenization(timm.create_model(name, device="meta"))


def test_border_is_seen_in_coarse_phases() -> None:
    model = make("vit_tiny_patch16_224").eval()
    ProgressiveTokenization(model).step(0.0)
    image = torch.zeros(1, 3, 224, 224)
    edge = image.clone()
    edge[..., -8:] = 1.0
    assert not torch.equal(model(image), model(edge))


def test_same_progress_twice_changes_nothing_and_any_order_is_fine() -> None:
    model = make(img_size=64).eval()
    schedule = ProgressiveTokenization(model)
    image = torch.randn(2, 3, 64, 64)
    outputs = {}
    with torch.no_grad():
        for progress in (0.0, 0.3, 1.0, 0.3, 0.3, 0.0):
            assert schedule.step(progress) == schedule.phase_at(progress)
            output = model(image)
            assert torch.equal(output, outputs.setdefault(progress, output))
    assert not torch.equal(outputs[0.0], outputs[1.0])


def test_a_new_schedule_on_a_resumed_model_lands_in_the_same_state() -> None:
    model, resumed = make(img_size=64).eval(), make(img_size=64).eval()
    ProgressiveTokenization(model).step(0.3)
    resumed.load_state_dict(model.state_dict())
    ProgressiveTokenization(resumed).step(0.3)
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(image), resumed(image))


def test_making_a_schedule_changes_nothing_yet() -> None:
    model = make(img_size=64).eval()
    image = torch.randn(1, 3, 64, 64)
    before = model(image)
    ProgressiveTokenization(model)
    assert torch.equal(model(image), before)


def state(model: torch.nn.Module) -> tuple:
    """All of a plain ViT that a phase changes."""
    embed = model.patch_embed
    names = ("flatten", "output_fmt", "strict_img_size", "dynamic_img_pad", "patch_size")
    return (
        model.dynamic_img_size,
        type(embed),
        embed.proj.stride,
        embed.proj.dilation,
        *map(embed.__getattribute__, names),
    )


@pytest.mark.parametrize("phases", [None, [(0.3, 32), (0.6, 24, 3), (1, 16)]], ids=["taken", "refused"])
def test_a_plain_vit_is_left_as_it_was(phases: list | None) -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1, device="meta")
    before = state(model)
    if phases is None:
        schedule = ProgressiveTokenization(model)
        schedule.phase_macs()
        with pytest.raises(ValueError, match="input is 'big'"):
            schedule.phase_macs("big")
    else:
        with pytest.raises(ValueError, match="phase of stride 24 has dilation 3"):
            ProgressiveTokenization(model, phases)
    assert state(model) == before


def test_ema_copies_follow() -> None:
    model = make(img_size=64).eval()
    ema = ModelEmaV3(model, decay=0.9)
    bystander = copy.deepcopy(model)
    ProgressiveTokenization(model, copies=[ema.module]).step(0.0)
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(image), ema.module(image))
    assert not torch.equal(model(image), bystander(image))


def test_a_copy_needs_no_list() -> None:
    model, copied = make(img_size=64), make(img_size=64)
    ProgressiveTokenization(model, copies=copied).step(0.0)
    assert copied.patch_embed.stride == model.patch_embed.stride == 16


@pytest.mark.parametrize(
    "copies, message",
    [
        (lambda: 1, "copies is a int; it must be a model or a list of models"),
        (lambda: [None], "copies holds a NoneType; it must be a model or a list of models"),
        (
            lambda: [make("vit_base_patch32_224", depth=1, device="meta")],
            "copies holds a model of stride 32 and 32-pixel kernels; they must be .* 16 and 16",
        ),
    ],
    ids=["number", "none", "stride"],
)
def test_copies_that_cannot_follow_are_refused_at_once(copies: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProgressiveTokenization(make("vit_tiny_patch16_224", depth=1, device="meta"), copies=copies())


def test_compiled_and_parallel_models_are_seen_through(tmp_path) -> None:
    model = make(img_size=64).eval()
    compiled = torch.compile(model, backend="eager")
    image = torch.randn(1, 3, 64, 64)
    schedule = ProgressiveTokenization(compiled)
    with torch.no_grad():
        for progress in (0.0, 1.0):
            schedule.step(progress)
            assert torch.equal(compiled(image), model(image))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(make(img_size=64))
        ProgressiveTokenization(parallel).step(0.0)
        assert parallel.module.patch_embed.proj.stride == (16, 16)
    finally:
        torch.distributed.destroy_process_group()


def test_every_phase_trains_the_same_parameters() -> None:
    model = make(img_size=64)
    schedule = ProgressiveTokenization(model)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for progress in (0.0, 0.3, 1.0):
        schedule.step(progress)
        model.zero_grad()
        model(torch.randn(2, 3, 64, 64)).sum().backward()
        assert {name: p.shape for name, p in model.named_parameters() if p.grad is not None} == shapes


def test_saved_macs_by_hand_and_the_model_stays_in_its_phase() -> None:
    model = timm.create_model("as_vit_small", device="meta")
    schedule = ProgressiveTokenization(model)
    schedule.step(0.3)
    counts = schedule.phase_macs()
    assert counts[-1] == 5_132_134_656
    assert counts[0] < counts[1] < counts[2]
    expected = 1 - (80 * counts[0] + 52 * counts[1] + 168 * counts[2]) / (300 * counts[2])
    assert schedule.saved_fraction() == pytest.approx(expected)
    assert 0.37 < expected < 0.39
    assert model.patch_embed.stride == 8


def test_saved_macs_of_a_vit_that_pools_by_attention() -> None:
    schedule = ProgressiveTokenization(timm.create_model("vit_base_patch16_siglip_224", device="meta"))
    assert 0.3 < schedule.saved_fraction() < 0.4


def test_resizing_in_a_phase_keeps_the_phase() -> None:
    model = make(img_size=64).eval()
    schedule = ProgressiveTokenization(model)
    schedule.step(0.0)
    model.set_input_size(128)
    assert model.patch_embed.proj.stride == (16, 16)
    assert model.pos_embed.shape[1:3] == (32, 32)
    schedule.step(1.0)
    assert model.forward_features(torch.zeros(1, 3, 128, 128)).shape[1] == 4


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "scaled_vit"])
def test_a_plain_vit_resized_in_a_phase_ends_as_one_resized_before(name: str) -> None:
    model, before = (make(name, depth=2, img_size=64, **PATCH.get(name, {})).eval() for _ in range(2))
    schedule = ProgressiveTokenization(model)
    schedule.step(0.0)
    model.set_input_size((128, 128))
    assert model.patch_embed.patch_size == (64, 64)
    assert copy.deepcopy(model).forward_features(torch.zeros(1, 3, 128, 128)).shape[1] == 4 + model.num_prefix_tokens
    with pytest.raises(ValueError, match=r"patch_size is .*32.*; it must stay \(16, 16\) while .* the stride at 64"):
        model.set_input_size((128, 128), patch_size=32)
    schedule.step(1.0)
    before.set_input_size((128, 128))
    assert model.patch_embed.grid_size == before.patch_embed.grid_size == (8, 8)
    image = torch.randn(1, 3, 128, 128)
    assert torch.equal(model.pos_embed, before.pos_embed)
    assert torch.equal(model(image), before(image))
    ProgressiveTokenization(model).step(0.0)  # a phase is no obstacle to the next schedule
    assert ProgressiveTokenization(model).tokenizers[0].base_stride == 16


def test_own_phases() -> None:
    schedule = ProgressiveTokenization(make(), phases=[(np.float32(0.5), np.int64(8), 1), Phase(0.75, 6, 1), [1, 4]])
    assert {type(value) for phase in schedule.phases for value in (phase.stride, phase.dilation)} == {int}
    assert schedule.phases == [Phase(0.5, 8, 1), Phase(0.75, 6, 1), Phase(1.0, 4, 1)]


@pytest.mark.parametrize(
    "phases, message",
    [
        ([], "must rise"),
        ([(0.5, 8)], "exactly 1"),
        ([(0.5, 8), (0.4, 4), (1.0, 4)], "must rise"),
        ([(0.0, 8), (1.0, 4)], "from above 0"),
        ([(0.5, 8), (1.2, 4)], "exactly 1"),
        ([(float("nan"), 8), (1.0, 4)], "between 0 and 1"),
        ([("half", 8), (1.0, 4)], "between 0 and 1"),
        ([(0.5, 0), (1.0, 4)], "stride 0"),
        ([(0.5, 8, 0), (1.0, 4)], "dilation 0"),
        ([(0.5, 8.0), (1.0, 4)], "stride 8.0"),
        ([(0.5, "8"), (1.0, 4)], "stride '8'"),
        ([(0.5, True), (1.0, 4)], "stride True"),
        ([(0.5, 8, True), (1.0, 4)], "dilation True"),
        ([(0.5, 8), (True, 4)], "ends at True"),
        ([(0.5, 8, 1, 1), (1.0, 4)], "a phase must be"),
        ([0.5, 1.0], "a phase must be"),
        ([(0.5, 4), (1.0, 8)], "must be the model's own: 4 and 1"),
    ],
)
def test_bad_phases_get_one_sentence(phases: list, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ProgressiveTokenization(make(), phases=phases)
    assert "\n" not in str(caught.value)


def test_a_dilation_that_would_lose_the_border_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="dilation 5, whose kernel spans 76 pixels.*at most 4"):
        ProgressiveTokenization(make("vit_tiny_patch16_224"), phases=[(0.5, 64, 5), (1.0, 16)])


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan")])
def test_progress_outside_the_unit_interval_is_refused(progress: float) -> None:
    with pytest.raises(ValueError, match="progress is .* between 0 and 1"):
        ProgressiveTokenization(make()).step(progress)
