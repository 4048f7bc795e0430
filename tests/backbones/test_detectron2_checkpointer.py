"""Weights of timm models and checkpoints of detectors, read by detectron2's way of loading."""

import logging
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn
from trunks import TRUNKS

pytest.importorskip("detectron2", reason="detectron2 is not installed, and on no index; the README says how")

from detectors import mask_rcnn
from detectron2.checkpoint import DetectionCheckpointer

from asvit_plugin.backbones.detectron2_checkpointer import TimmCheckpointer
from asvit_plugin.backbones.weights import find_trunk

NAMES = ("as_vit", "vit_resnas", "castled", "vit_small_patch14_dinov2", "test_resnet")


def classifier(name: str) -> nn.Module:
    return timm.create_model(name, num_classes=7, **TRUNKS[name])


def is_loaded(detector: nn.Module, model: nn.Module) -> bool:
    whole = model.state_dict()
    return all(torch.equal(value, whole[key]) for key, value in find_trunk(detector)[1].model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_bare_timm_file(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """detectron2's own checkpointer loads nothing of it and warns: that is what this is for."""
    model, detector = classifier(name), mask_rcnn(name)
    file = str(tmp_path / "weights.pth")
    torch.save(model.state_dict(), file)
    rest = {key: value.clone() for key, value in detector.state_dict().items() if ".model." not in key}
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(detector).load(file)
    assert "not found in the checkpoint" in caplog.text
    assert not is_loaded(detector, model)
    caplog.clear()
    assert TimmCheckpointer(detector, str(tmp_path)).resume_or_load(file, resume=False) == {}
    assert is_loaded(detector, model)
    assert all(torch.equal(detector.state_dict()[key], value) for key, value in rest.items())
    assert not caplog.records


def test_folder_safetensors_and_training_checkpoints(tmp_path: Path) -> None:
    model = classifier("as_vit")
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    torch.save({"state_dict": model.state_dict(), "optimizer": {}, "epoch": 3}, tmp_path / "best.pth.tar")
    torch.save({"model": model.state_dict(), "optimizer": {"state": {}}}, tmp_path / "authors.pth")
    for source in (".", "model.safetensors", "best.pth.tar", "authors.pth"):
        detector = mask_rcnn("as_vit")
        optimizer = torch.optim.SGD(detector.parameters(), lr=0.1)
        TimmCheckpointer(detector, optimizer=optimizer).load(str(tmp_path / source))
        assert is_loaded(detector, model)


@pytest.mark.parametrize("name", ["as_vit", "test_resnet", "vit_tiny_patch16_224"])
def test_half_a_file_is_an_error(name: str, tmp_path: Path) -> None:
    state = classifier(name).state_dict()
    key = next(key for key in state if ".1." in key)
    del state[key]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=f"{name} cannot be loaded|does not fit"):
        TimmCheckpointer(mask_rcnn(name)).load(str(tmp_path / "weights.pth"))


def test_checkpoints_of_the_detector_are_read_as_ever(tmp_path: Path) -> None:
    detector, other = mask_rcnn("as_vit"), mask_rcnn("as_vit")
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.1)
    TimmCheckpointer(detector, str(tmp_path), optimizer=optimizer).save("model_0000001", iteration=1)
    assert not torch.equal(next(other.parameters()), next(detector.parameters()))
    optimizer = torch.optim.SGD(other.parameters(), lr=0.2)
    loaded = TimmCheckpointer(other, str(tmp_path), optimizer=optimizer).resume_or_load("", resume=True)
    assert loaded["iteration"] == 1
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert all(torch.equal(value, detector.state_dict()[key]) for key, value in other.state_dict().items())
    torch.save({f"module.{key}": value for key, value in detector.state_dict().items()}, tmp_path / "ddp.pth")
    other = mask_rcnn("as_vit")
    TimmCheckpointer(other).load(str(tmp_path / "ddp.pth"))
    assert torch.equal(next(other.parameters()), next(detector.parameters()))


def test_a_checkpoint_of_another_detector_is_refused(tmp_path: Path) -> None:
    DetectionCheckpointer(nn.Linear(2, 2), str(tmp_path)).save("model")
    with pytest.raises(ValueError, match="as_vit cannot be loaded|does not fit as_vit"):
        TimmCheckpointer(mask_rcnn("as_vit")).load(str(tmp_path / "model.pth"))


def test_no_file() -> None:
    detector = mask_rcnn("as_vit")
    assert TimmCheckpointer(detector).load("") == {}
    with pytest.raises(AssertionError, match="not found"):
        TimmCheckpointer(detector).load("/nowhere.pth")
