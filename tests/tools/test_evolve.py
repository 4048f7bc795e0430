"""tools/evolve.py on a real supernet, briefly trained: its answer and files, killed and continued, its mistakes."""

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from shlex import split

import evolve
import pytest
import timm
import torch
import train
import yaml
from evolution_report import recipe
from supernet_run import SupernetRun, open_run

from asvit_plugin.costs import macs, params

SPACE = """
name: tiny_nets
model: vit_resnas
decisions: {dim: [32, 24, 16], heads: [3, 2, 1], mlp_1: [64, 32], mlp_2: [64, 32, 16], exists: [1, 0]}
arguments:
  network_def: "((5, {dim}, 8), (1, ({dim}, {heads}, 8), ({dim}, {mlp_1}), 1),
    (1, ({dim}, {heads}, 8), ({dim}, {mlp_2}), {exists}), (2, {dim}, 10))"
"""
RUN = split(
    "--in-chans 1 --img-size 56 --crop-pct 1 --workers 0 --batch-size 32 --hflip 0 --color-jitter 0 --scale 0.8 1 "
    "--lr 4e-3 --warmup-epochs 1 --sched-on-updates --tensorboard false --epochs 4 --examples-per-arch 8 "
    "--supernet-warmup-epochs 1 --supernet-mode masks --holdout per-class 10 --model-kwargs.global_pool avg"
)
FORK = multiprocessing.get_context("fork")  # at once, and with the checkpoint that is there
SMALL = split("--budget 1.25e6 --low 1.15e6 --population 6 --parents 3 --mutations 2 --crossovers 2 --iterations 3")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a supernet of 108 nets."""
    folder = tmp_path_factory.mktemp("supernet")
    (folder / "tiny_nets.yaml").write_text(SPACE)
    train.main(["--supernet", str(folder / "tiny_nets.yaml"), *RUN, "--output", str(folder), "--experiment", "run"])
    return folder / "run" / "last.pth.tar"


def command(checkpoint: Path, output: Path, *more: str) -> list[str]:
    return ["--supernet", str(checkpoint), "--output", str(output), *(more or SMALL)]


def outcome(output: Path) -> list[tuple]:
    trials = json.loads((output / "result.json").read_text())["trials"]
    return [(trial["choice"], trial["values"], trial["macs"]) for trial in trials]


@pytest.fixture(scope="module")
def evolved(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of a finished evolution."""
    output = tmp_path_factory.mktemp("evolved")
    evolve.main(command(checkpoint, output))
    return output


def test_answer(checkpoint: Path, evolved: Path) -> None:
    result = json.loads((evolved / "result.json").read_text())
    assert len(result["trials"]) == 6 + 2 * 4
    assert all(1.15e6 <= trial["macs"] <= 1.25e6 for trial in result["trials"])
    best = result["best"]
    assert best["values"]["top1"] == max(trial["values"]["top1"] for trial in result["trials"])
    run = open_run(checkpoint)
    assert run.top1(run.supernet.extract(best["choice"])) == best["values"]["top1"]
    assert len(run.batches[0][1]) == 32  # kept in memory
    assert sum(len(labels) for _, labels in run.batches) == 100
    assert (evolved / "result.png").stat().st_size > 10_000


def test_the_best_net_stands_alone_with_inherited_weights(checkpoint: Path, evolved: Path) -> None:
    best = json.loads((evolved / "result.json").read_text())["best"]
    model = timm.create_model(f"local-dir:{evolved / 'best'}", pretrained=True)
    assert macs(model, (1, 56, 56)) == best["macs"]
    assert params(model) == best["params"]
    run = open_run(checkpoint)
    assert run.top1(model) == best["values"]["top1"]


def test_recipe_trains_it_on_all_images(evolved: Path, tmp_path: Path) -> None:
    options = yaml.safe_load((evolved / "best.yaml").read_text())
    assert "supernet" not in options
    assert "holdout" not in options
    argv = ["--config", str(evolved / "best.yaml"), "--output", str(tmp_path), "--epochs", "1"]
    scratch = train.main([*argv, "--experiment", "scratch"])
    inherited = train.main([*argv, "--experiment", "inherited", "--pretrained-path", str(evolved / "best")])
    assert inherited[0]["train_loss"] < scratch[0]["train_loss"]
    state = torch.load(tmp_path / "scratch" / "last.pth.tar", weights_only=True)
    assert state["arch"] == "vit_resnas"


