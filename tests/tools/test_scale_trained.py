"""Short trainings as what nets are scored by: real ones, kills, what is not repeated, and refusals."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import scale
import torch
import trained_oracle
import trainings

NET = ["--base", "deit_tiny", "depth=1", "num_heads=2", "head_dim=8", "img_size=32", "patch_size=8"]
TRAINED = [*NET, "--oracle", "trained"]
PATH = ["--to", "2.2e5", "--factors", "depth=2", "mlp_ratio=6", "--growth", "2"]


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        scale.main(argv)
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def option(options: Sequence[str], name: str) -> str:
    return options[len(options) - 1 - list(reversed(options)).index(name) + 1]


class Trainer:
    """In the place of train.py: writes what a finished run has, or stops as one that is killed or fails."""

    def __init__(self, stop_at: int = 0, error: BaseException | None = None) -> None:
        self.calls: list[list[str]] = []
        self.stop_at, self.error = stop_at, error

    def __call__(self, options: Sequence[str], folder: Path) -> None:
        self.calls.append(list(options))
        if len(self.calls) == self.stop_at:
            raise self.error or KeyboardInterrupt
        folder.mkdir(parents=True, exist_ok=True)
        top1 = 50.0 + 10 * json.loads(option(options, "--model-kwargs"))["depth"]
        torch.save({"history": [{"top1": top1}], "epochs": 1}, folder / "last.pth.tar")


def use(monkeypatch: pytest.MonkeyPatch, trainer: Trainer) -> Trainer:
    monkeypatch.setattr(trained_oracle, "train", trainer)
    return trainer


@pytest.mark.slow
def test_real_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = [*TRAINED, "--train-options", "--epochs 1", "--to", "1.9e5", "--factors", "depth=2", "--growth", "2"]
    scale.main([*argv, "--tolerance", "0.5", "--output", str(tmp_path)])
    record = result(tmp_path)
    assert (record["oracle"]["oracle"], record["oracle"]["options"][-2:]) == ("top1", ["--epochs", "1"])
    folders = [path for path in (tmp_path / "trained").iterdir() if path.is_dir()]
    scores = sorted(trainings.last_top1(folder) for folder in folders)
    assert scores == sorted(each["score"] for each in record["trials"])
    assert len(scores) == 2
    assert all(5 < score <= 100 for score in scores)
    use(monkeypatch, Trainer(1, AssertionError("trained again")))
    (tmp_path / "study.db").unlink()  # another study in the same folder
    scale.main([*argv, "--tolerance", "0.5", "--output", str(tmp_path)])
    assert result(tmp_path)["nets"] == record["nets"]


def test_a_killed_run_loses_no_finished_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = [*TRAINED, *PATH, "--output"]
    whole = use(monkeypatch, Trainer())
    scale.main([*argv, str(tmp_path / "whole")])
    killed = use(monkeypatch, Trainer(stop_at=2))
    with pytest.raises(SystemExit, match="stopped; the same command goes on from here"):
        scale.main([*argv, str(tmp_path / "killed")])
    rest = use(monkeypatch, Trainer())
    scale.main([*argv, str(tmp_path / "killed")])
    assert result(tmp_path / "killed")["nets"] == result(tmp_path / "whole")["nets"]
    assert killed.calls[:1] + rest.calls == whole.calls
    assert len(whole.calls) > 2


def test_what_train_py_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("{data: digits}")
    trainer = use(monkeypatch, Trainer())
    settings = ["--recipe", str(recipe), "--train-options", "--epochs 7", "--seed", "3"]
    scale.main([*TRAINED, *PATH, *settings, "--output", str(tmp_path / "out")])
    options = trainer.calls[0]
    assert [option(options, f"--{name}") for name in ("config", "epochs", "seed", "model", "img-size")] == [
        str(recipe), "7", "3", "scaled_vit", "32",
    ]  # fmt: skip
    assert json.loads(option(options, "--model-kwargs")) == {
        "depth": 1, "num_heads": 2, "head_dim": 8, "mlp_ratio": 4, "patch_size": 8,
    }  # fmt: skip


def test_a_study_of_another_recipe_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, trainer = tmp_path / "mine.yaml", use(monkeypatch, Trainer())
    argv = [*TRAINED, *PATH, "--recipe", str(recipe), "--output", str(tmp_path / "out")]
    recipe.write_text("{data: digits, epochs: 1}")
    scale.main(argv)
    recipe.write_text("{data: digits, epochs: 2}")
    assert "was begun with another --recipe; name another --output" in refusal(capsys, *argv)
    assert "was begun with seed 0, not 1" in refusal(capsys, *TRAINED, *PATH, "--seed", "1", "--output", old(tmp_path))
    first = len(trainer.calls)
    scale.main([*argv, "--study-name", "second"])  # nothing of the other recipe's trainings is taken
    assert len(trainer.calls) > first


def old(tmp_path: Path) -> str:
    """A folder with a study of seed 0."""
    scale.main([*TRAINED, *PATH, "--output", str(tmp_path / "old")])
    return str(tmp_path / "old")


def test_a_net_that_diverges_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Trainer(2, SystemExit("train.py ...\ntrain.py: error: the loss became nan in epoch 0; a lower")))
    scale.main([*TRAINED, *PATH, "--output", str(tmp_path)])
    assert [each["score"] for each in result(tmp_path)["trials"]].count(None) >= 1
    assert all(math.isfinite(net["score"]) for net in result(tmp_path)["nets"])


def test_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    use(monkeypatch, Trainer(1, SystemExit("train.py ...\ntrain.py: error: --lr is x; allowed is float")))
    argv = [*TRAINED, *PATH, "--output", str(tmp_path)]
    assert "--oracle trained: train.py: error: --lr is x; allowed is float" in refusal(capsys, *argv)
    for text in ("--seed 3", "--model=resnet18", "--model_kwargs.depth 3"):
        message = refusal(capsys, *argv, f"--train-options={text}")
        assert f"--train-options has {text.split()[0]!r}; the net, seed, folder and recipes are set" in message
    assert "No such file" in refusal(capsys, *argv, "--recipe", str(tmp_path / "no.yaml"))
