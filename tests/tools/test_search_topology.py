"""tools/search_topology.py: what it prints and writes, killed and continued, and its mistakes."""

import json
import math
import multiprocessing
import random
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import search_topology
import timm
import yaml
from result_files import without_password

from asvit_plugin.costs import params
from asvit_plugin.search import measuring

SPACE = """
model: scaled_vit
decisions: {depth: [1, 2, 3], num_heads: [1, 2], mlp_ratio: [1, 2]}
arguments: {head_dim: 8, patch_size: 8, depth: "{depth}", num_heads: "{num_heads}", mlp_ratio: "{mlp_ratio}"}
"""
FORK = multiprocessing.get_context("fork")  # with the stand-ins below, and at once


@pytest.fixture(autouse=True)
def proxies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stand-ins that take no time: a rugged one without a value for some nets, and the parameters."""

    def proxy(maximize: bool, value: Any) -> SimpleNamespace:
        def measure(model: Any, *, img_size: int, repeats: int, seed: int, device: str) -> SimpleNamespace:
            return SimpleNamespace(value=float(value(model)), spread=0.0, values=[])

        return SimpleNamespace(maximize=maximize, measure=measure)

    rugged = proxy(True, lambda model: math.nan if params(model) % 5 == 0 else params(model) % 7)
    named = {"length_distortion": rugged, "ntk_condition": proxy(False, params)}
    monkeypatch.setattr(measuring, "PROXIES", named)
    verbosity = optuna.logging.get_verbosity()
    yield
    optuna.logging.set_verbosity(verbosity)


@pytest.fixture
def space(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(SPACE)
    return file


def command(space: Path, output: Path, *more: str) -> list[str]:
    return ["--space", str(space), "--output", str(output), "--img-size", "16", "--steps", "12", *more]


def outcome(output: Path) -> dict[str, Any]:
    """What two runs of one search must agree in."""
    result = json.loads((output / "result.json").read_text())
    trials = [{key: trial[key] for key in ("choice", "values", "params", "macs")} for trial in result["trials"]]
    return {key: result[key] for key in ("best", "argmax", "space", "settings", "policy")} | {"trials": trials}


def test_prints_and_writes_all_that_repeats_it(space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    search_topology.main(command(space, output))
    result = json.loads((output / "result.json").read_text())
    assert len(result["trials"]) == len(result["policy"]["entropies"]) == 12
    assert result["settings"]["steps"] == 12
    assert result["settings"]["reinforce"] == {"lr": 0.08, "momentum": 0.9, "buffer": 20, "init_std": 0.001}
    assert result["space"]["decisions"]["depth"] == [1, 2, 3]
    assert {"python", "torch", "timm", "optuna", "asvit-plugin"} <= set(result["versions"])
    assert None in [trial["values"]["length_distortion"] for trial in result["trials"]]
    assert (output / "result.png").stat().st_size > 20_000
    printed = capsys.readouterr()
    for name in ("best", "argmax"):
        assert result[name]["create_model"] in printed.out
        assert params(eval(result[name]["create_model"], {"timm": timm})) == result[name]["params"]
        recipe = yaml.safe_load((output / f"{name}.yaml").read_text())
        assert {"img_size": recipe["img_size"], **recipe["model_kwargs"]} == result[name]["arguments"]
    assert "12/12" in printed.err
    assert "best #" in printed.err


def test_killed_it_ends_as_if_undisturbed(space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search_topology.main(command(space, tmp_path / "whole"))
    slow = measuring.PROXIES["ntk_condition"]
    measure = slow.measure

    def wait(*args: Any, **kwargs: Any) -> SimpleNamespace:
        time.sleep(0.08)  # the first two moments, 0.4 s, are not enough for all nets, however fast the machine
        return measure(*args, **kwargs)

    monkeypatch.setattr(slow, "measure", wait)
    moments = random.Random(0)
    kills = 0
    for _ in range(12):
        process = FORK.Process(target=search_topology.main, args=(command(space, tmp_path / "killed"),))
        process.start()
        process.join(moments.uniform(0.05, 0.2))
        kills += process.is_alive()
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
    assert kills >= 2
    search_topology.main(command(space, tmp_path / "killed"))
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_two_at_once_end_with_one_result(space: Path, tmp_path: Path) -> None:
    arguments = command(space, tmp_path / "out", "--steps", "20")
    processes = [FORK.Process(target=search_topology.main, args=(arguments,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert len(outcome(tmp_path / "out")["trials"]) == 20


def test_optunas_samplers_and_storage(space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    more = ["--sampler", "tpe", "--storage", storage, "--study-name", "mine", "--proxies", "ntk_condition"]
    search_topology.main(command(space, tmp_path / "out", *more))
    study = optuna.load_study(study_name="mine", storage=storage)
    assert study.metric_names == ["ntk_condition"]
    assert len(study.trials) == 12
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["argmax"] is result["policy"] is None
    assert result["best"]["values"]["ntk_condition"] == min(trial.values[0] for trial in study.trials)
    assert "most probable" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "more, message",
    [
        (["--space", "nosuch"], "space is 'nosuch'; it must be one of as_vit, "),
        (["--steps", "0"], "steps is 0"),
        (["--lr", "-1"], "lr is -1.0; it must be positive"),
        (["--proxies", "nosuch"], "proxies is 'nosuch'; it must be one of"),
        (["--sampler", "grid"], "invalid choice: 'grid'"),
        (["--storage", "sqlite://"], "it must name the SQLite file"),
    ],
)
def test_mistakes_are_one_sentence(
    more: list[str], message: str, space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        search_topology.main(command(space, tmp_path / "out", *more))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_passwords_are_not_written() -> None:
    text = "python x.py --storage postgresql://me:s3cr:et@host:5432/db --output here"
    assert without_password(text) == "python x.py --storage postgresql://me:***@host:5432/db --output here"
    assert without_password("sqlite:///a/b.db") == "sqlite:///a/b.db"


def test_other_settings_under_one_name_are_refused(
    space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search_topology.main(command(space, tmp_path / "out"))
    before = outcome(tmp_path / "out")
    with pytest.raises(SystemExit):
        search_topology.main(command(space, tmp_path / "out", "--seed", "9"))
    assert "was begun with seed 8, not 9; keep that, or give the study another name" in capsys.readouterr().err
    assert outcome(tmp_path / "out") == before
