"""Video ViTs: what inflation keeps of an image model exactly, shapes at run time, and what timm users expect."""

import copy
from typing import Any

import pytest
import timm
import torch
from doc_blocks import run_block
from timm.models import group_parameters
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from torch import nn

import asvit_plugin
from asvit_plugin.costs import macs, params
from asvit_plugin.models.scaled_video_vit import ScaledVideoViT
from asvit_plugin.models.video_inflation import INFLATIONS, inflate

SHAPE: dict[str, Any] = dict(depth=2, num_heads=2, head_dim=8, img_size=32, patch_size=8, num_classes=5)
NO_PREFIX = dict(class_token=False, global_pool="avg")
EXACT = 1e-12  # in float64


def small(**kwargs: Any) -> ScaledVideoViT:
    return ScaledVideoViT(num_frames=4, tubelet_size=2, **{**SHAPE, **kwargs}).eval()


def image_model(**kwargs: Any) -> nn.Module:
    """A small image model in float64 whose biases, norms and position tables are not what they begin as."""
    model = timm.create_model("scaled_vit", **{**SHAPE, **kwargs}).double().eval()
    for parameter in model.parameters():
        nn.init.trunc_normal_(parameter, mean=parameter.mean().item(), std=0.2)
    return model


def repeated(images: torch.Tensor, frames: int) -> torch.Tensor:
    return images.unsqueeze(2).expand(-1, -1, frames, -1, -1)


# Inflation ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", INFLATIONS)
@pytest.mark.parametrize(
    "kwargs",
    [
        dict(),
        dict(reg_tokens=2, no_embed_class=True, init_values=0.1, qk_norm=True),
        dict(pre_norm=True, global_pool="avg", fc_norm=False),
        dict(NO_PREFIX, num_heads=(1, 2), embed_dim=24, mlp_ratio=(1, 2.5)),
        dict(class_token=False, global_pool="map"),
        dict(pos_embed="none"),
    ],
    ids=lambda kwargs: "-".join(kwargs) or "plain",
)
def test_a_clip_of_one_tubelet_gives_the_image_models_output(kwargs: dict[str, Any], mode: str) -> None:
    image = image_model(**kwargs)
    video = inflate(image, num_frames=4, tubelet_size=4, mode=mode)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert (video(repeated(x, 4)) - image(x)).abs().max() < EXACT


@pytest.mark.parametrize("mode", INFLATIONS)
@pytest.mark.parametrize("tubelet_size", [1, 2, 3])
@pytest.mark.parametrize("pool", ["avg", "max", "map"])
def test_without_prefix_tokens_any_number_of_tubelets_does(pool: str, tubelet_size: int, mode: str) -> None:
    image = image_model(class_token=False, global_pool=pool)
    video = inflate(image, num_frames=6, tubelet_size=tubelet_size, mode=mode)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert (video(repeated(x, 6)) - image(x)).abs().max() < EXACT


def test_the_number_of_frames_and_the_image_size_may_differ_at_run_time_too() -> None:
    image = image_model(**NO_PREFIX)
    video = inflate(image, num_frames=4, tubelet_size=2)
    x = torch.randn(2, 3, 45, 60, dtype=torch.float64)  # padded in height, width and time
    for frames in (1, 5, 8):
        assert (video(repeated(x, frames)) - image(x)).abs().max() < EXACT


