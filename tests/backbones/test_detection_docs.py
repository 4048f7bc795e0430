"""The code blocks of docs/detection.md, run as they stand."""

from pathlib import Path

import pytest
import timm
import torch
from doc_blocks import block, run_block

PAGE = "detection.md"
detectron2_reason = "detectron2 is not installed, and on no index; the README says how"


def test_yacs_and_weights(tmp_path: Path) -> None:
    pytest.importorskip("detectron2", reason=detectron2_reason)
    model = run_block(PAGE, "detectron2, yacs")["model"].eval()
    with torch.no_grad():
        assert len(model([{"image": torch.rand(3, 70, 90) * 255}])) == 1
    source = timm.create_model("as_vit_small")
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    run_block(PAGE, "Weights", model=model, folder=str(tmp_path), file=str(tmp_path / "weights.pth"))
    assert torch.equal(model.backbone.bottom_up.model.pos_embed, source.pos_embed)


def test_lazy_config() -> None:
    pytest.importorskip("detectron2", reason=detectron2_reason)
    names = run_block(PAGE, "detectron2, LazyConfig")
    instantiate = names["instantiate"]
    pyramid = instantiate(names["backbone"])
    assert pyramid.padding_constraints == {"size_divisibility": 32, "square_size": 512}
    names["params"].model = pyramid
    rates = {group["lr"] for group in instantiate(names["params"])}
    assert len(rates) == 14
    assert max(rates) == 1e-4


def test_mmengine() -> None:
    pytest.importorskip("mmengine.runner", reason="mmengine or OpenCV is not installed: see setup.cfg, openmmlab")
    from mmengine import Config
    from mmengine.registry import MODELS
    from mmengine.utils import import_modules_from_strings

    config = Config.fromstring(block(PAGE, "mmengine"), ".py")
    import_modules_from_strings(**config.custom_imports)
    backbone = MODELS.build(config.backbone)
    assert backbone.strides == (8, 16, 32)
    assert [each.shape[1] for each in backbone(torch.randn(1, 3, 64, 64))] == list(backbone.channels)
