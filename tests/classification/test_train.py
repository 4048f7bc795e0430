"""Training: it learns, its files are complete and others can read them, and timm's options do their work."""

import csv
from pathlib import Path
from shlex import split

import numpy as np
import pytest
import timm
import torch
import train
from PIL import Image
from runs import SCRIPTS, TINY

EXTRAS = {
    "mixup": "--mixup 0.8 --cutmix 1 --mixup-off-epoch 1",
    "bce_mixup": "--mixup 0.8 --bce-loss --bce-target-thresh 0.2",
    "augment": "--aa rand-m9-mstd0.5-inc1 --in-chans 3 --reprob 0.5 --remode pixel",
    "no_aug": "--no-aug",
    "accumulate_clip": "--grad-accum-steps 3 --clip-grad 1",
    "agc": "--clip-grad 0.02 --clip-mode agc",
    "bfloat16": "--amp --amp-dtype bfloat16",
    "float16": "--amp --amp-dtype float16 --clip-grad 1",
    "layer_decay": "--layer-decay 0.7 --opt-betas 0.9 0.95",
    "sgd_step": "--opt sgd --lr 0.1 --sched step --decay-epochs 1",
    "channels_last": "--channels-last --model test_resnet --model-kwargs {} --in-chans 3",
    "checkpointing": "--grad-checkpointing --drop-path 0.1",
    "workers": "--workers 2",
    "cooldown": "--sched-on-updates false --cooldown-epochs 1",
}


def read_csv(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_leaves_a_complete_folder(finished):
    rows = read_csv(finished / "summary.csv")
    assert [int(row["epoch"]) for row in rows] == list(range(6))
    assert [int(row["stride"]) for row in rows] == [8, 8, 4, 4, 2, 2]
    assert float(rows[-1]["top1"]) > 25  # chance is 10; it has had two epochs at this stride
    assert {path.name for path in finished.iterdir()} == {
        "args.yaml",
        "best.pth.tar",
        "curves.png",
        "export",
        "last.pth.tar",
        "summary.csv",
    }
    assert Image.open(finished / "curves.png").size[0] > 1000


def test_learns_digits(tmp_path):
    model = "--model-kwargs.genotype 4,1,2,1|2,1,2,1|2,1,2,1|2,1,2,1|16,16 --model-kwargs.stem_stride 4 --img-size 32"
    history = train.main([*TINY, "--output", str(tmp_path), "--epochs", "6", *split(model)])
    assert history[-1]["top1"] > 85


def test_best_is_from_the_last_phase(finished):
    best = torch.load(finished / "best.pth.tar", weights_only=True)
    rows = read_csv(finished / "summary.csv")
    assert best["epoch"] in (4, 5)
    assert best["metric"] == max(float(row["top1"]) for row in rows[4:])


def test_timm_reads_the_checkpoint(finished):
    state = torch.load(finished / "last.pth.tar", weights_only=True)
    assert {"state_dict", "state_dict_ema", "optimizer", "epoch", "arch", "metric"} <= set(state)
    model = timm.create_model(state["arch"], **state["model_args"], checkpoint_path=finished / "last.pth.tar")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state["state_dict_ema"][name])
    timm.models.load_checkpoint(model, str(finished / "last.pth.tar"), use_ema=False)
    assert torch.equal(model.head.fc.weight, state["state_dict"]["head.fc.weight"])


def test_timm_reads_the_export(finished):
    best = torch.load(finished / "best.pth.tar", weights_only=True)
    model = timm.create_model(f"local-dir:{finished / 'export'}", pretrained=True)
    assert all(torch.equal(tensor, best["state_dict_ema"][name]) for name, tensor in model.state_dict().items())
    assert model.pretrained_cfg["input_size"] == (1, 16, 16)
    assert model.pretrained_cfg["mean"] == [0.305]


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS)
def test_options_work(extra, tmp_path):
    history = train.main([*TINY, "--output", str(tmp_path), "--epochs", "2", *split(extra)])
    assert len(history) == (3 if "--cooldown-epochs" in extra else 2)
    assert history[-1]["eval_loss"] < history[0]["eval_loss"]


def test_training_repeats_itself(tmp_path):
    states = []
    for name in "ab":
        train.main([*TINY, "--output", str(tmp_path), "--experiment", name, "--epochs", "1", "--mixup", "1"])
        states.append(torch.load(tmp_path / name / "last.pth.tar", weights_only=True)["state_dict"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_accumulation_equals_a_larger_batch(tmp_path):
    states = []
    for name, batch, steps in (("whole", "128", "1"), ("parts", "64", "2")):
        plain = split("--epochs 1 --no-aug --opt momentum --momentum 0 --smoothing 0")
        batches = ["--batch-size", batch, "--grad-accum-steps", steps]
        train.main([*TINY, "--output", str(tmp_path), "--experiment", name, *plain, *batches])
        states.append(torch.load(tmp_path / name / "last.pth.tar", weights_only=True))
    whole, parts = (state["state_dict"] for state in states)
    # 1437 images are 11 batches of 128 and 22 of 64, in the same order
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-4, atol=1e-6)


def test_loss_that_explodes_ends_with_one_sentence(tmp_path, capfd):
    with pytest.raises(SystemExit):
        train.main([*TINY, "--output", str(tmp_path), "--epochs", "2", "--opt", "sgd", "--lr", "1e30"])
    assert "the loss became" in capfd.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.glob("*/last.pth.tar"))