def evolve_until_killed(argv: list[str], measured: int) -> None:
    """As a process of its own, which is killed when it judges a net after so many."""
    judge, left = SupernetRun.top1, iter(range(measured))

    def top1(run: SupernetRun, model: torch.nn.Module) -> float:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return judge(run, model)

    SupernetRun.top1 = top1
    evolve.main(argv)


@pytest.mark.parametrize("kills", [[0, 3, 4, 2], [7]], ids=["often", "once"])
def test_killed_it_ends_as_if_undisturbed(checkpoint: Path, evolved: Path, tmp_path: Path, kills: list[int]) -> None:
    argv = command(checkpoint, tmp_path)
    for measured in kills:
        process = FORK.Process(target=evolve_until_killed, args=(argv, measured))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    evolve.main(argv)
    assert outcome(tmp_path) == outcome(evolved)


def test_front_of_accuracy_and_cost(checkpoint: Path, tmp_path: Path) -> None:
    more = split("--sampler nsga2 --objectives top1 latency --steps 8")
    evolve.main(command(checkpoint, tmp_path, *more))
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(result["trials"]) == 8
    assert all(trial["values"]["latency"] > 0 for trial in result["trials"])
    fastest = min(trial["values"]["latency"] for trial in result["trials"])
    assert fastest in [net["values"]["latency"] for net in result["front"]]


def test_refitting_changes_what_nets_are_worth_and_can_be_repeated(checkpoint: Path) -> None:
    run = open_run(checkpoint)
    choice = run.supernet.networks.smallest_choice()
    before = run.top1(run.supernet.extract(choice))
    found = []
    for _ in range(2):
        model = run.supernet.extract(choice)
        weights = model.stages[0].blocks[0].mlp.fc1.weight.clone()
        run.refit(model, steps=30, lr=1e-2)
        assert torch.equal(model.stages[0].blocks[0].mlp.fc1.weight, weights)
        found.append(run.top1(model))
    assert found[0] == found[1] > before
    assert run.top1(run.supernet.extract(choice)) == before  # the supernet's own norms and head stay


def test_averaged_weights_count(checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    state["state_dict_ema"] = {name: torch.zeros_like(tensor) for name, tensor in state["state_dict"].items()}
    torch.save(state, tmp_path / "averaged.pth.tar")
    assert not any(weight.any() for weight in open_run(tmp_path / "averaged.pth.tar").supernet.parameters())


def test_recipe_keeps_the_runs_options(checkpoint: Path) -> None:
    run = open_run(checkpoint)
    net = {"network_def": str(run.supernet.networks.smallest)}
    options = recipe(net, run)
    assert (options["lr"], options["img_size"], options["in_chans"]) == (4e-3, 56, 1)
    assert options["model_kwargs"] == {"global_pool": "avg", **net}


def refusal(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        evolve.main(argv)
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--budget 1e3", "those of space 'tiny_nets' reach from"),
        ("--sampler nsga2 --objectives macs", "'top1' must be among them"),
        ("--objectives top1 macs --budget 1.2e6", "it takes a budget and 'top1' alone"),
        ("", "sampler is 'evolution' with budget None"),
        ("--budget 1.2e6 --parents 1", "parents is 1"),
        ("--budget 1.2e6 --refit-steps -1", "--refit-steps is -1; it must be at least 0"),
        ("--budget 1.2e6 --holdout per-class 900", "--holdout is per-class 900"),
        ("--budget 1.2e6 --space digits_vit_resnas", "name its file with --space"),
    ],
)
def test_refuses(checkpoint: Path, more: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--supernet", str(checkpoint), "--output", str(tmp_path), *split(more)]
    assert message in refusal(capsys, argv)


def test_refuses_a_study_of_another_supernet(
    checkpoint: Path, evolved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(checkpoint, weights_only=True)
    state["state_dict"]["norm.bias"] += 1
    torch.save(state, tmp_path / "other.pth.tar")
    message = refusal(capsys, command(tmp_path / "other.pth.tar", evolved))
    assert "was begun with weights" in message


def test_refuses_a_run_without_a_supernet(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(checkpoint, weights_only=True)
    del state["space"]
    torch.save(state, tmp_path / "plain.pth.tar")
    message = refusal(capsys, command(tmp_path / "plain.pth.tar", tmp_path / "out"))
    assert message.endswith("that run did not train a supernet")
