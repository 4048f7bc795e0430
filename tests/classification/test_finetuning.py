"""Fine-tuning: weights from a hub's cache, files and folders, wholly or not at all; and parts that are frozen."""

import json
import re
from pathlib import Path
from shlex import split
from shutil import copytree

import pytest
import timm
import torch
import train
import validate
from assembly import make_process, make_training
from engine import Training
from freezing import freeze, hold_still
from options import TrainOptions
from parsing import parse_options
from plugin_models import CHEAP
from public_weights import hub_cache, public_models
from refusals import refusal
from runs import TINY
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import nn

from asvit_plugin.layers import resample_pos_embed

STILL = split("--epochs 1 --sched constant --lr 1e-12 --warmup-epochs 0 --weight-decay 0")
RESNAS = ["--model", "vit_resnas", "--model-kwargs", json.dumps({"network_def": CHEAP["vit_resnas"]["network_def"]})]
VIT = split("--model test_vit --model-kwargs {}")
DEIT = split("--model castling_deit_tiny_patch16_224 --model-kwargs {} --img-size 32")
CASTLED = ["--model", "castled", "--model-kwargs"]
CASTLED_VIT = [*CASTLED, json.dumps({"base": "scaled_vit", "depth": 2, "num_heads": 2, "head_dim": 8, "patch_size": 4})]
CASTLED_PIT = [*CASTLED, json.dumps({"base": "scaled_pit", **CHEAP["scaled_pit"], "img_size": 32})]


def prepare(*argv: str) -> Training:
    """A run before its first epoch."""
    return make_training(parse_options(TrainOptions, [*TINY, *argv]), make_process("cpu"))


def assert_loaded(model: nn.Module, weights: dict[str, torch.Tensor], but: tuple[str, ...] = ()) -> None:
    own = model.state_dict()
    assert own.keys() == weights.keys()
    assert not [name for name in own if not name.startswith(but or "-") and not torch.equal(own[name], weights[name])]