def write_weights(kind: str, path: Path, weights: dict[str, torch.Tensor]) -> Path:
    """Writes one of the files that people give as weights by mistake."""
    head = "head.fc.weight"
    contents = {
        "list": [1, 2],
        "foreign": {"some.weight": torch.zeros(2)},
        "partial": {name: tensor for name, tensor in weights.items() if name != head},
        "other classes": weights | {head: torch.zeros(3, weights[head].shape[1]), "head.fc.bias": torch.zeros(3)},
    }
    if kind in contents:
        torch.save(contents[kind], path)
    elif kind == "safetensors":
        path = path.with_suffix(".safetensors")
        path.write_bytes(b"no tensors")
    elif kind != "missing":
        path.write_bytes(b"no tensors" if kind == "text" else b"")
    return path


@pytest.mark.parametrize(
    "kind, words",
    [
        ("text", "damaged or holds no weights"),
        ("empty", "damaged or holds no weights"),
        ("list", "damaged or holds no weights"),
        ("safetensors", "damaged or holds no weights"),
        ("missing", "there is no checkpoint"),
        ("foreign", "which the file lacks"),
        ("partial", "head.fc.weight, which the file lacks"),
        ("other classes", "head.fc.bias of shape (3,) where the model has (10,)"),
    ],
)
def test_weights_that_do_not_fit(
    kind: str, words: str, finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = torch.load(finished / "last.pth.tar", weights_only=True)["state_dict"]
    path = write_weights(kind, tmp_path / "weights.pth", weights)
    with pytest.raises(SystemExit) as stopped:
        train.main([*TINY, "--output", str(tmp_path), "--initial-checkpoint", str(path)])
    message = capfd.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2
    assert str(path) in message
    assert words in message


def test_starts_from_weights(finished: Path, tmp_path: Path) -> None:
    start = ["--initial-checkpoint", str(finished / "best.pth.tar"), "--lr", "1e-6", "--warmup-epochs", "0"]
    history = train.main([*TINY, "--output", str(tmp_path), "--epochs", "1", *start])
    best = torch.load(finished / "best.pth.tar", weights_only=True)  # its averaged weights are what is loaded
    assert history[0]["top1"] == pytest.approx(best["metric"], abs=3)


@pytest.mark.slow
def test_compile(tmp_path):
    history = train.main([*TINY, "--output", str(tmp_path), "--epochs", "2", "--compile"])
    assert history[-1]["eval_loss"] < history[0]["eval_loss"]


@pytest.mark.slow
def test_digits_demo(tmp_path):
    recipe = SCRIPTS / "recipes" / "digits_demo.yaml"
    history = train.main(["--config", str(recipe), "--output", str(tmp_path)])
    assert history[-1]["top1"] >= 95


@pytest.fixture
def image_folder(tmp_path):
    """Two classes of 16 x 16 images, dark and bright, in folders as ImageNet's."""
    random = np.random.default_rng(0)
    for part, count in (("train", 40), ("val", 10)):
        for label, level in (("dark", 40), ("bright", 200)):
            folder = tmp_path / "images" / part / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.normal(level, 20, (16, 16, 3)).clip(0, 255).astype("uint8")
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "images"


def test_image_folder(image_folder, tmp_path):
    data = ["--in-chans", "3", "--batch-size", "8", "--data-dir", str(image_folder)]
    history = train.main([*TINY, *data, "--epochs", "4", "--output", str(tmp_path)])
    assert history[-1]["top1"] == 100
    state = torch.load(tmp_path / "as_vit" / "last.pth.tar", weights_only=True)
    assert state["model_args"]["num_classes"] == 2


def test_image_folder_without_validation(image_folder, tmp_path, capfd):
    (image_folder / "val").rename(image_folder / "test")
    with pytest.raises(SystemExit):
        train.main([*TINY, "--data-dir", str(image_folder), "--output", str(tmp_path)])
    assert "'validation'" in capfd.readouterr().err.splitlines()[-1]


def test_image_folder_with_other_classes(image_folder, tmp_path, capfd):
    (image_folder / "val" / "dark").rename(image_folder / "val" / "dim")
    with pytest.raises(SystemExit):
        train.main([*TINY, "--data-dir", str(image_folder), "--output", str(tmp_path)])
    assert "['dark', 'dim']" in capfd.readouterr().err.splitlines()[-1]
