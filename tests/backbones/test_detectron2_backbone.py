"""The timm backbone by detectron2's rules: shapes, padding, pyramids, both kinds of config, tracing."""

from typing import Any

import pytest
import torch
from trunks import PLAIN, TRUNKS, arguments, make_trunk, strides_of, without_gradient

pytest.importorskip("detectron2", reason="detectron2 is not installed, and on no index; the README says how")

from detectors import levels_of, make_config, mask_rcnn
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.export import TracingAdapter
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, ImageList
from omegaconf import OmegaConf

from asvit_plugin.backbones.detectron2_backbone import TimmBackbone
from asvit_plugin.backbones.detectron2_optimizer import layer_decay_params
from asvit_plugin.backbones.layer_decay import layer_decay_factors
from asvit_plugin.backbones.simple_feature_pyramid import TimmFeaturePyramid

every_trunk = pytest.mark.parametrize("name", list(TRUNKS))
RGB = ShapeSpec(channels=3)


@every_trunk
def test_contract(name: str) -> None:
    backbone = TimmBackbone(**arguments(name))
    assert isinstance(backbone, Backbone)
    shapes = backbone.output_shape()
    assert [shape.stride for shape in shapes.values()] == list(strides_of(name))
    assert backbone.size_divisibility == backbone.padding_constraints["size_divisibility"] == max(strides_of(name))
    side = 2 * backbone.size_divisibility
    maps = backbone(torch.randn(1, 3, side, side))
    assert list(maps) == list(shapes)
    for key, shape in shapes.items():
        assert maps[key].shape == (1, shape.channels, side // shape.stride, side // shape.stride)


@every_trunk
def test_maps_are_the_trunks(name: str) -> None:
    trunk = make_trunk(name)
    backbone = TimmBackbone(**arguments(name)).eval()
    backbone.load_state_dict(trunk.state_dict())
    x = torch.randn(1, 3, 70, 90)
    assert all(torch.equal(own, each) for own, each in zip(backbone(x).values(), trunk.maps(x), strict=True))


@every_trunk
@pytest.mark.parametrize("builder", ["build_timm_fpn_backbone", "build_retinanet_timm_fpn_backbone"])
def test_yacs_pyramids(name: str, builder: str) -> None:
    pyramid = build_backbone(make_config(name, builder), RGB)
    assert isinstance(pyramid, TimmFeaturePyramid if name in PLAIN else FPN)
    shapes = pyramid.output_shape()
    assert all(key == f"p{shape.stride.bit_length() - 1}" for key, shape in shapes.items())
    finest = max(strides_of(name)[0], 8) if "retinanet" in builder else strides_of(name)[0]
    if name in PLAIN:
        finest = 8 if "retinanet" in builder else 4
    assert shapes[next(iter(shapes))].stride == finest
    images = ImageList.from_tensors(
        [torch.randn(3, 70, 90), torch.randn(3, 33, 101)],
        pyramid.size_divisibility,
        padding_constraints=pyramid.padding_constraints,
    )
    height, width = images.tensor.shape[2:]
    assert height % pyramid.size_divisibility == width % pyramid.size_divisibility == 0
    for key, each in pyramid(images.tensor).items():
        stride = shapes[key].stride
        assert each.shape == (2, 16, -(-height // stride), -(-width // stride))


def test_patches_of_14_pixels_lie_where_the_pooler_looks() -> None:
    """A mark in the image is in the cell of the map that covers it, at the stride that is announced."""
    backbone = TimmBackbone("vit_small_patch14_dinov2", model_kwargs=dict(PLAIN["vit_small_patch14_dinov2"], depth=1))
    x = torch.zeros(1, 3, 128, 192)
    marked = x.clone()
    marked[:, :, 66:78, 146:158] = 1.0  # within row 4 and column 9 of cells of 16 pixels
    embed = backbone.model.patch_embed
    difference = (embed(backbone.alignment.align(marked)) - embed(backbone.alignment.align(x))).abs().sum(-1)
    assert difference.reshape(8, 12).nonzero().tolist() == [[4, 9]]
    shapes = build_backbone(make_config("vit_resnas", "build_timm_fpn_backbone"), RGB).output_shape()
    pooler = ROIPooler(7, [1 / shape.stride for shape in shapes.values()], 0, "ROIAlignV2")
    maps = [torch.randn(1, 4, 128 // shape.stride, 128 // shape.stride) for shape in shapes.values()]
    assert pooler(maps, [Boxes(torch.tensor([[0.0, 0.0, 64.0, 64.0]]))]).shape == (1, 4, 7, 7)


@pytest.mark.parametrize("norm", ["LN", ""])
def test_padding_key_is_spelt_right(norm: str) -> None:
    backbone = TimmBackbone(**arguments("vit_tiny_patch16_224"))
    pyramid = TimmFeaturePyramid(backbone, out_channels=8, norm=norm, square_pad=128)
    assert pyramid.padding_constraints == {"size_divisibility": 32, "square_size": 128}
    assert pyramid.size_divisibility == 32
    assert list(pyramid(torch.randn(1, 3, 64, 96))) == ["p2", "p3", "p4", "p5"]


def test_pyramid_from_several_depths_of_a_plain_vit() -> None:
    backbone = TimmBackbone(**arguments("vit_tiny_patch16_224", out_indices=(0, 2)))
    assert list(backbone.output_shape()) == ["stage0", "stage2"]
    pyramid = TimmFeaturePyramid(backbone, out_channels=8, in_feature="stage0", scale_factors=[2, 1])
    assert list(pyramid(torch.randn(1, 3, 64, 64))) == ["p3", "p4"]


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(in_feature="p4"), "in_feature is 'p4'; the backbone has stage2"),
        (dict(scale_factors=(4.0, 1.0)), r"scale_factors is \(4.0, 1.0\); it must be \(4.0, 2.0, 1.0, 0.5\) or some"),
        (dict(scale_factors=(3.0,)), r"scale_factors is \(3.0,\)"),
        (dict(scale_factors=()), r"scale_factors is \(\)"),
    ],
)
def test_simple_pyramid_refuses(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimmFeaturePyramid(TimmBackbone(**arguments("vit_tiny_patch16_224")), **kwargs)


def test_yacs_options_reach_the_trunk() -> None:
    cfg = make_config("as_vit", "build_timm_backbone")
    options = ["WINDOW_POLICY", "size", "IMG_SIZE", "(128, 64)", "FROZEN_STAGES", "1", "NORM", "LN"]
    options += ["OUT_INDICES", "(0, 2)", "DROP_PATH", "0.2", "GRAD_CHECKPOINTING", "True"]
    del cfg.MODEL.TIMM.KWARGS["img_size"]
    cfg.merge_from_list([f"MODEL.TIMM.{each}" if each.isupper() and each != "LN" else each for each in options])
    backbone = build_backbone(cfg, ShapeSpec(channels=1))
    model = backbone.model
    assert (model.window_policy, model.img_size, model.in_chans) == ("size", (128, 64), 1)
    assert model.stages[0].grad_checkpointing
    assert list(backbone.output_shape()) == ["stage0", "stage2"]
    assert backbone.norms is not None
    assert not model.patch_embed.proj.weight.requires_grad


def test_yaml_can_name_any_argument(tmp_path: Any) -> None:
    cfg = make_config("as_vit", "build_timm_backbone")
    file = tmp_path / "net.yaml"
    file.write_text(
        "MODEL:\n  TIMM:\n    NAME: vit_tiny_patch16_224\n    KWARGS:\n      depth: 2\n      num_heads: 1\n"
    )
    cfg.MODEL.TIMM.KWARGS.clear()
    cfg.merge_from_file(str(file))
    assert len(build_backbone(cfg, RGB).model.blocks) == 2


def test_fpn_refuses_maps_that_do_not_double() -> None:
    cfg = make_config("as_vit", "build_timm_fpn_backbone")
    cfg.MODEL.FPN.IN_FEATURES = ["stage0", "stage2"]
    with pytest.raises(ValueError, match=r"IN_FEATURES is \['stage0', 'stage2'\]; .* of stage0 \(stride 4\), stage1"):
        build_backbone(cfg, RGB)
    cfg.MODEL.FPN.IN_FEATURES = ["res2"]
    with pytest.raises(ValueError, match="IN_FEATURES is"):
        build_backbone(cfg, RGB)


@pytest.mark.parametrize("kept", [["stage0", "stage1"], ["stage2", "stage3"]])
def test_maps_that_the_pyramid_leaves_out_are_dropped(kept: list[str]) -> None:
    cfg = make_config("as_vit", "build_timm_fpn_backbone", NORM="LN")
    cfg.MODEL.FPN.IN_FEATURES = kept
    pyramid = build_backbone(cfg, RGB)
    assert list(pyramid.bottom_up.output_shape()) == kept
    sum(each.square().sum() for each in pyramid(torch.randn(1, 3, 64, 64)).values()).backward()
    assert without_gradient(pyramid) == []


def test_a_coarser_map_comes_of_the_last() -> None:
    shapes = build_backbone(make_config("vit_resnas", "build_timm_fpn_backbone"), RGB).output_shape()
    assert list(shapes) == levels_of("vit_resnas") == ["p4", "p5", "p6", "p7"]


@pytest.mark.parametrize("name", ["as_vit", "vit_tiny_patch16_224"])
def test_lazy_config(name: str, tmp_path: Any) -> None:
    plain = name in PLAIN
    net = L(TimmBackbone)(**arguments(name, img_size=None, out_indices=[2] if plain else [0, 1]))
    if plain:
        node = L(TimmFeaturePyramid)(net=net, out_channels=8, scale_factors=[4.0, 2.0, 1.0, 0.5])
    else:
        node = L(FPN)(bottom_up=net, in_features=["stage0", "stage1"], out_channels=8)
    node.top_block = L(LastLevelMaxPool)() if plain else None
    config = OmegaConf.create({"backbone": node}, flags={"allow_objects": True})
    LazyConfig.save(config, str(tmp_path / "config.yaml"))
    loaded = LazyConfig.load(str(tmp_path / "config.yaml"))
    for each in (node, loaded.backbone):
        pyramid = instantiate(each)
        names = ["p2", "p3", "p4", "p5", "p6"] if plain else ["p2", "p3"]
        assert list(pyramid(torch.randn(1, 3, 64, 64))) == names
        assert list(pyramid.output_shape()) == names


@every_trunk
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_tracing_at_one_size(name: str) -> None:
    backbone = TimmBackbone(**arguments(name)).eval()
    example = torch.randn(1, 3, 70, 90)
    adapter = TracingAdapter(backbone, (example,))
    traced = torch.jit.trace(adapter, (example,))
    x = torch.randn(1, 3, 70, 90)
    with torch.no_grad():
        maps = adapter.outputs_schema(traced(x))
        for key, value in backbone(x).items():
            torch.testing.assert_close(maps[key], value)


def test_optimizer_parameters() -> None:
    model = mask_rcnn("as_vit", FROZEN_STAGES=0)
    groups = layer_decay_params(model, base_lr=1.0, layer_decay=0.5, weight_decay=0.1, weight_decay_norm=0.0)
    rates = {id(each): group["lr"] for group in groups for each in group["params"]}
    factors = layer_decay_factors(model, 0.5)
    named = {key: each for key, each in model.named_parameters() if each.requires_grad}
    assert rates == {id(each): factors[key] for key, each in named.items()}
    assert len(set(rates.values())) > 4
    free = make_config("scaled_vit", "build_timm_fpn_backbone")
    pyramid = build_backbone(free, RGB)
    groups = layer_decay_params(pyramid, 1.0, 0.5, weight_decay=0.1)
    decays = {id(each): group["weight_decay"] for group in groups for each in group["params"]}
    model = pyramid.net.model
    assert decays[id(model.pos_embed)] == decays[id(model.cls_token)] == 0.0
    assert decays[id(model.blocks[0].mlp.fc1.weight)] == 0.1
    kept = layer_decay_params(pyramid, 1.0, 0.5, weight_decay=0.1, overrides={"pos_embed": {"weight_decay": 0.3}})
    decays = {id(each): group["weight_decay"] for group in kept for each in group["params"]}
    assert decays[id(model.pos_embed)] == 0.3