def write(path: Path, *argv: str) -> dict[str, torch.Tensor]:
    """Saves the fresh weights of a run's model, other than those that its seed gives, and returns them."""
    weights = prepare(*argv, "--seed", "7").model.state_dict()
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(weights, path)
    return weights


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cache_folder(hub: Path, repository: str, folder: Path) -> None:
    """Puts an exported folder into the hub's cache, as a download would."""
    place = hub / f"models--{repository.replace('/', '--')}"
    copytree(folder, place / "snapshots" / ("0" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)


def test_pretrained_weights_come_from_the_hub(hub: Path, tmp_path: Path) -> None:
    models = public_models(["castling_deit_tiny_patch16_224"])
    hub_cache(hub, models)
    (source,) = models.values()
    model = prepare(*DEIT, "--pretrained").model
    assert torch.equal(model.blocks[3].mlp.fc1.weight, source.blocks[3].mlp.fc1.weight)
    torch.testing.assert_close(model.patch_embed.proj.weight, source.patch_embed.proj.weight.sum(1, keepdim=True))
    torch.testing.assert_close(model.pos_embed, resample_abs_pos_embed(source.pos_embed, (2, 2)))
    assert model.head.weight.shape == (10, 192)
    train.main([*TINY, *DEIT, "--pretrained", *split("--epochs 1 --freeze backbone"), "--output", str(tmp_path)])
    exported = timm.create_model(f"local-dir:{tmp_path / 'castling_deit_tiny_patch16_224' / 'export'}", pretrained=True)
    best = torch.load(tmp_path / "castling_deit_tiny_patch16_224" / "best.pth.tar", weights_only=True)
    assert_loaded(exported, best["state_dict"])
    assert_loaded(exported, model.state_dict(), but=("head.",))


@pytest.mark.parametrize("kind", ["checkpoint", "file", "folder", "hub"])
def test_weights_of_the_same_classes_keep_their_head(kind: str, finished: Path, hub: Path, tmp_path: Path) -> None:
    cache_folder(hub, "me/digits", finished / "export")
    paths = {"checkpoint": "best.pth.tar", "file": "export/model.safetensors", "folder": "export"}
    path = "hf-hub:me/digits" if kind == "hub" else str(finished / paths[kind])
    best = torch.load(finished / "best.pth.tar", weights_only=True)
    assert_loaded(prepare("--pretrained-path", path).model, best["state_dict_ema"])
    result = validate.main([*TINY[:12], "--crop-pct", "1", "--workers", "0", "--pretrained-path", path])
    assert result["top1"] == best["metric"]
    other = prepare("--pretrained-path", path, "--num-classes", "12").model
    assert other.head.fc.weight.shape == (12, best["state_dict_ema"]["head.fc.weight"].shape[1])
    assert_loaded(other, best["state_dict_ema"], but=("head.fc.",))
    if kind != "hub":
        return
    history = train.main([*TINY, *STILL, "--pretrained-path", path, "--output", str(tmp_path)])
    assert history[0]["top1"] == pytest.approx(best["metric"], abs=3)  # its norms see the images once more
    config = json.loads((tmp_path / "as_vit" / "export" / "config.json").read_text())
    assert not {"file", "hf_hub_id"} & config["pretrained_cfg"].keys()
    assert str(finished) not in json.dumps(config)


@pytest.mark.parametrize(
    "model, size, larger", [([], 16, 32), (RESNAS, 56, 112), (VIT, 32, 64)], ids=["as_vit", "vit_resnas", "timm"]
)
@pytest.mark.parametrize("classes", [10, 12])
def test_positions_are_resampled(model: list[str], size: int, larger: int, classes: int, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    weights = write(path, *model, "--img-size", str(size))
    argv = [*model, "--img-size", str(larger), "--num-classes", str(classes), "--pretrained-path", str(path)]
    own = prepare(*argv).model.state_dict()
    for name in weights:
        if name.endswith("pos_embed") and own[name].shape != weights[name].shape:
            grid = own[name].shape[1:3]
            expected = (
                resample_abs_pos_embed(weights[name], (4, 4))
                if model is VIT
                else resample_pos_embed(weights[name], *grid)
            )
            torch.testing.assert_close(own[name], expected)
            weights[name] = own[name]
    changed = {name for name in weights if not torch.equal(own[name].view(-1)[:10], weights[name].view(-1)[:10])}
    heads = {"head.weight", "head.fc.weight"} & weights.keys()  # all biases are 0
    assert changed == (heads if classes == 12 else set())


@pytest.mark.parametrize("model", [[], RESNAS, VIT, CASTLED_PIT], ids=["as_vit", "vit_resnas", "timm", "castled"])
def test_channels_are_adapted(model: list[str], tmp_path: Path) -> None:
    for channels, others in ((1, 3), (3, 1)):
        path = tmp_path / f"{channels}.safetensors"
        size = ["--img-size", "32"]
        weights = write(path, *model, *size, "--in-chans", str(channels))
        new = prepare(*model, *size, "--in-chans", str(others), "--pretrained-path", str(path)).model
        (stem,) = (name for name, tensor in new.state_dict().items() if tensor.shape != weights[name].shape)
        torch.testing.assert_close(new.get_parameter(stem).sum(1), weights[stem].sum(1))
        assert_loaded(new, weights, but=(stem,))


@pytest.mark.parametrize("model", [CASTLED_VIT, CASTLED_PIT], ids=["scaled_vit", "scaled_pit"])
@pytest.mark.parametrize("classes", [10, 12])
def test_castled_weights_stay_castled(model: list[str], classes: int, hub: Path, tmp_path: Path) -> None:
    """Gains and convolutions are loaded, from a file as well as from a hub."""
    castled = prepare(*model, "--img-size", "32", "--seed", "7").model
    for parameter in castled.parameters():
        nn.init.normal_(parameter)
    timm.models.save_for_hf(castled, str(tmp_path / "export"), safe_serialization=True)
    cache_folder(hub, "me/castled", tmp_path / "export")
    for path in ("hf-hub:me/castled", str(tmp_path / "export")):
        argv = [*model, "--img-size", "32", "--num-classes", str(classes), "--pretrained-path", path]
        assert_loaded(prepare(*argv).model, castled.state_dict(), but=("head.",) if classes == 12 else ())


@pytest.mark.parametrize("classes", [10, 12])
def test_weights_in_the_authors_layout(classes: int, tmp_path: Path) -> None:
    """The classifier goes by another name there."""
    ours = write(tmp_path / "ours.safetensors")
    names = [
        (r"^pos_embed", "absolute_pos_embed"),
        (r"^stages\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample."),
        (r"^stages\.", "layers."),
        (r"\.norm2\.", ".mlps.0.0."),
        (r"\.mlp\.", ".mlps.0.1."),
        (r"^head\.pre_logits\.fc\.", "head.0."),
        (r"^head\.fc\.", "head.2."),
    ]
    theirs = dict(ours)
    for pattern, name in names:
        theirs = {re.sub(pattern, name, key): value for key, value in theirs.items()}
    assert not {"head.fc.weight", "pos_embed"} & theirs.keys()
    torch.save({"model": theirs}, tmp_path / "theirs.pth")
    model = prepare("--num-classes", str(classes), "--pretrained-path", str(tmp_path / "theirs.pth")).model
    assert_loaded(model, ours, but=("head.fc.",) if classes == 12 else ())


@pytest.mark.parametrize("model", [[], VIT, CASTLED_VIT], ids=["ours", "timm", "castled"])
@pytest.mark.parametrize("classes", [10, 12])
@pytest.mark.parametrize("change", ["lacks", "wider", "deeper"])
def test_weights_that_do_not_fit(
    model: list[str], classes: int, change: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """timm alone would load what fits, were the classes others."""
    path, size = tmp_path / "weights.safetensors", ["--img-size", "32"]
    weights = write(path, *model, *size)
    odd = next(name for name in weights if name.endswith("norm1.weight"))
    if change == "wider":
        weights[odd] = torch.zeros(3)
    elif change == "lacks":
        del weights[odd]
    else:
        weights["extra.weight"], odd = torch.zeros(3), "extra.weight"
    save_file(weights, path)
    argv = [*model, *size, "--num-classes", str(classes), "--pretrained-path", str(path), "--output", str(tmp_path)]
    message = refusal(capfd, *TINY, *argv)
    assert odd in message
    assert len(message) < 600


@pytest.mark.parametrize("model", [[], VIT], ids=["ours", "timm"])
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("content", [b"", b"no weights", None])
def test_files_without_weights(
    model: list[str], name: str, content: bytes | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    message = refusal(capfd, *TINY, *model, "--pretrained-path", str(path), "--output", str(tmp_path))
    words = "it must be a file, a folder with" if content is None else "damaged or holds no weights"
    assert f"--pretrained-path is {str(path)!r}; " in message
    assert words in message


def test_sources_that_contradict_or_hold_nothing(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capfd, *TINY, "--pretrained-path", str(tmp_path), "--output", str(tmp_path))
    assert f"--pretrained-path is {str(tmp_path)!r}; it must be a file, a folder with model.safetensors" in message
    folder = f"local-dir:{finished / 'export'}"
    message = refusal(capfd, "--model", folder, "--pretrained-path", str(finished / "export"))
    assert "has weights of its own, give one of them" in message
    copytree(finished / "export", tmp_path / "export")
    (tmp_path / "export" / "model.safetensors").write_bytes(b"no weights")
    message = refusal(capfd, "--model", f"local-dir:{tmp_path / 'export'}", "--in-chans", "1")
    assert f"cannot build --model 'local-dir:{tmp_path / 'export'}'" in message
    assert "'resnet18'" in refusal(capfd, "--model", "resnet18", "--pretrained-path", str(finished / "export"))


DEIT_FILE = "https://huggingface.co/timm/deit_tiny_patch16_224.fb_in1k/resolve/main/model.safetensors"


@pytest.mark.parametrize(
    "argv, words",
    [
        ([*DEIT, "--pretrained"], [DEIT_FILE, "--pretrained-path FILE", "'castling_deit_tiny_patch16_224'"]),
        (split("--model deit_tiny_patch16_224 --model-kwargs {} --pretrained"), [DEIT_FILE, "--pretrained-path FILE"]),
        (
            split("--model castled --model-kwargs {base:\\ deit_tiny_patch16_224} --pretrained"),
            [DEIT_FILE, "--pretrained-path FILE", "'castled'"],
        ),
        (
            split("--model hf-hub:org/name --model-kwargs {}"),
            ["https://huggingface.co/org/name", "config.json and model.safetensors", "--model local-dir:FOLDER"],
        ),
        (split("--pretrained-path hf-hub:org/name"), ["https://huggingface.co/org/name", "--pretrained-path FOLDER"]),
        (
            split("--kd-model-name deit_tiny_patch16_224"),
            [DEIT_FILE, "--kd-pretrained-path FILE", "--kd-model-name 'deit_tiny_patch16_224'"],
        ),
        (split("--kd-model-name hf-hub:org/name"), ["https://huggingface.co/org/name", "--kd-model-name local-dir:"]),
    ],
)
def test_without_a_network_it_says_what_to_fetch(
    argv: list[str], words: list[str], hub: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capfd, *TINY, *argv, "--output", str(tmp_path))
    assert all(word in message for word in (*words, "cannot be downloaded")), message


# Freezing -----------------------------------------------------------------------------------------------------------

FREEZE = {
    "stem": ("--freeze stem", r"patch_embed|pos_embed"),
    "backbone": ("--freeze backbone --model-ema --model-ema-decay 0.9 --drop-path 0.5", r"(?!head\.fc\.)"),
    "modules": ("--freeze stages.0 stages.1.blocks.0", r"stages\.0\.|stages\.1\.blocks\.0\."),
    "layer_decay": ("--freeze stem stages.0 --layer-decay 0.7", r"patch_embed|pos_embed|stages\.0\."),
    "drop": ("--freeze stages --drop-path 0.5 --drop 0.1 --clip-grad 1", r"stages\."),
    "agc": ("--freeze stem --clip-grad 0.1 --clip-mode agc --grad-checkpointing", r"patch_embed|pos_embed"),
    "tokens": ("--freeze stages.0 --progressive-tokenization --phases [[0.5,4],[1,2]]", r"stages\.0\."),
}


@pytest.mark.parametrize("options, frozen", FREEZE.values(), ids=FREEZE)
def test_frozen_parts_do_not_change(options: str, frozen: str, finished: Path, tmp_path: Path) -> None:
    argv = ["--pretrained-path", str(finished / "export"), *split("--epochs 2"), *split(options)]
    before = prepare(*argv).model.state_dict()
    history = train.main([*TINY, *argv, "--output", str(tmp_path)])
    state = torch.load(tmp_path / "as_vit" / "last.pth.tar", weights_only=True)
    for weights in (state["state_dict"], state.get("state_dict_ema", state["state_dict"])):
        same = {name for name in before if torch.equal(before[name], weights[name])}
        assert same == {name for name in before if re.match(frozen, name)}
    assert history[1]["eval_loss"] < history[0]["eval_loss"] or history[1]["stride"] == 2


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "vit_resnas", "as_vit"])
def test_a_frozen_backbone_computes_as_in_evaluation(name: str) -> None:
    kwargs = CHEAP.get(name, {"img_size": 64} if name == "test_vit" else {}) | {"num_classes": 10}
    if name != "test_resnet":
        kwargs |= {"drop_path_rate": 0.5, "pos_drop_rate": 0.5}
    model = timm.create_model(name, **kwargs)
    freeze(model, ["backbone"])
    images = torch.randn(4, 3, 64, 64)
    expected = model.eval().forward_features(images)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    hold_still(model)
    assert model.training
    assert torch.equal(model.forward_features(images), expected)
    model(images).sum().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    classifier = model.pretrained_cfg["classifier"]
    assert trained == {f"{classifier}.weight", f"{classifier}.bias"}


def test_a_linear_probe_trains_all_heads() -> None:
    for second in ("patch_head", "distilled"):
        model = timm.create_model("vit_resnas", **CHEAP["vit_resnas"], **{second: True})
        freeze(model, ["backbone"])
        trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == {"head", "head_dist" if second == "distilled" else second}


@pytest.mark.parametrize(
    "parts, words",
    [
        ("nosuch", "--freeze is 'nosuch'; allowed is stem, backbone or the name of a module"),
        ("stage", "--freeze is 'stage'; allowed"),
        ("backbone head", "--freeze is backbone head; it leaves nothing to train"),
    ],
)
def test_what_cannot_be_frozen(parts: str, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert words in refusal(capfd, *TINY, "--freeze", *split(parts), "--output", str(tmp_path))
