"""As-ViT against published counts and against outputs of the authors' code."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from drawn import draw, image, reference
from timm.layers import set_fused_attn
from torch.utils.flop_counter import FlopCounterMode

REFERENCES = ["as_vit_small", "as_vit_seed", "as_vit_thin"]


@pytest.mark.parametrize(
    "name, pos_embed, params",
    [
        ("as_vit_small", True, 29_051_296),
        ("as_vit_base", True, 52_622_428),
        ("as_vit_large", True, 88_145_300),
        ("as_vit_small", False, 28_775_328),
        ("as_vit_base", False, 52_258_652),
        ("as_vit_large", False, 87_580_820),
    ],
)
def test_parameter_count(name: str, pos_embed: bool, params: int) -> None:
    model = timm.create_model(name, pos_embed=pos_embed, device="meta")
    assert sum(p.numel() for p in model.parameters()) == params


def giga_macs(name: str, size: int, **kwargs: Any) -> float:
    """GMACs of matrix products and convolutions for one image, counted on shapes alone."""
    set_fused_attn(False)
    try:
        model = timm.create_model(name, device="meta", **kwargs).eval()
    finally:
        set_fused_attn(True)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize(
    "name, expected", [("as_vit_small", 5.132134656), ("as_vit_base", 8.75369408), ("as_vit_large", 22.35781376)]
)
def test_macs_at_224(name: str, expected: float) -> None:
    assert giga_macs(name, 224) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("window_policy, expected", [("size", 503), ("split", 2795)])
def test_macs_at_detection_size(window_policy: str, expected: float) -> None:
    """Windows that keep their size keep attention affordable in large images."""
    macs = giga_macs("as_vit_large", 1024, window_policy=window_policy, img_size=1024)
    assert macs == pytest.approx(expected, rel=2e-3)


def authors_model(ref: dict[str, Any], path: Path, dtype: torch.dtype) -> torch.nn.Module:
    """The net of a reference file, its drawn weights loaded through a file in the authors' layout."""
    weights = {name: draw(name, shape) for name, shape in ref["state_dict"].items()}
    torch.save({"model": weights}, path / "authors.pth")
    model = timm.create_model(
        "as_vit",
        pretrained=True,
        pretrained_cfg_overlay=dict(file=str(path / "authors.pth"), num_classes=ref["num_classes"]),
        genotype=ref["genotype"],
        pos_embed=ref["ape"],
    )
    return model.to(dtype).eval()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=["fp64", "fp32"])
@pytest.mark.parametrize("name", REFERENCES)
def test_outputs_equal_the_authors(name: str, dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    ref = reference(name)
    model = authors_model(ref, tmp_path, dtype)
    assert sum(p.numel() for p in model.parameters()) == ref["num_params"]
    x = image(ref["input_seed"], ref["input_shape"]).to(dtype)
    with torch.no_grad():
        logits = model(x)
        stage_outputs = model.forward_intermediates(x, intermediates_only=True)
    expected = torch.tensor(ref["logits"], dtype=dtype)
    torch.testing.assert_close(logits[:, : expected.shape[1]], expected, rtol=0, atol=tolerance)
    norms = torch.tensor(ref["logits_norm"], dtype=dtype)
    torch.testing.assert_close(logits.norm(dim=1), norms, rtol=0, atol=10 * tolerance)

    # The authors merge at the end of a stage, this package at the start of the next.
    merges = [stage.downsample for stage in model.stages[1:]] + [torch.nn.Identity()]
    for feature, merge, (shape, norm) in zip(stage_outputs, merges, ref["stage_outputs"]):
        with torch.no_grad():
            merged = merge(feature.permute(0, 2, 3, 1)).flatten(1, 2)
        assert list(merged.shape) == shape
        assert merged.norm().item() == pytest.approx(norm, rel=tolerance)
