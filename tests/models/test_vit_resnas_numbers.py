"""ViT-ResNAS against published counts and against outputs of the authors' code."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from drawn import draw, image, reference

from asvit_plugin.costs import macs, params

COUNTS = {  # parameters without and with the patch head, GMACs at 224 px
    "vit_resnas_tiny": (40_793_552, 41_498_552, 1.782630272),
    "vit_resnas_small": (63_724_108, 64_605_108, 2.845501856),
    "vit_resnas_medium": (96_442_672, 97_323_672, 4.513135936),
    "vit_res_tiny": (42_012_736, 42_781_736, 1.79437824),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name: str) -> None:
    plain, with_patch_head, giga_macs = COUNTS[name]
    assert params(timm.create_model(name, device="meta")) == plain
    assert params(timm.create_model(name, device="meta", patch_head=True)) == with_patch_head
    assert macs(timm.create_model(name, device="meta")) == giga_macs * 1e9


@pytest.mark.parametrize("size, count, giga_macs", [(280, 96_508_192, 7.2191), (392, 96_682_912, 15.2009)])
def test_medium_at_other_sizes(size: int, count: int, giga_macs: float) -> None:
    model = timm.create_model("vit_resnas_medium", device="meta", img_size=size)
    assert params(model) == count
    assert macs(model) / 1e9 == pytest.approx(giga_macs, abs=5e-5)


@pytest.fixture(scope="module")
def authors_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training checkpoint as the authors' code leaves it: the averaged weights are those that count."""
    ref = reference("vit_resnas_tiny")
    weights = {name: draw(name, shape) for name, shape in ref["state_dict"].items()}
    args = argparse.Namespace(network_def=ref["network_def"], lr=5e-4, model="flexible_vit_sr_patch14_224_patch_output")
    path = tmp_path_factory.mktemp("authors") / "epoch@289_checkpoint.pth.tar"
    plain = {name: tensor + 1 for name, tensor in weights.items()}
    torch.save({"model": plain, "model_ema": weights, "args": args, "epoch": 289, "optimizer": {"state": {}}}, path)
    return path


def from_file(name: str, path: Path, **kwargs: Any) -> torch.nn.Module:
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **kwargs).eval()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=["fp64", "fp32"])
@pytest.mark.parametrize("name", ["vit_resnas_tiny", "vit_resnas"])
def test_outputs_equal_the_authors(name: str, dtype: torch.dtype, tolerance: float, authors_file: Path) -> None:
    """``vit_resnas`` reads the definition from the file."""
    ref = reference("vit_resnas_tiny")
    model = from_file(name, authors_file).to(dtype)
    assert model.network_def == ref["network_def"]
    x = image(ref["input_seed"], ref["input_shape"]).to(dtype)
    with torch.no_grad():
        logits = model(x)
    expected = torch.tensor(ref["logits"], dtype=dtype)
    torch.testing.assert_close(logits[:, : expected.shape[1]], expected, rtol=0, atol=tolerance)
    norms = torch.tensor(ref["logits_norm"], dtype=dtype)
    torch.testing.assert_close(logits.norm(dim=1), norms, rtol=0, atol=10 * tolerance)


def test_patch_head_comes_along_where_it_is_wanted(authors_file: Path) -> None:
    ref = reference("vit_resnas_tiny")
    model = from_file("vit_resnas", authors_file, patch_head=True)
    assert params(model) == ref["num_params"]
    assert torch.equal(model.patch_head.weight, draw("patch_head.weight", ref["state_dict"]["patch_head.weight"]))


def test_weights_adapt_to_classes_channels_and_size(authors_file: Path) -> None:
    plain = from_file("vit_resnas", authors_file)
    other = from_file("vit_resnas", authors_file, num_classes=5, in_chans=1, img_size=112)
    assert other(torch.zeros(1, 1, 112, 112)).shape == (1, 5)
    stem = plain.patch_embed.conv1.conv.weight.sum(1, keepdim=True)
    torch.testing.assert_close(other.patch_embed.conv1.conv.weight, stem)
    assert [tuple(owner.pos_embed.shape[1:3]) for owner in (other, *(s.downsample for s in other.stages[1:]))] == [
        *((8, 8), (4, 4), (2, 2))
    ]
    assert torch.equal(other.stages[2].blocks[0].mlp.fc1.weight, plain.stages[2].blocks[0].mlp.fc1.weight)
