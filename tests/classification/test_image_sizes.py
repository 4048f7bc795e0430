"""Images of several sizes, of whole tokens, and in which order: batches, what they save, and what is refused."""

import json
from pathlib import Path
from shlex import split

import engine
import pytest
import timm
import torch
import train
import validate
from assembly import make_process, make_training
from options import TrainOptions
from parsing import parse_options
from plugin_models import CHEAP
from refusals import refusal
from runs import TINY
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler

from asvit_plugin.costs import macs

PROGRESSIVE = [*TINY, *split("--epochs 2 --train-img-sizes 8 16 --train-size-schedule progressive")]
NEAREST = split("--train-size-schedule-spread 0 --train-size-random-mix 0")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of all training batches of the runs in this test."""
    shapes: list[tuple[int, ...]] = []
    loss = engine._backward

    def spy(training: engine.Training, images: torch.Tensor, *rest: object) -> torch.Tensor:
        shapes.append(tuple(images.shape))
        return loss(training, images, *rest)

    monkeypatch.setattr(engine, "_backward", spy)
    return shapes


def test_images_grow(seen: list[tuple[int, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = train.main([*PROGRESSIVE, *NEAREST, "--output", str(tmp_path)])
    assert seen == [(64, 1, 8, 8)] * 22 + [(64, 1, 16, 16)] * 22
    assert history[-1]["eval_loss"] < history[0]["eval_loss"]
    state = torch.load(tmp_path / "as_vit" / "last.pth.tar", weights_only=True)
    model = timm.create_model(state["arch"], **state["model_args"])
    cheap, full = (macs(model, (1, side, side)) for side in (8, 16))
    assert state["saved_macs"] == pytest.approx((full - cheap) / full / 2)
    assert f"{state['saved_macs']:.1%}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    ["--train-size-schedule constant", "--train-batch-sizes 128 32 --cooldown-epochs 1 --warmup-prefix"],
)
def test_savings_are_those_of_the_batches(options: str, seen: list[tuple[int, ...]], tmp_path: Path) -> None:
    train.main([*PROGRESSIVE, *split(options), "--output", str(tmp_path)])
    sizes = {shape[2:] for shape in seen}
    assert sizes == {(8, 8), (16, 16)}
    if "batch-sizes" in options:
        assert {(shape[0], shape[2]) for shape in seen} == {(128, 8), (32, 16)}
    state = torch.load(tmp_path / "as_vit" / "last.pth.tar", weights_only=True)
    assert len(state["history"]) == (4 if "cooldown" in options else 2)
    model = timm.create_model(state["arch"], **state["model_args"])
    costs = {side: macs(model, (1, side, side)) for side in (8, 16)}
    spent = sum(shape[0] * costs[shape[2]] for shape in seen)
    full = sum(shape[0] for shape in seen) * costs[16]
    assert state["saved_macs"] == pytest.approx(1 - spent / full)


def test_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: list[tuple[int, ...]]) -> None:
    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    run = [*PROGRESSIVE, "--epochs", "3", "--output", str(tmp_path), "--experiment"]
    train.main([*run, "whole"])
    whole = seen.copy()
    seen.clear()
    monkeypatch.setattr(train.Reporter, "add", stop)
    for _ in range(2):
        with pytest.raises(Stop):
            train.main([*run, "parts", "--resume", "auto"])
    monkeypatch.setattr(train.Reporter, "add", lambda *_: None)
    train.main([*run, "parts", "--resume", "auto"])
    assert seen == whole
    states = [torch.load(tmp_path / name / "last.pth.tar", weights_only=True) for name in ("whole", "parts")]
    assert all(torch.equal(tensor, states[1]["state_dict"][name]) for name, tensor in states[0]["state_dict"].items())


VIT = "--model test_vit --model-kwargs {dynamic_img_size:\\ false} --img-size 32"


@pytest.mark.parametrize(
    "options, words",
    [
        (f"{VIT} --train-img-sizes 16 32", "--train-img-sizes is [16, 32]; this model takes 32 only"),
        ("--train-img-sizes 16 --train-size-schedule progressive", "`progressive` needs two or more sizes"),
        ("--train-size-schedule progressive", "--train-size-schedule is 'progressive'; it needs --train-img-sizes"),
        ("--train-batch-sizes 16", "--train-batch-sizes is [16]; it needs --train-img-sizes"),
        ("--train-img-sizes 8 16 --train-batch-sizes 64", "differ in length; give as many of both"),
        ("--train-img-sizes 8 16 --phases [[0.5,4],[1,2]]", "--progressive-tokenization are both given"),
        ("--train-img-sizes 8 16 --progressive-tokenization", "--progressive-tokenization are both given"),
        ("--train-img-sizes 8 16 --switch-token-mix --mixup 1", "--switch-token-mix are both given"),
        ("--train-img-sizes 0 16", "--train-img-sizes is [0, 16]; allowed is whole numbers from 1 up"),
        ("--train-img-sizes 8 16 --train-batch-sizes 9999 9999", "batch sizes"),
    ],
)
def test_sizes_that_do_not_fit(options: str, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert words in refusal(capfd, *TINY, "--epochs", "2", *split(options), "--output", str(tmp_path))


# Whole tokens ---------------------------------------------------------------------------------------------------------

DEFINITION = CHEAP["vit_resnas"]["network_def"].replace("(4, 16)", "(0, 16)", 1)
PATCHES = ["--model", "vit_resnas", "--model-kwargs", json.dumps({"network_def": DEFINITION, "patch_head": True})]
SWITCHED = split("--switch-token-mix --mixup 0.8 --cutmix 1 --epochs 2")


@pytest.mark.parametrize("size, grid", [(56, (1, 1)), (112, (2, 2))])
def test_patches_learn_their_classes(size: int, grid: tuple[int, int], tmp_path: Path) -> None:
    argv = [*TINY, *PATCHES, *SWITCHED, "--img-size", str(size), "--output", str(tmp_path)]
    training = make_training(parse_options(TrainOptions, argv), make_process("cpu"))
    assert training.mixup.grid_size == grid
    _, targets = training.mixup(torch.randn(4, 1, size, size), torch.arange(4))
    assert targets[1].shape == (4, grid[0] * grid[1], 10)
    if size == 112:
        return
    history = train.main(argv)
    assert history[1]["train_loss"] < history[0]["train_loss"]
    folder = tmp_path / "vit_resnas"
    checkpoint = torch.load(folder / "last.pth.tar", weights_only=True)["state_dict"]
    fresh = training.model.state_dict()
    assert not torch.equal(checkpoint["patch_head.weight"], fresh["patch_head.weight"])
    assert validate.main(["--checkpoint", str(folder / "last.pth.tar")])["top1"] == history[1]["top1"]
    export = ["--model", f"local-dir:{folder / 'export'}", "--in-chans", "1", "--workers", "0"]
    best = torch.load(folder / "best.pth.tar", weights_only=True)["metric"]
    assert validate.main(export)["top1"] == best


def test_whole_tokens_without_a_patch_head(tmp_path: Path) -> None:
    argv = [*TINY, *SWITCHED, "--mixup-off-epoch", "1"]
    training = make_training(parse_options(TrainOptions, argv), make_process("cpu"))
    assert training.mixup.grid_size == (1, 1)
    history = train.main([*argv, "--output", str(tmp_path)])
    assert history[1]["eval_loss"] < history[0]["eval_loss"]


@pytest.mark.parametrize("mixing", ["", "--mixup 0.8 --cutmix 1"])
def test_a_patch_head_with_targets_of_images(mixing: str, tmp_path: Path) -> None:
    argv = [*TINY, *PATCHES, "--img-size", "56", "--epochs", "1", *split(mixing), "--output", str(tmp_path)]
    history = train.main(argv)
    assert history[0]["train_loss"] > 2 * torch.tensor(10.0).log() - 1  # of images and of patches


@pytest.mark.parametrize(
    "argv, words",
    [
        ([*PATCHES, "--img-size", "64", *SWITCHED], "--img-size is 64; --switch-token-mix needs a multiple of 56"),
        ([*PATCHES, "--img-size", "28", *SWITCHED], "--img-size is 28; --switch-token-mix needs a multiple of 56"),
        ([*PATCHES, "--img-size", "56", "--bce-loss"], "--bce-loss is on; a model with a patch head"),
        ([*SWITCHED, "--bce-loss"], "--bce-loss and --switch-token-mix are both on"),
        (["--switch-token-mix"], "--switch-token-mix is on; it needs --mixup or --cutmix above 0"),
    ],
)
def test_mixing_that_does_not_fit(
    argv: list[str], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert words in refusal(capfd, *TINY, "--epochs", "1", *argv, "--output", str(tmp_path))


# Order ----------------------------------------------------------------------------------------------------------------


def order(seed: int, epoch: int, processes: int = 1) -> list[int]:
    """Indices of an epoch's images, those of several processes taken in turn."""
    data = torch.arange(12)
    samplers = [DistributedSampler(data, processes, rank) for rank in range(processes)]
    loaders = [
        DataLoader(data, batch_sampler=BatchSampler(sampler, 2, drop_last=True))
        for sampler in (samplers if processes > 1 else [RandomSampler(data)])
    ]
    for loader in loaders:
        torch.manual_seed(len(loader))  # processes and runs differ in what they drew before
        engine.order_images(loader, seed, epoch)
    return [int(index) for images in zip(*(loader.batch_sampler.sampler for loader in loaders)) for index in images]


def test_the_order_of_images_is_a_function_of_seed_and_epoch() -> None:
    orders = {(seed, epoch): order(seed, epoch) for seed in (0, 42) for epoch in range(3)}
    assert len({tuple(each) for each in orders.values()}) == len(orders)
    for (seed, epoch), images in orders.items():
        assert sorted(images) == list(range(12))
        assert images == order(seed, epoch) == order(seed, epoch, processes=2) == order(seed, epoch, processes=3)
