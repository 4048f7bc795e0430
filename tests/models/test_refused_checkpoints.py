"""Weight files that cannot be read or do not fit wholly: refused in one sentence, never loaded in part."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from tiny import GENOTYPE, tiny

Weights = dict[str, torch.Tensor]
FILE_CLASSES = 10


def refusal(path: Path, **kwargs: Any) -> str:
    """The one sentence that the tiny net refuses a weight file with."""
    overlay = dict(file=str(path), num_classes=FILE_CLASSES)
    with pytest.raises(ValueError, match=r"\S") as caught:
        tiny(pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def truncated(path: Path, save: Callable[[Path], None]) -> None:
    save(path)
    path.write_bytes(path.read_bytes()[:-1000])


UNREADABLE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "empty": ("w.pth", lambda path: path.write_bytes(b"")),
    "random_bytes": ("w.pth", lambda path: path.write_bytes(random.Random(0).randbytes(5000))),
    "text": ("w.pth", lambda path: path.write_text("Not Found")),
    "truncated": ("w.pth", lambda path: truncated(path, lambda p: torch.save(tiny().state_dict(), p))),
    "missing": ("w.pth", lambda path: None),
    "directory": ("w.pth", lambda path: path.mkdir()),
    "list": ("w.pth", lambda path: torch.save([torch.zeros(3)], path)),
    "tensor": ("w.pth", lambda path: torch.save(torch.zeros(3), path)),
    "pickled_object": ("w.pth", lambda path: torch.save({"model": Path("x")}, path)),
    "model_is_a_number": ("w.pth", lambda path: torch.save({"model": 3}, path)),
    "empty_safetensors": ("w.safetensors", lambda path: path.write_bytes(b"")),
    "random_safetensors": ("w.safetensors", lambda path: path.write_bytes(random.Random(0).randbytes(5000))),
    "truncated_safetensors": (
        "w.safetensors",
        lambda path: truncated(path, lambda p: safetensors.torch.save_file(tiny().state_dict(), p)),
    ),
    "missing_safetensors": ("w.safetensors", lambda path: None),
}


@pytest.mark.parametrize("num_classes", [10, 7], ids=["same_classes", "other_classes"])
@pytest.mark.parametrize("name, write", UNREADABLE.values(), ids=UNREADABLE)
def test_unreadable_file(name: str, write: Callable[[Path], Any], num_classes: int, tmp_path: Path) -> None:
    write(tmp_path / name)
    assert str(tmp_path / name) in refusal(tmp_path / name, num_classes=num_classes)


def test_a_file_is_not_blamed_for_other_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a device that there is not, or memory that runs out while the model is built."""
    torch.save(tiny().state_dict(), tmp_path / "w.pth")
    overlay = dict(file=str(tmp_path / "w.pth"), num_classes=FILE_CLASSES)
    with pytest.raises(RuntimeError, match="device string: nowhere"):
        tiny(pretrained=True, pretrained_cfg_overlay=overlay, device="nowhere")
    for target, error in (
        (torch.nn.Linear, torch.OutOfMemoryError("no memory")),
        (torch.nn.Linear, AttributeError("no attribute")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, "reset_parameters", raising(error))
            with pytest.raises(type(error), match=str(error)):
                tiny(pretrained=True, pretrained_cfg_overlay=overlay)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", raising(torch.OutOfMemoryError("no memory")))
        with pytest.raises(torch.OutOfMemoryError):
            tiny(pretrained=True, pretrained_cfg_overlay=overlay)


def raising(error: Exception) -> Callable[..., None]:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    return fail


def test_weights_that_do_not_fit_are_no_broken_file(tmp_path: Path) -> None:
    torch.save(tiny().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"scaled_vit cannot be loaded from .*w.pth: its weights do not fit the model"):
        timm.create_model("scaled_vit", pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "w.pth")))


def test_counters_of_batch_norms_may_be_missing(tmp_path: Path) -> None:
    """As in torch's strict loading of files from before it had them."""
    weights = timm.create_model("fbnetv2_f1", num_classes=3).state_dict()
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith(".num_batches_tracked")}
    torch.save(weights, tmp_path / "w.pth")
    overlay = dict(file=str(tmp_path / "w.pth"), num_classes=3)
    kwargs = dict(pretrained=True, pretrained_cfg_overlay=overlay)
    loaded = timm.create_model("fbnetv2_f1", num_classes=3, **kwargs).state_dict()
    assert len(loaded) > len(weights)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
    torch.save(without(weights, "blocks.1.0.bn1.running_mean"), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"it lacks blocks\.1\.0\.bn1\.running_mean$"):
        timm.create_model("fbnetv2_f1", num_classes=3, **kwargs)


def without(weights: Weights, prefix: str) -> Weights:
    return {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}


