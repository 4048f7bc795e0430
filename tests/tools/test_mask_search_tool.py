"""tools/mask_search.py on real digits, briefly: its answer and files, killed and continued, plain ViTs, mistakes."""

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from shlex import split
from typing import Any

import mask_epochs
import mask_search
import pytest
import supernet_training
import timm
import torch
import train
import yaml
from mask_options import MaskSearchOptions
from mask_run import make_run
from parsing import parse_options
from supernet_run import open_run
from test_evolve import SPACE

from asvit_plugin.costs import macs, params

DATA = split(
    "--in-chans 1 --crop-pct 1 --workers 0 --batch-size 32 --hflip 0 --color-jitter 0 --scale 0.8 1 --lr 4e-3 "
    "--warmup-epochs 1 --sched-on-updates --holdout per-class 20 --samples 4"
)
RUN = split(
    "--img-size 56 --epochs 4 --gates-from 0.4 --macs 1.25e6 --budget-low 1.1e6 --clip-grad 0.1 "
    "--model-kwargs.global_pool avg --supernet-mode slices"
)
VIT = split(
    "--model scaled_vit --model-kwargs '{depth: 3, embed_dim: 32, num_heads: 2, head_dim: 16, patch_size: 8}' "
    "--img-size 32 --epochs 2 --gates-from 0.4"
)
FORK = multiprocessing.get_context("fork")  # at once, and with all that is imported


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The option for a space of 108 nets, with what goes with all its searches here."""
    path = tmp_path_factory.mktemp("space") / "tiny_nets.yaml"
    path.write_text(SPACE)
    return ["--supernet", str(path), *DATA, *RUN]


@pytest.fixture(scope="module")
def searched(space: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of a finished search."""
    output = tmp_path_factory.mktemp("searched")
    mask_search.main([*space, "--output", str(output), "--experiment", "run"])
    return output / "run"


