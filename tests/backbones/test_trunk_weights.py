"""Weights of a trunk: whole or refused, from files, folders and castled models, at other sizes and channels."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn
from trunks import TRUNKS, arguments, make_trunk

import asvit_plugin
from asvit_plugin.backbones import FeatureTrunk, load_trunk_weights

every_trunk = pytest.mark.parametrize("name", list(TRUNKS))
CLASSES = 7


def classifier(name: str, **kwargs: Any) -> nn.Module:
    model = timm.create_model(name, num_classes=CLASSES, **{**TRUNKS[name], **kwargs}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def save(model: nn.Module, folder: Path, name: str = "weights.pth") -> str:
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, folder / name)
    return str(folder / name)


def check_equal(trunk: FeatureTrunk, model: nn.Module) -> None:
    whole = model.state_dict()
    assert all(torch.equal(value, whole[key]) for key, value in trunk.model.state_dict().items())


@every_trunk
def test_file_at_construction_and_later(name: str, tmp_path: Path) -> None:
    model = classifier(name)
    file = save(model, tmp_path)
    trunk = FeatureTrunk(**arguments(name, weights=file)).eval()
    check_equal(trunk, model)
    late = nn.Sequential(nn.Identity(), make_trunk(name, frozen_stages=1, norm="LN").train())
    norms = {key: value.clone() for key, value in late[1].norms.state_dict().items()}
    load_trunk_weights(late, file)
    check_equal(late[1], model)
    assert all(torch.equal(value, norms[key]) for key, value in late[1].norms.state_dict().items())
    assert not all(parameter.requires_grad for parameter in late.parameters())  # still frozen


@every_trunk
@pytest.mark.parametrize("change", ["lacks", "has more"])
def test_file_that_does_not_fit_is_refused(name: str, change: str, tmp_path: Path) -> None:
    model = classifier(name)
    state = model.state_dict()
    # in the last stage but not last of all: timm itself would load the rest without a word
    key = [key for key in make_trunk(name).model.state_dict() if key.endswith("weight")][-1]
    tensor = state.pop(key)
    if change == "has more":
        state |= {key: tensor, "more.weight": tensor}
    torch.save(state, tmp_path / "weights.pth")
    file = str(tmp_path / "weights.pth")
    for load in (
        lambda: FeatureTrunk(**arguments(name, weights=file)),
        lambda: load_trunk_weights(make_trunk(name), file),
    ):
        with pytest.raises(ValueError, match=f"{name} cannot be loaded from .*weights.pth|does not fit") as caught:
            load()
        assert "\n" not in str(caught.value)
        assert key in str(caught.value) or "more.weight" in str(caught.value)


@pytest.mark.parametrize("name", [name for name in TRUNKS if "img_size" in TRUNKS[name]])
def test_another_image_size_and_channels(name: str, tmp_path: Path) -> None:
    model = classifier(name)
    file = save(model, tmp_path)
    size = 2 * TRUNKS[name]["img_size"]
    kwargs = dict(TRUNKS[name], img_size=size)
    trunk = FeatureTrunk(name, weights=file, in_chans=1, model_kwargs=kwargs)
    late = FeatureTrunk(name, in_chans=1, model_kwargs=kwargs)
    load_trunk_weights(late, file)
    overlay = dict(file=file, num_classes=CLASSES)
    expected = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=CLASSES, in_chans=1, **kwargs
    )
    check_equal(trunk, expected)
    check_equal(late, expected)
    assert trunk.maps(torch.randn(1, 1, 128, 128))[-1].isfinite().all()


def test_folder_safetensors_and_name_of_a_folder(tmp_path: Path) -> None:
    model = classifier("as_vit")
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    check_equal(FeatureTrunk(**arguments("as_vit", weights=str(tmp_path))), model)
    check_equal(FeatureTrunk(**arguments("as_vit", weights=str(tmp_path / "model.safetensors"))), model)
    named = FeatureTrunk(f"local-dir:{tmp_path}")
    check_equal(named, model)
    other = classifier("as_vit")
    file = save(other, tmp_path, "other.pth")
    check_equal(FeatureTrunk(f"local-dir:{tmp_path}", weights=file), other)
    named.load_weights(file)
    check_equal(named, other)


def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier("as_vit")
    save_for_hf(model, str(tmp_path), safe_serialization=True)

    def download(repository: str, file: str, revision: str | None) -> str:
        assert (repository, revision) == ("me/net", "v1")
        return str(tmp_path / file)

    monkeypatch.setattr("asvit_plugin.models.weight_sources.hf_hub_download", download)
    check_equal(FeatureTrunk(**arguments("as_vit", weights="hf-hub:me/net@v1")), model)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="weights is 'hf-hub:me/no_such'; it cannot be downloaded") as caught:
        FeatureTrunk(**arguments("as_vit", weights="hf-hub:me/no_such"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["as_vit", "test_resnet"])
def test_timm_s_own_way_of_naming_a_file(name: str, tmp_path: Path) -> None:
    model = classifier(name)
    overlay = dict(file=save(model, tmp_path), num_classes=CLASSES)
    check_equal(
        FeatureTrunk(name, pretrained=True, model_kwargs={**TRUNKS[name], "pretrained_cfg_overlay": overlay}), model
    )


def test_headless_files_load_too(tmp_path: Path) -> None:
    model = classifier("vit_tiny_patch16_224")
    model.reset_classifier(0)
    save_file(model.state_dict(), str(tmp_path / "weights.safetensors"))
    check_equal(FeatureTrunk(**arguments("vit_tiny_patch16_224", weights=str(tmp_path / "weights.safetensors"))), model)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("base", ["scaled_vit", "vit_tiny_patch16_224", "scaled_pit"])
def test_castled_folder(base: str, finished: bool, tmp_path: Path) -> None:
    model = asvit_plugin.castle(classifier(base), mode="linear")
    if finished:
        asvit_plugin.finish(model)
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    trunk = FeatureTrunk(f"local-dir:{tmp_path}").eval()
    check_equal(trunk, model)
    x = torch.randn(1, 3, 64, 64)
    before = trunk.maps(x)
    assert torch.equal(before[-1], model.forward_intermediates(x, intermediates_only=True)[-1])
    assert trunk.maps(torch.randn(1, 3, 96, 64))[-1].shape[2:] == (96 // trunk.strides[-1], 64 // trunk.strides[-1])
    if not finished:
        asvit_plugin.finish(trunk)
        torch.testing.assert_close(trunk.maps(x)[-1], before[-1])


def test_castled_from_weights_of_its_base(tmp_path: Path) -> None:
    model = classifier("scaled_vit")
    trunk = FeatureTrunk(**arguments("castled", weights=save(model, tmp_path)))
    own = trunk.model.state_dict()
    shared = {key: value for key, value in model.state_dict().items() if key in own}
    assert len(shared) > 20
    assert all(torch.equal(own[key], value) for key, value in shared.items())


def test_a_trunk_that_has_changed_says_so(tmp_path: Path) -> None:
    trunk = make_trunk("castled")
    asvit_plugin.switch_attention(trunk, blend=1.0, threshold=1.0)
    file = save(classifier("castled"), tmp_path)
    trunk.model.blocks[0].attn.register_buffer("extra", torch.zeros(1))
    with pytest.raises(ValueError, match="differs in blocks.0.attn.extra from the trunk, which has changed"):
        load_trunk_weights(trunk, file)


def test_a_detector_needs_one_trunk() -> None:
    with pytest.raises(ValueError, match="Sequential has 0 timm trunks; it must have one"):
        load_trunk_weights(nn.Sequential(), "weights.pth")


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="test_resnet cannot be loaded from .*: it is no PyTorch or safetensors"):
        FeatureTrunk("test_resnet", weights=str(tmp_path / "weights.pth"))
    torch.save({"state_dict": [1, 2]}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="test_resnet cannot be loaded"):
        FeatureTrunk("test_resnet", weights=str(tmp_path / "weights.pth"))