UNFIT: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "no_tensors": (lambda w: {}, "lacks pos_embed"),
    "block_missing": (lambda w: without(w, "stages.1.blocks.1."), "lacks stages.1.blocks.1.norm1.weight"),
    "positions_missing": (lambda w: without(w, "pos_embed"), "lacks pos_embed"),
    "hidden_layer_missing": (lambda w: without(w, "head.pre_logits"), "lacks head.pre_logits.fc.weight"),
    "extra_tensors": (lambda w: {**w, "ghost.weight": torch.zeros(3)}, "has no ghost.weight"),
    "wrong_shape": (lambda w: {**w, "norm.bias": torch.zeros(3)}, r"norm.bias (3,) for (64,)"),
    "wrong_stem": (lambda w: {**w, "patch_embed.proj.weight": torch.zeros(8, 3, 4, 4)}, "patch_embed.proj.weight"),
    "stem_channels": (lambda w: {**w, "patch_embed.proj.weight": torch.zeros(8, 1, 5, 5)}, "input_size[0]=3"),
    "no_tensor": (lambda w: {**w, "norm.bias": 3}, "norm.bias"),
    "positions_no_grid": (lambda w: {**w, "pos_embed": torch.zeros(1, 250, 8)}, "(1, 250, 8), which is no square"),
}


@pytest.mark.parametrize("num_classes", [10, 7], ids=["same_classes", "other_classes"])
@pytest.mark.parametrize("change, words", UNFIT.values(), ids=UNFIT)
def test_partly_fitting_file(change: Callable, words: str, num_classes: int, tmp_path: Path) -> None:
    torch.save(change(dict(tiny().state_dict())), tmp_path / "w.pth")
    assert words in refusal(tmp_path / "w.pth", num_classes=num_classes)


@pytest.mark.parametrize("features_only", [False, True], ids=["classifier", "features_only"])
def test_partly_fitting_file_is_refused_for_features_too(features_only: bool, tmp_path: Path) -> None:
    torch.save(without(tiny().state_dict(), "stages.3."), tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth", features_only=features_only)
    assert "lacks stages.3.downsample" in message


@pytest.mark.parametrize("num_classes", [10, 7], ids=["same_classes", "other_classes"])
def test_foreign_model(num_classes: int, tmp_path: Path) -> None:
    deit = timm.create_model("deit_tiny_patch16_224", num_classes=10, depth=2, embed_dim=24, num_heads=2)
    torch.save(deit.state_dict(), tmp_path / "deit.pth")
    assert "lacks patch_embed.norm.weight" in refusal(tmp_path / "deit.pth", num_classes=num_classes)


CLASSIFIERS: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "missing": (lambda w: without(w, "head.fc"), "head.fc.weight"),
    "bias_missing": (lambda w: without(w, "head.fc.bias"), "head.fc.bias"),
    "bias_short": (lambda w: {**w, "head.fc.bias": torch.zeros(3)}, "head.fc.bias"),
    "width": (lambda w: {**w, "head.fc.weight": torch.zeros(10, 3)}, "head.fc.weight"),
}


@pytest.mark.parametrize("change, name", CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_classifier_that_is_needed_must_fit(change: Callable, name: str, tmp_path: Path) -> None:
    torch.save(change(dict(tiny().state_dict())), tmp_path / "w.pth")
    assert name in refusal(tmp_path / "w.pth")


def test_classifier_may_be_missing_where_a_new_one_is_made(tmp_path: Path) -> None:
    source = tiny()
    torch.save(without(source.state_dict(), "head.fc"), tmp_path / "w.pth")
    overlay = dict(file=str(tmp_path / "w.pth"), num_classes=FILE_CLASSES)
    loaded = tiny(pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded.forward_features(x), source.forward_features(x))


def test_other_genotype(tmp_path: Path) -> None:
    torch.save(tiny(genotype=GENOTYPE.replace("|8,8", "|8,16")).state_dict(), tmp_path / "w.pth")
    assert "patch_embed.proj.weight (16, 3, 5, 5) for (8, 3, 5, 5)" in refusal(tmp_path / "w.pth")


@pytest.mark.parametrize("num_classes", [1000, 12, 7])
def test_other_number_of_classes_than_stated(num_classes: int, tmp_path: Path) -> None:
    torch.save(tiny(num_classes=12).state_dict(), tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth", num_classes=num_classes)
    assert "has 12 classes and pretrained_cfg says 10" in message
    assert "num_classes=12" in message


def test_no_weights_are_published() -> None:
    with pytest.raises(ValueError, match=r"as_vit_small cannot be loaded") as caught:
        timm.create_model("as_vit_small", pretrained=True, device="meta")
    assert "\n" not in str(caught.value)
