"""Export, hub round trips and adapted weights, for every model of the plugin; and what importing it does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from plugin_models import IMAGE_SIZE, MODELS, SIZED, cheap, images
from timm.models import save_for_hf
from torch.export import Dim

HEAVY = ("detectron2", "mmengine", "optuna", "lightning", "matplotlib", "sklearn")
every_model = pytest.mark.parametrize("name", list(MODELS))
sized_model = pytest.mark.parametrize("name", SIZED)


@every_model
def test_export_at_a_fixed_size(name: str) -> None:
    model = cheap(name)
    x = images()
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: Dim.AUTO},)).module()
    for batch in (2, 5):
        x = images(batch)
        torch.testing.assert_close(exported(x), model(x))


@sized_model
def test_hub_round_trip(name: str, tmp_path: Path) -> None:
    source = cheap(name)
    source.reset_classifier(7)
    source.set_input_size((2 * IMAGE_SIZE, IMAGE_SIZE))
    save_for_hf(source, str(tmp_path), safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == name
    assert config["num_classes"] == 7
    assert config["model_args"]["img_size"] == [2 * IMAGE_SIZE, IMAGE_SIZE]
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = images(2, 2 * IMAGE_SIZE, IMAGE_SIZE)
    assert torch.equal(loaded(x), source(x))


@sized_model
def test_local_weights_adapt(name: str, tmp_path: Path) -> None:
    """Other channels, classes and sizes in one call."""
    source = cheap(name)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    overlay = dict(file=str(tmp_path / "weights.pth"), num_classes=10)
    adapted = cheap(
        name,
        pretrained=True,
        pretrained_cfg_overlay=overlay,
        in_chans=1,
        num_classes=5,
        img_size=2 * IMAGE_SIZE,
    )
    stem = source.pretrained_cfg["first_conv"] + ".weight"
    summed = source.get_parameter(stem).sum(dim=1, keepdim=True)
    torch.testing.assert_close(adapted.get_parameter(stem), summed)
    gray = torch.randn(2, 1, 2 * IMAGE_SIZE, 2 * IMAGE_SIZE)
    assert adapted(gray).shape == (2, 5)
    source.set_input_size(2 * IMAGE_SIZE)
    expected = source.forward_features(gray.expand(-1, 3, -1, -1))
    torch.testing.assert_close(adapted.forward_features(gray), expected, rtol=0, atol=1e-4)


def test_import_is_silent_and_light() -> None:
    script = f"import asvit_plugin, sys; print(sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert done.stderr == ""


def test_every_model_is_found_by_its_family() -> None:
    assert {"as_vit", "as_vit_small", "as_vit_base", "as_vit_large"} <= set(MODELS)
    assert all(name in timm.list_models(module=family) for name, family in MODELS.items())