def test_a_prefix_token_loses_share_with_every_further_tubelet() -> None:
    image = image_model()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    errors = [(inflate(image, 8, 8 // n)(repeated(x, 8)) - image(x)).abs().max().item() for n in (1, 2, 8)]
    assert errors[0] < EXACT
    assert 1e-4 < errors[1] < errors[2]


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "vit_tiny_patch16_224", "deit3_small_patch16_224"])
def test_inflates_timms_own_models(name: str) -> None:
    image = timm.create_model(name, img_size=64, num_classes=7).double().eval()
    video = inflate(image, num_frames=2, tubelet_size=2)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert (video(repeated(x, 2)) - image(x)).abs().max() < EXACT
    with pytest.raises(ValueError, match="frames of the clips is 3; this model takes 2 only"):
        video(repeated(x, 3))


def test_inflation_modes_and_what_is_left_of_the_image_model() -> None:
    image = timm.create_model("scaled_vit", **SHAPE)
    image.patch_embed.proj.weight.requires_grad_(False)
    before = copy.deepcopy(image.state_dict())
    average, central = (inflate(image, 6, 3, mode).patch_embed.proj.weight for mode in INFLATIONS)
    assert torch.allclose(average.sum(2), image.patch_embed.proj.weight)
    assert torch.equal(central[:, :, 1], image.patch_embed.proj.weight)
    assert central[:, :, [0, 2]].count_nonzero() == 0
    assert not average.requires_grad
    assert type(image) is asvit_plugin.ScaledViT
    assert all(torch.equal(tensor, before[name]) for name, tensor in image.state_dict().items())
    assert not hasattr(inflate(image, 6, 3), "pretrained_cfg")


def test_an_inflated_model_fits_one_built_by_its_shape() -> None:
    video = inflate(timm.create_model("scaled_vit", **SHAPE), num_frames=4, tubelet_size=2).eval()
    built = small()
    built.load_state_dict(video.state_dict())
    x = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(built(x), video(x))


@pytest.mark.parametrize(
    "name, kwargs, message",
    [
        ("scaled_vit", dict(mode="mean"), "mode is 'mean'; it must be one of 'average', 'central'"),
        ("scaled_vit", dict(tubelet_size=3), "num_frames is 16; it must be a multiple of tubelet_size, 3"),
        ("scaled_vit", dict(num_frames=0), "num_frames is 0; it must be a whole number of at least 1"),
        ("deit_tiny_distilled_patch16_224", dict(), "image_model is a VisionTransformerDistilled with a PatchEmbed"),
        ("scaled_pit", dict(), "image_model is a ScaledPiT with a PatchConv; it must be a ScaledViT or timm's"),
        ("resnet18", dict(), "image_model is a ResNet; it must be"),
    ],
)
def test_what_cannot_be_inflated_gets_one_sentence(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        inflate(timm.create_model(name, device="meta") if "resnet" not in name else timm.create_model(name), **kwargs)
    assert "\n" not in str(caught.value)


def test_a_video_model_is_not_inflated_again() -> None:
    with pytest.raises(ValueError, match="image_model is a ScaledVideoViT with a TubeletEmbed"):
        inflate(small())


# Shapes and costs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, grid",
    [((4, 32, 32), (2, 4, 4)), ((1, 32, 32), (1, 4, 4)), ((7, 40, 25), (4, 5, 4)), ((2, 8, 3), (1, 1, 1))],
)
def test_takes_clips_of_any_size(size: tuple[int, ...], grid: tuple[int, ...]) -> None:
    model, x = small(), torch.randn(2, 3, *size)
    assert model(x).shape == (2, 5)
    features, outputs = model.forward_intermediates(x)
    assert features.shape == (2, 1 + grid[0] * grid[1] * grid[2], 16)
    assert torch.equal(features, model.forward_features(x))
    assert [tuple(output.shape) for output in outputs] == [(2, 16, *grid)] * 2


def test_time_and_place_matter_and_padding_repeats_the_last_frame() -> None:
    model, x = small(), torch.randn(1, 3, 5, 32, 32)
    for changed in (x.flip(2), x.flip(3)):
        assert not torch.allclose(model(changed), model(x))
    assert torch.equal(model(torch.cat([x, x[:, :, -1:]], 2)), model(x))


def test_sizes_that_do_not_divide_are_refused_without_padding() -> None:
    model = small(dynamic_img_pad=False)
    for size, message in [((5, 32, 32), "frames .* 5"), ((4, 33, 32), "height .* 33"), ((4, 32, 36), "width .* 36")]:
        with pytest.raises(ValueError, match=f"{message}; without dynamic_img_pad it must divide by"):
            model(torch.randn(1, 3, *size))
    assert model(torch.randn(1, 3, 6, 40, 32)).shape == (1, 5)


@pytest.mark.parametrize("shape", [(3, 4, 32, 32), (2, 3, 32, 32), (1, 1, 4, 32, 32), (1, 3, 0, 32, 32)])
def test_what_is_no_clip_gets_one_sentence(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"the input has shape .*; clips are \(B, 3, T, H, W\), T at least 1"):
        small()(torch.randn(shape))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(num_frames=5), "num_frames is 5; it must be a multiple of tubelet_size, 2"),
        (dict(tubelet_size=0), "tubelet_size is 0; it must be a whole number of at least 1"),
        (dict(num_frames=2.0), r"num_frames is 2\.0"),
        (dict(depth=0), "depth is 0"),
        (dict(num_heads=[1, 2]), "embed_dim must be given"),
    ],
)
def test_bad_arguments_get_one_sentence(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScaledVideoViT(**{**SHAPE, **kwargs})


@pytest.mark.parametrize("frames, tubelet_size", [(8, 1), (8, 2), (8, 8)])
def test_counts_follow_the_tokens(frames: int, tubelet_size: int) -> None:
    model = ScaledVideoViT(frames, tubelet_size, **SHAPE, device="meta")
    width, patches, pixels = 16, 16 * frames // tubelet_size, 3 * tubelet_size * 8 * 8
    tokens = patches + 1
    blocks = 2 * (12 * tokens * width**2 + 2 * tokens**2 * width)
    assert (
        macs(model, torch.empty(1, 3, frames, 32, 32, device="meta")) == blocks + patches * pixels * width + 5 * width
    )
    image = timm.create_model("scaled_vit", **SHAPE, device="meta")
    assert params(model) == params(image) + width * (pixels - 3 * 8 * 8) + width * frames // tubelet_size


# What timm users expect -----------------------------------------------------------------------------------------------


def test_is_not_in_timms_registry() -> None:
    assert not timm.list_models("*video*")


def test_heads_pools_and_features() -> None:
    model, x = small(), torch.randn(2, 3, 4, 32, 32)
    features = model.forward_features(x)
    assert torch.equal(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (2, 16)
    model.reset_classifier(9, global_pool="avg")
    assert model(x).shape == (2, 9)
    model.reset_classifier(0)
    assert model(x).shape == (2, 16)


def test_intermediates_as_timm_gives_them() -> None:
    model, x = small(reg_tokens=1), torch.randn(2, 3, 4, 32, 32)
    ((maps, prefix),) = model.forward_intermediates(
        x, [0], return_prefix_tokens=True, norm=True, stop_early=True, intermediates_only=True
    )
    assert (maps.shape, prefix.shape) == ((2, 16, 2, 4, 4), (2, 2, 16))
    (tokens,) = model.get_intermediate_layers(x, n=[0], norm=True)
    assert torch.equal(tokens, maps.flatten(2).transpose(1, 2))
    with pytest.raises(ValueError, match="output_fmt is 'NCHW'; it must be one of 'NCTHW', 'NLC'"):
        model.forward_intermediates(x, output_fmt="NCHW")


def test_parameter_groups() -> None:
    model = small()
    assert model.no_weight_decay() == {"cls_token", "pos_embed", "time_embed"}
    assert small(pos_embed="none").no_weight_decay() == {"cls_token"}
    layers = group_parameters(model, model.group_matcher())
    assert {"time_embed", "pos_embed", "patch_embed.proj.weight"} <= set(layers[0])
    groups = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.1, layer_decay=0.5).param_groups
    own = [group for group in groups if any(parameter is model.time_embed for parameter in group["params"])]
    assert [group["weight_decay"] for group in own] == [0.0]


def test_nominal_size_can_change() -> None:
    model = small()
    x = torch.randn(1, 3, 8, 64, 48)
    expected = model(x)
    model.set_input_size(img_size=(64, 48), num_frames=8)
    assert (model.time_embed.shape[1], model.patch_embed.grid_size) == (4, (8, 6))
    assert torch.allclose(model(x), expected, atol=1e-6)
    model.set_input_size(patch_size=16)
    assert model.patch_embed.proj.weight.shape == (16, 3, 2, 16, 16)
    assert model.forward_features(x).shape[1] == 1 + 4 * 4 * 3
    with pytest.raises(ValueError, match="num_frames is 7"):
        model.set_input_size(num_frames=7)


def test_initialises_itself() -> None:
    assert small().time_embed.std() > 0.01
    model = small(device="meta").to_empty(device="cpu")
    model.init_weights()
    assert model(torch.randn(1, 3, 4, 32, 32)).isfinite().all()
    assert 0.01 < model.time_embed.std() < 0.03


@pytest.mark.parametrize("method", ["forward", "forward_intermediates"])
def test_checkpointing_gives_the_same_gradients(method: str) -> None:
    model, x = small(num_classes=0, global_pool="", fc_norm=False).train(), torch.randn(2, 3, 4, 32, 32)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        output = getattr(model, method)(x)
        (output if method == "forward" else output[0]).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.allclose(*pair) for pair in zip(*gradients))


