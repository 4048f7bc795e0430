"""scale.py's strategies: written at the end of a path, and followed by another net."""

import json
from pathlib import Path

import pytest
import scale
import timm
import yaml

from asvit_plugin.costs import params
from asvit_plugin.search.scaling_strategy import Strategy

BASE = ["--base", "deit_tiny", "depth=3", "num_heads=2", "head_dim=8", "img_size=32", "patch_size=8"]
PATH = [*BASE, "--oracle", "parameters", "--factors", "depth", "head_dim", "img_size", "--to", "9e5"]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The strategy of a small path."""
    folder = tmp_path_factory.mktemp("path")
    scale.main([*PATH, "--output", str(folder)])
    return folder / "strategy.json"


def test_a_path_leaves_its_strategy(fitted: Path) -> None:
    strategy, record = Strategy.load(fitted), json.loads((fitted.parent / "result.json").read_text())
    assert set(strategy.exponents) == {"depth", "head_dim", "img_size"}
    assert strategy.nets == len(record["nets"])
    assert strategy.ratios[1] == record["nets"][-1]["cost"] / record["nets"][0]["cost"]
    assert strategy.oracle == record["oracle"]


@pytest.mark.parametrize(
    ("base", "budget", "said"),
    [
        (["deit_tiny", "img_size=64"], ["macs", "2e8"], None),
        (["deit_tiny", "img_size=64"], ["params", "9e6"], "the strategy was fitted to macs; it is applied to params"),
        (["pit_ti", "img_size=64"], ["macs", "9e7"], None),
    ],
)
def test_following_a_strategy(
    base: list[str],
    budget: list[str],
    said: str | None,
    fitted: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, value = budget
    argv = ["--base", *base, "--budget", name, "--to", value, "--strategy", str(fitted), "--output", str(tmp_path)]
    scale.main(argv)
    printed, record = capsys.readouterr().out, json.loads((tmp_path / "result.json").read_text())
    assert (said is None) == ("the strategy was fitted" not in printed)
    assert said is None or said in printed
    assert record["end"] == "budget"
    assert [net["score"] for net in record["nets"]] == [None, None]
    assert record["nets"][1][name] == pytest.approx(float(value), rel=0.031)
    assert record["settings"]["exponents"] == dict(Strategy.load(fitted).exponents)
    recipe = yaml.safe_load((tmp_path / "net_1.yaml").read_text())
    built = timm.create_model(recipe["model"], img_size=recipe["img_size"], **recipe["model_kwargs"])
    assert params(built) == record["nets"][1]["params"]
    assert not (tmp_path / "strategy.json").exists()


def test_a_path_that_goes_nowhere_has_no_strategy(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cost = json.loads((fitted.parent / "result.json").read_text())["nets"][0]["cost"]
    (tmp_path / "strategy.json").write_text("of an earlier run")
    scale.main([*PATH[:-1], str(1.01 * cost), "--output", str(tmp_path)])
    assert "no strategy: the path has 1 nets whose costs differ by a factor of 1" in capsys.readouterr().out
    assert not (tmp_path / "strategy.json").exists()


def test_a_path_is_not_written_over(fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scale.main([*PATH[:-1], "1e6", "--strategy", str(fitted), "--output", str(fitted.parent)])
    assert "which holds a path of its own; name another for --strategy" in capsys.readouterr().err
    assert fitted.exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--to", "1e6", "--strategy", "nowhere.json"], "--strategy is 'nowhere.json', and there is no such file"),
        (["--to", "1e6", "--strategy", __file__], "is no strategy: it is not JSON"),
        (["--strategy", "FITTED"], "give --to BUDGET, so many multiply-accumulates"),
        (["--to", "1e6", "--beam", "2", "--strategy", "FITTED"], "without a study; leave --beam out"),
        (["--to", "1e6", "--growth", "1.5", "--strategy", "FITTED"], "without a study; leave --growth out"),
        (["--iso", "--strategy", "FITTED"], "--strategy leads to a budget without a study; leave --iso out"),
        (
            ["--to", "1e6", "--factors", "num_heads", "--strategy", "FITTED"],
            "which the space 'scaling' of ['num_heads']",
        ),
    ],
)
def test_refuses(
    argv: list[str], message: str, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(fitted) if word == "FITTED" else word for word in argv]
    with pytest.raises(SystemExit):
        scale.main([*BASE, *argv, "--output", str(tmp_path)])
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
