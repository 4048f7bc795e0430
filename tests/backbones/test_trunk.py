"""The trunk: timm's maps as they are, at strides that detectors can use, for images of any size."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from trunks import PLAIN, PYRAMIDS, TRUNKS, arguments, make_trunk, strides_of, without_gradient

import asvit_plugin
from asvit_plugin.backbones import FeatureTrunk

every_trunk = pytest.mark.parametrize("name", list(TRUNKS))


def whole_model(name: str, trunk: FeatureTrunk, **kwargs: Any) -> nn.Module:
    """timm's model, whole, with the weights of the trunk."""
    model = timm.create_model(name, **{**trunk.recipe.arguments, **kwargs}).eval()
    missing, unexpected = model.load_state_dict(trunk.model.state_dict(), strict=False)
    assert not unexpected
    assert all(key.startswith(("head", "norm", "fc", "conv_head", "classifier")) for key in missing)
    return model


@every_trunk
def test_maps_are_those_of_timm(name: str) -> None:
    trunk = make_trunk(name)
    side = 64 if trunk.alignment.unit == trunk.alignment.finest else 56
    x = torch.randn(2, 3, side, side)
    image = x if side == 64 else torch.randn(2, 3, 64, 64)
    aligned = trunk.alignment.align(image)
    if side == 64:
        assert aligned is image
    assert aligned.shape == x.shape
    expected = whole_model(name, trunk).forward_intermediates(
        aligned, indices=list(trunk.indices), intermediates_only=True
    )
    for stride, feature, own in zip(trunk.strides, expected, trunk.maps(image), strict=True):
        assert torch.equal(own[:, :, : feature.shape[2], : feature.shape[3]], feature)
        assert own.shape[2:] == (64 // stride, 64 // stride)


@pytest.mark.parametrize("name", list(PYRAMIDS))
def test_maps_are_those_of_features_only(name: str) -> None:
    trunk = make_trunk(name)
    getter = timm.create_model(name, features_only=True, out_indices=trunk.indices, **trunk.recipe.arguments).eval()
    # feature wrappers of timm's own models are the model with its parts renamed, in the same order
    getter.load_state_dict(dict(zip(getter.state_dict(), whole_state(name, trunk, getter), strict=True)))
    x = torch.randn(2, 3, 64, 64)
    for feature, own in zip(getter(trunk.alignment.align(x)), trunk.maps(x), strict=True):
        feature = feature.permute(0, 3, 1, 2) if name.startswith("swin") else feature  # timm's NHWC features
        assert torch.equal(own[:, :, : feature.shape[2], : feature.shape[3]], feature)


def whole_state(name: str, trunk: FeatureTrunk, getter: nn.Module) -> list[torch.Tensor]:
    own = trunk.model.state_dict()
    keys = [key.removeprefix("model.") for key in getter.state_dict()]
    if set(keys) == set(own):
        return [own[key] for key in keys]
    assert len(keys) == len(own)
    return list(own.values())


@every_trunk
def test_images_of_any_size(name: str) -> None:
    trunk = make_trunk(name)
    assert trunk.strides == strides_of(name)
    for height, width in ((64, 64), (122, 77), (45, 130)):
        maps = trunk.maps(torch.randn(1, 3, height, width))
        assert [tuple(each.shape) for each in maps] == [
            (1, channels, -(-height // stride), -(-width // stride))
            for channels, stride in zip(trunk.channels, trunk.strides)
        ]


@every_trunk
@pytest.mark.parametrize("height, width", [(72, 40), (40, 65), (122, 77)])
def test_maps_lie_where_those_of_timm_lie(name: str, height: int, width: int) -> None:
    """Not a pixel is moved at sizes that no stride divides; what has no token of its own repeats its neighbour."""
    trunk = make_trunk(name)
    x = torch.randn(1, 3, height, width)
    aligned = trunk.alignment.align(x)
    expected = trunk.model.forward_intermediates(aligned, indices=list(trunk.indices), intermediates_only=True)
    for feature, own in zip(expected, trunk.maps(x), strict=True):
        rows = torch.arange(own.shape[2]).clamp(max=feature.shape[2] - 1)
        columns = torch.arange(own.shape[3]).clamp(max=feature.shape[3] - 1)
        assert max(own.shape[2] - feature.shape[2], own.shape[3] - feature.shape[3]) <= 1
        assert torch.equal(own, feature[:, :, rows][..., columns])


@every_trunk
@pytest.mark.parametrize("norm", ["", "LN"])
def test_every_parameter_learns(name: str, norm: str) -> None:
    trunk = make_trunk(name, norm=norm).train()
    sum(each.square().sum() for each in trunk.maps(torch.randn(2, 3, 64, 64))).backward()
    assert without_gradient(trunk) == []


@every_trunk
def test_frozen_stages_compute_as_in_evaluation(name: str) -> None:
    trunk = make_trunk(name, frozen_stages=1, drop_path_rate=0.0)
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    trunk.train()
    frozen = [key for key, parameter in trunk.named_parameters() if not parameter.requires_grad]
    learning = [key for key, parameter in trunk.named_parameters() if parameter.requires_grad]
    assert frozen
    assert learning
    optimizer = torch.optim.SGD(trunk.parameters(), lr=0.1, weight_decay=0.1)
    sum(each.square().mean() for each in trunk.maps(torch.randn(2, 3, 64, 64))).backward()
    optimizer.step()
    after = trunk.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in frozen)
    assert without_gradient(trunk) == []
    for module in trunk.modules():
        own = [id(each) for each in module.parameters()]
        if own and not any(each.requires_grad for each in module.parameters()):
            assert not module.training
    assert trunk.training
    assert trunk.eval().training is False


def test_frozen_batch_norm_keeps_its_statistics() -> None:
    trunk = make_trunk("test_resnet", frozen_stages=2).train()
    before = {key: value.clone() for key, value in trunk.named_buffers()}
    trunk.maps(torch.randn(2, 3, 64, 64))
    changed = {key.split(".")[1] for key, value in trunk.named_buffers() if not torch.equal(value, before[key])}
    assert changed == {"layer3", "layer4"}


def test_dropout_and_stochastic_depth_rest_in_frozen_stages() -> None:
    kwargs = dict(frozen_stages=2, drop_path_rate=0.5, model_kwargs=dict(PYRAMIDS["as_vit"], pos_drop_rate=0.5))
    trunk = FeatureTrunk("as_vit", **kwargs).train()
    x = torch.randn(4, 3, 64, 64)
    first, second = trunk.maps(x), trunk.maps(x)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[3], second[3])


def test_everything_frozen() -> None:
    trunk = make_trunk("as_vit", frozen_stages=4).train()
    assert not any(parameter.requires_grad for parameter in trunk.parameters())
    assert not any(module.training for module in trunk.model.modules() if module is not trunk.model)


@every_trunk
def test_recomputed_activations_give_the_same_gradients(name: str) -> None:
    x = torch.randn(2, 3, 64, 64)
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        trunk = make_trunk(name, grad_checkpointing=recompute).train()
        sum(each.square().sum() for each in trunk.maps(x)).backward()
        gradients.append([parameter.grad for parameter in trunk.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize("name", ["as_vit", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_final_norm_where_timm_applies_it(name: str) -> None:
    trunk = make_trunk(name, norm="trunk")
    x = torch.randn(2, 3, 64, 64)
    model = whole_model(name, trunk)
    expected = model.forward_intermediates(x, indices=list(trunk.indices), norm=True, intermediates_only=True)
    assert all(torch.equal(own, feature) for own, feature in zip(trunk.maps(x), expected, strict=True))


def test_new_norm_of_every_map() -> None:
    maps = FeatureTrunk(**arguments("as_vit", norm="LN")).maps(torch.randn(2, 3, 64, 64))
    for each in maps:
        torch.testing.assert_close(each.mean(dim=1), torch.zeros_like(each[:, 0]), rtol=0, atol=1e-5)


def test_arguments_reach_the_model() -> None:
    size = make_trunk("as_vit", window_policy="size", drop_path_rate=0.3).model
    assert size.window_policy == "size"
    kwargs = {key: value for key, value in TRUNKS["scaled_vit"].items() if key != "img_size"}
    trunk = FeatureTrunk("scaled_vit", img_size=[128, 64], in_chans=1, drop_path_rate=0.3, model_kwargs=kwargs)
    assert trunk.model.patch_embed.grid_size == (8, 4)
    assert trunk.model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)
    assert trunk.maps(torch.randn(1, 1, 64, 64))[0].shape == (1, 16, 4, 4)


def test_a_trunk_has_no_classes() -> None:
    trunk = FeatureTrunk("as_vit", model_kwargs=dict(TRUNKS["as_vit"], num_classes=10))
    assert not [key for key in trunk.model.state_dict() if key.startswith(("head", "norm"))]


def test_what_comes_behind_the_last_map_is_gone() -> None:
    trunk = make_trunk("as_vit", out_indices=(0, -3))
    assert trunk.indices == (0, 1)
    assert trunk.strides == (4, 8)
    assert len(trunk.model.stages) == 2
    assert make_trunk("vit_tiny_patch16_224", out_indices=[1]).indices == (1,)


@pytest.mark.parametrize("name", list(PLAIN))
def test_schedules_and_finish_work_through_the_trunk(name: str) -> None:
    trunk = make_trunk(name)
    x = torch.randn(1, 3, 64, 64)
    if name != "castled":
        before = trunk.maps(x)
        asvit_plugin.castle(trunk.model)
        assert torch.equal(trunk.maps(x)[0], before[0])
    asvit_plugin.switch_attention(trunk, blend=1.0, threshold=1.0)
    before = trunk.maps(x)
    asvit_plugin.finish(trunk)
    torch.testing.assert_close(trunk.maps(x)[0], before[0])


@pytest.mark.parametrize("name", ["as_vit", "scaled_vit"])
def test_coarser_tokens_give_maps_of_the_same_size(name: str) -> None:
    trunk = make_trunk(name)
    x = torch.randn(1, 3, 128, 70)
    expected = [each.shape for each in trunk.maps(x)]
    schedule = asvit_plugin.ProgressiveTokenization(trunk.model)
    fine = trunk.maps(x)
    schedule.step(0.0)
    coarse = trunk.maps(x)
    assert [each.shape for each in coarse] == expected
    aligned = trunk.alignment.align(x)
    own = trunk.model.forward_intermediates(aligned, indices=list(trunk.indices), intermediates_only=True)
    for each, feature in zip(coarse, own, strict=True):  # at first, 4 times the stride
        enlarged = F.interpolate(feature, scale_factor=4, mode="bilinear")
        assert torch.equal(each, enlarged[:, :, : each.shape[2], : each.shape[3]])
    assert not torch.equal(coarse[0], fine[0])
    schedule.step(1.0)
    assert all(torch.equal(each, other) for each, other in zip(trunk.maps(x), fine, strict=True))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(name="no_such_model"), r"name is 'no_such_model'; it must be the name of a timm model"),
        (dict(name=""), r"name is ''; it must be the name of a timm model"),
        (dict(name="local-dir:/nowhere"), r"local-dir:/nowhere'; the folder must hold the config.json"),
        (dict(name="crossvit_tiny_240"), r"crossvit_tiny_240'; its strides are 12, 17 and must be powers of two times"),
        (dict(name="test_resnet", window_policy="size"), r"window_policy is 'size'; test_resnet does not take it"),
        (dict(name="test_resnet", img_size=64), r"img_size is 64; test_resnet does not take it"),
        (dict(name="test_vit", model_kwargs={"what": 1}), r"what is 1; test_vit does not take it"),
        (dict(name="as_vit", window_policy="big"), r"window_policy is 'big'; it must be one of 'split', 'size'"),
        (dict(name="test_resnet", out_indices=[5]), r"out_indices is \[5\].*from -5 to 4: the model has 5 maps"),
        (dict(name="test_resnet", out_indices=(4, -1)), r"out_indices is \(4, -1\); it must be different"),
        (dict(name="test_resnet", out_indices=()), r"out_indices is \(\)"),
        (dict(name="test_resnet", norm="BN"), r"norm is 'BN'; it must be one of '', 'trunk', 'LN'"),
        (dict(name="test_resnet", norm="trunk"), r"norm is 'trunk'; test_resnet has no final norm"),
        (dict(name="test_resnet", frozen_stages=5), r"frozen_stages is 5; it must be from -1 .* to 4 \(everything\)"),
        (dict(name="test_resnet", weights="/nowhere"), r"weights is '/nowhere'; it must be a file, a folder with"),
        (dict(name="as_vit", model_kwargs="x"), r"model_kwargs is 'x'; it must be arguments by name"),
        (dict(name="as_vit", model_kwargs={"features_only": True}), r"features_only is True; leave it out: a trunk"),
        (dict(name="as_vit", pretrained=True), r"pretrained weights of as_vit cannot be loaded"),
    ],
)
def test_refuses_in_one_sentence(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        FeatureTrunk(**kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name, size", [("pit_ti_224", 224), ("test_vit_relpos", 160)])
def test_models_of_one_size(name: str, size: int) -> None:
    trunk = FeatureTrunk(name).eval()
    maps = trunk.maps(torch.randn(1, 3, size, size))
    assert [each.shape[2:] for each in maps] == [(size // stride, size // stride) for stride in trunk.strides]
    with pytest.raises(ValueError, match=rf"the images are \(64, 96\) .*; {name} takes only \({size}, {size}\): pad"):
        trunk.maps(torch.randn(1, 3, 64, 96))


def test_refuses_a_model_without_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: nn.Identity())
    with pytest.raises(ValueError, match="name is 'test_vit'; it must be a model with feature maps"):
        FeatureTrunk("test_vit")


def test_refuses_to_freeze_what_has_no_groups() -> None:
    with pytest.raises(ValueError, match="frozen_stages must be -1: MetaFormer does not say what its stages are"):
        FeatureTrunk("poolformer_s12", frozen_stages=1)