def test_copies_and_state_dicts() -> None:
    model, x = small(), torch.randn(1, 3, 4, 32, 32)
    other = small()
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(model.state_dict())
    for twin in (other, copy.deepcopy(model), copy.deepcopy(inflate(image_model(), 4)).float()):
        assert isinstance(twin, VisionTransformer)
        assert twin(x).shape == (1, 5)
    assert torch.equal(other(x), model(x))


def test_half_precision() -> None:
    x = torch.randn(1, 3, 5, 40, 30, dtype=torch.bfloat16)
    assert small().bfloat16()(x).dtype == torch.bfloat16


def test_compiles_as_one_graph() -> None:
    model, x = small(), torch.randn(2, 3, 5, 40, 30)  # every table is resampled, every side padded
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), model(x), atol=1e-6)


def test_exports_for_clips_of_any_size() -> None:
    model, auto = small(), torch.export.Dim.AUTO
    sizes = ({0: auto, 2: auto, 3: auto, 4: auto},)
    exported = torch.export.export(model, (torch.randn(2, 3, 5, 40, 33),), dynamic_shapes=sizes).module()
    for size in ((2, 3, 5, 40, 33), (3, 3, 8, 64, 48)):
        x = torch.randn(size)
        assert torch.allclose(exported(x), model(x), atol=1e-6)


def test_castles_and_is_no_progressive_tokenizer() -> None:
    model, x = small(), torch.randn(1, 3, 4, 32, 32)
    expected = model(x)
    assert torch.equal(asvit_plugin.castle(model)(x), expected)
    with pytest.raises(ValueError, match="its patch embedding is a TubeletEmbed"):
        asvit_plugin.ProgressiveTokenization(model)


def test_docs_run() -> None:
    left = run_block("video.md", "The model")
    assert left["maps"][-1].shape == (2, 32, 4, 4, 4)
    model = run_block("video.md", "From the weights of an image model")["model"]
    assert model(torch.randn(1, 3, 4, 64, 64)).shape == (1, 40)
