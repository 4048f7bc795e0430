"""Scaled ViTs: timm's ViT at DeiT's shapes, and any other shape at the cost that the formula says."""

import random
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from asvit_plugin.costs import ViTShape, macs, params

DEIT = {"deit_tiny_patch16_224": 3, "deit_small_patch16_224": 6, "deit_base_patch16_224": 12}


@pytest.mark.parametrize("name", DEIT)
def test_has_deits_counts_and_names(name: str) -> None:
    ours = timm.create_model("scaled_vit", num_heads=DEIT[name], device="meta")
    theirs = timm.create_model(name, device="meta")
    shapes = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == shapes
    assert macs(ours) == macs(theirs)


def test_weights_go_both_ways_and_give_the_same_outputs(tmp_path: Path) -> None:
    theirs = timm.create_model("deit_tiny_patch16_224", num_classes=10).eval()
    torch.save(theirs.state_dict(), tmp_path / "deit.pth")
    overlay = dict(file=str(tmp_path / "deit.pth"), num_classes=10)
    ours = timm.create_model("scaled_vit", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=10).eval()
    x = torch.randn(2, 3, 224, 224)
    assert torch.equal(ours(x), theirs(x))
    theirs.load_state_dict(ours.state_dict())


def test_a_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("deit_small_patch16_224").state_dict(), tmp_path / "deit.pth")
    for classes in (1000, 5):
        with pytest.raises(ValueError, match=r"of another shape are .* \(1, 1, 384\) for \(1, 1, 192\)"):
            timm.create_model(
                "scaled_vit",
                pretrained=True,
                num_classes=classes,
                pretrained_cfg_overlay=dict(file=str(tmp_path / "deit.pth")),
            )


@pytest.mark.parametrize("seed", range(20))
def test_formula_equals_the_count(seed: int) -> None:
    draw = random.Random(seed)
    depth = draw.randint(1, 5)
    shape: dict[str, Any] = dict(
        num_heads=[draw.randint(1, 8) for _ in range(depth)],
        mlp_ratio=[draw.choice([1, 2.5, 3, 4]) for _ in range(depth)],
        embed_dim=8 * draw.randint(4, 40),
        head_dim=draw.choice([16, 24, 64]),
        img_size=draw.randint(64, 288),
        patch_size=draw.choice([14, 16, 28, 32]),
        num_classes=draw.choice([10, 1000]),
    )
    model = timm.create_model("scaled_vit", depth=depth, device="meta", **shape)
    formula = ViTShape(**shape)
    assert (params(model), macs(model)) == (formula.params, formula.macs)


def test_heads_and_ratios_differ_by_block() -> None:
    shape = dict(depth=3, embed_dim=40, num_heads=(1, 2, 5), head_dim=12, mlp_ratio=(1, 2.5, 4), img_size=64)
    model = timm.create_model("scaled_vit", num_classes=5, **shape)
    assert [(block.attn.num_heads, block.attn.head_dim) for block in model.blocks] == [(1, 12), (2, 12), (5, 12)]
    assert [block.mlp.fc1.out_features for block in model.blocks] == [40, 100, 160]
    model(torch.randn(2, 3, 64, 48)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(depth=0), "depth is 0; it must be a whole number of at least 1"),
        (dict(head_dim=-8), "head_dim is -8"),
        (dict(patch_size=1.5), "patch_size is 1.5"),
        (dict(num_heads=0), "num_heads is 0; it must be positive whole numbers"),
        (dict(num_heads=[3, 3]), "num_heads has 2 values; depth is 12, so it must have one or 12"),
        (dict(num_heads=[3] * 11 + [4]), "where blocks differ in heads, embed_dim must be given"),
        (dict(num_heads=2.5), "num_heads is 2.5"),
        (dict(mlp_ratio="4"), "mlp_ratio is '4'; it must be positive numbers"),
        (dict(mlp_ratio=[4.0] * 11 + [-1]), "mlp_ratio is"),
        (dict(img_size=0), "img_size is 0"),
    ],
)
def test_bad_shapes_get_one_sentence(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        timm.create_model("scaled_vit", device="meta", **kwargs)
    assert "\n" not in str(caught.value)