def outcome(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What a search found, without times."""
    result = json.loads((folder / "result.json").read_text())
    timed = ("seconds", "images_per_second", "processor_seconds")
    return result["nets"], [{name: row[name] for name in row if name not in timed} for row in result["history"]]


def test_answer(searched: Path) -> None:
    nets, history = outcome(searched)
    assert 2 <= len(nets) <= 5
    assert {net["how"] for net in nets} <= {"argmax", "moved", "sampled"}
    assert all(1.1e6 <= net["macs"] <= 1.25e6 for net in nets)
    assert nets[0]["top1"] == max(net["top1"] for net in nets)
    uniform = {name: [1 / len(odds)] * len(odds) for name, odds in history[0]["gates"].items()}
    for name, odds in uniform.items():
        assert history[1]["gates"][name] == pytest.approx(odds)
        assert history[3]["gates"][name] != pytest.approx(odds, rel=1e-2)
    assert [row["gate_loss"] is None for row in history] == [True, True, False, False]
    for picture in ("result.png", "gates.png"):
        assert (searched / picture).stat().st_size > 10_000


def test_the_best_net_stands_alone_with_its_weights(searched: Path, space: list[str]) -> None:
    best = outcome(searched)[0][0]
    model = timm.create_model(f"local-dir:{searched / 'best'}", pretrained=True)
    assert (macs(model, (1, 56, 56)), params(model)) == (best["macs"], best["params"])
    run = make_run(parse_options(MaskSearchOptions, space))
    assert run.judge(model)["top1"] == best["top1"]


def test_weights_and_gates_learn_from_different_images(space: list[str]) -> None:
    run = make_run(parse_options(MaskSearchOptions, space))
    parts = [run.training.train_loader, run.gate_loader, run.training.eval_loader]
    images = [{file for file, _ in loader.dataset.reader.samples} for loader in parts]
    assert all(one.isdisjoint(other) for one, other in combinations(images, 2))
    sizes = [len(loader.dataset) for loader in parts]
    assert sum(sizes) == 1437
    assert sizes[1] == pytest.approx(0.2 * (sizes[0] + sizes[1]), abs=10)


def test_recipe_trains_the_net_on_all_images(searched: Path, tmp_path: Path) -> None:
    options = yaml.safe_load((searched / "best.yaml").read_text())
    assert not {"supernet", "holdout", "macs"} & options.keys()
    argv = ["--config", str(searched / "best.yaml"), "--output", str(tmp_path), "--epochs", "1"]
    argv += ["--tensorboard", "false", "--warmup-epochs", "0"]
    scratch = train.main([*argv, "--experiment", "scratch"])
    inherited = train.main([*argv, "--experiment", "inherited", "--pretrained-path", str(searched / "best")])
    assert inherited[0]["train_loss"] < scratch[0]["train_loss"]


def test_the_weights_are_also_a_supernet(searched: Path) -> None:
    run = open_run(searched / "last.pth.tar")
    assert run.supernet.networks.space.name == "tiny_nets"
    assert run.top1(run.supernet.extract(outcome(searched)[0][0]["choice"])) == outcome(searched)[0][0]["top1"]


def search_until_killed(argv: list[str], saved: int, moment: str) -> None:
    """As a process of its own, which is killed so many epochs later."""
    function, left = getattr(mask_epochs, moment), iter(range(saved))

    def kill_or_go_on(*args: Any) -> Any:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)

    setattr(mask_search if moment == "save" else mask_epochs, moment, kill_or_go_on)
    mask_search.main(argv)


@pytest.mark.parametrize(("moment", "kills"), [("save", [0, 1, 2]), ("teach_gates", [1])])
def test_killed_it_ends_as_if_undisturbed(
    space: list[str], searched: Path, tmp_path: Path, moment: str, kills: list[int]
) -> None:
    argv = [*space, "--output", str(tmp_path), "--experiment", "run"]
    for saved in kills:
        process = FORK.Process(target=search_until_killed, args=(argv, saved, moment))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    mask_search.main(argv)
    assert outcome(tmp_path / "run") == outcome(searched)
    states = [torch.load(each / "last.pth.tar", weights_only=True) for each in (tmp_path / "run", searched)]
    for name, weight in states[0]["state_dict"].items():
        assert torch.equal(weight, states[1]["state_dict"][name])


def test_continued_it_computes_nets_as_before(
    space: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*space, "--supernet-mode", "auto", "--epochs", "2", "--samples", "0", "--output", str(tmp_path)]
    monkeypatch.setattr(supernet_training, "faster_mode", lambda *args: "slices")
    mask_search.main(argv)
    assert capsys.readouterr().out.count("nets of a step are computed with slices") == 1
    monkeypatch.setattr(supernet_training, "faster_mode", lambda *args: "masks")
    mask_search.main(argv)  # judges once more
    assert "nets of a step" not in capsys.readouterr().out
    checkpoint = tmp_path / "masks_tiny_nets" / "last.pth.tar"
    assert torch.load(checkpoint, weights_only=True)["supernet_mode"] == "slices"
    run = make_run(parse_options(MaskSearchOptions, argv))
    mask_epochs.restore(run, checkpoint)
    assert run.training.model.mode == "slices"


def test_plain_vit_with_its_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.main([*VIT[:-2], *DATA[:-2], "--output", str(tmp_path), "--experiment", "whole", "--tensorboard", "false"])
    capsys.readouterr()
    argv = [*VIT, *DATA, "--decide", "embed_dim", "depth", "num_heads", "mlp_hidden", "--params", "2.2e4"]
    argv += ["--pretrained-path", str(tmp_path / "whole" / "export"), "--output", str(tmp_path), "--experiment", "run"]
    mask_search.main([*argv, "--budget-low", "1.8e4", "--embed-dims", "24", "32"])
    nets, _ = outcome(tmp_path / "run")
    model = timm.create_model(f"local-dir:{tmp_path / 'run' / 'best'}", pretrained=True)
    assert params(model) == nets[0]["params"] <= 2.2e4
    assert model.embed_dim in (24, 32)
    argv = ["--config", str(tmp_path / "run" / "best.yaml"), "--pretrained-path", str(tmp_path / "run" / "best")]
    train.main([*argv, "--output", str(tmp_path), "--epochs", "1", "--warmup-epochs", "0", "--tensorboard", "false"])


def test_the_recipe_keeps_the_preprocessing_of_the_searched_model(tmp_path: Path) -> None:
    """A scaled_vit has ImageNet's mean and deviation, its source may have others."""
    train.main(
        [*VIT[:-4], *DATA[:-2], "--epochs", "1", "--warmup-epochs", "0", "--mean", "0.2", "--std", "0.7"]
        + ["--output", str(tmp_path), "--experiment", "whole", "--tensorboard", "false"]
    )
    argv = [*VIT, *DATA, "--samples", "0", "--decide", "mlp_hidden", "--params", "4e4", "--budget-low", "2.3e4"]
    argv += ["--pretrained-path", str(tmp_path / "whole" / "export"), "--mean", "0.2", "--std", "0.7"]
    mask_search.main([*argv, "--output", str(tmp_path), "--experiment", "run"])
    recipe = yaml.safe_load((tmp_path / "run" / "best.yaml").read_text())
    assert (recipe["mean"], recipe["std"], recipe["crop_pct"]) == ([0.2], [0.7], 1.0)


def test_token_strides_within_a_latency(tmp_path: Path) -> None:
    argv = [*VIT, *DATA, "--decide", "embed_dim", "token_stride", "--embed-dims", "16", "--token-strides", "2"]
    argv += ["--latency", "1e3", "--budget-low", "1e-3", "--output", str(tmp_path), "--experiment", "run"]
    mask_search.main(argv)
    nets, history = outcome(tmp_path / "run")
    assert {net["choice"]["token_stride"] for net in nets} <= {1, 2}
    assert set(history[-1]["gates"]) == {"embed_dim", "token_stride"}
    assert all(0 < net["latency (s)"] < 1 for net in nets)
    assert nets[0]["measured_latency"] > 0


def refusal(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        mask_search.main(argv)
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--macs 1e3", "budget is 975 to 1000 macs, which no net has: those of space 'masked_vit' reach from"),
        ("--macs 1e12 --budget-low 1e11", "no net has"),
        ("", "there must be one budget: --macs, --params or --latency"),
        ("--macs 1e6 --params 1e6", "there must be one budget"),
        ("--macs 1e6 --supernet digits_vit_resnas", "there must be one net"),
        ("--macs 1e6 --model xcit_tiny_12_p16_224 --model-kwargs {}", "gates cannot mask this Xcit"),
        ("--macs 1e6 --decide kernels", "--decide is ['kernels']; allowed is some of embed_dim"),
        (
            "--macs 1e6 --decide depth --embed-dims 16",
            "--embed-dims is given; it needs embed_dim in --decide ['depth']",
        ),
        ("--macs 1e6 --decide depth --token-strides 2", "--token-strides is given; it needs token_stride in --decide"),
        ("--macs 200001 --budget-low 200000", "no net is found within the budget of"),
        ("--macs 1e6 --embed-dims 999", "options of embed_dim have 999"),
        ("--macs 3e5 --gates-from 0.9", "gates_from is 0.9; of 2 epochs that leaves none for gates"),
        ("--macs 1e6 --gate-share 1", "--gate-share is 1.0; allowed is between 0 and 1"),
        (
            "--macs 1e6 --gate-share 0.001 --batch-size 64",
            "--gate-share is 0.001, which is 10 images; it must be",
        ),
        ("--macs 1e6 --temperature 0.1", "last_temperature is 0.35; it must not be above temperature, 0.1"),
        ("--latency 1 --budget-low 2", "budget of --latency has low 2 and high 1; high must be positive"),
        ("--macs 1e6 --gate-passes 0", "--gate-passes is 0; allowed is a whole number from 1 up"),
        ("--macs 1e6 --model-ema", "--model-ema is True; it does not go with a search by masks"),
        ("--macs 1e6 --amp", "--amp-dtype is 'float16'"),
        ("--macs -1", "--macs is -1.0; allowed is a number above 0"),
    ],
)
def test_refuses(more: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refusal(capsys, [*VIT, *DATA, *split(more), "--output", str(tmp_path)])


def test_refuses_to_go_on_with_another_search(
    space: list[str], searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--output", str(searched.parent), "--experiment", "run"]
    mask_search.main([*space, *where, "--samples", "1"])  # judges others, and learns nothing
    assert len(outcome(searched)[0]) == 2
    assert "--gate-lr was 0.05 and is 0.5" in refusal(capsys, [*space, *where, "--gate-lr", "0.5"])
    assert "--lr was" in refusal(capsys, [*space, *where, "--lr", "1"])
    (tmp_path / "run").mkdir()
    state = torch.load(searched / "last.pth.tar", weights_only=True)
    torch.save({**state, "mask_search": None}, tmp_path / "run" / "last.pth.tar")
    where = ["--output", str(tmp_path), "--experiment", "run"]
    assert refusal(capsys, [*space, *where]).endswith("is of no search by masks; name another --experiment")
