"""The study of strategies in foreign runtimes: what it reports, resumed after a kill, its tables, and refusals."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import scale_transfer
import scale_transfer_report
from scale_transfer_cases import TimingBesideBase

DOCS = Path(__file__).parents[2] / "docs"
BASE = ["--base", "deit_tiny", "depth=4", "num_heads=2", "head_dim=8", "img_size=32", "patch_size=8"]
FACTORS = ["--factors", "depth", "num_heads=1,2,3,4", "img_size"]
QUICK = ["--seconds", "0.001", "--rounds", "1", "--oracles", "parameters", "macs"]
ONTO = ["--onto", "pit_ti", "head_dim=8", "img_size=32", "patch_size=8", "--onto-costs", "macs"]
ONTO += ["--onto-factors", "depth", "img_size"]


def seconds(model: str, arguments: Mapping[str, Any], runtime: str) -> float:
    """Made-up latencies: one runtime minds blocks, the other images."""
    tokens = (arguments["img_size"] / arguments["patch_size"]) ** 2
    width = arguments["num_heads"] * arguments["head_dim"]
    return 1e-6 * arguments["depth"] * (400 + width * tokens if runtime == "eager" else 50 + width * tokens**1.5)


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies of a formula on the way, so that what is found repeats; side by side they are measured."""

    def measure(self: TimingBesideBase, model: str, arguments: Mapping[str, Any]) -> dict[str, float]:
        cost = seconds(model, arguments, self.setting.runtime)
        return {"cost": cost, "p10": cost, "p90": cost, "drift": 1.0}

    monkeypatch.setattr(TimingBesideBase, "measure", measure)


def run(folder: Path, *argv: str) -> dict[str, Any]:
    scale_transfer.main([*BASE, *FACTORS, *QUICK, *argv, "--output", str(folder)])
    return json.loads((folder / "results.json").read_text())


def kept(results: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from run to run."""
    nets = {key: [{**net, "latency": None} for net in nets] for key, nets in results["nets"].items()}
    return {**results, "nets": nets, "command": None}


def test_whole_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run(tmp_path, "--costs", "macs", "eager", "torchscript", *ONTO)
    assert [(case["key"], case["cost"], case["oracle"]) for case in results["cases"]] == [
        *(("base", cost, "parameters") for cost in ("macs", "eager", "torchscript")),
        *(("base", cost, "macs") for cost in ("eager", "torchscript")),
        ("onto", "macs", "parameters"),
    ]
    pairs = [(each["source"]["cost"], each["goal"]["cost"], each["goal"]["key"]) for each in results["transfers"]]
    assert len(pairs) == 3 * 2 + 2 + 1
    assert pairs[-1] == ("macs", "macs", "onto")
    _check_transfers(results)
    assert (tmp_path / "results.png").stat().st_size > 10_000
    assert capsys.readouterr().out.rstrip().endswith(scale_transfer_report.tables(results))
    for case in results["cases"]:
        file = tmp_path / f"{case['key']}-{case['cost']}-{case['oracle']}.json"
        assert json.loads(file.read_text())["exponents"] == case["strategy"]["exponents"]


def _check_transfers(results: dict[str, Any]) -> None:
    """Regrets follow from the scores, and made-up costs meet the budgets."""
    natives = {(each["key"], each["cost"], each["oracle"]): each for each in results["cases"]}
    for each in results["transfers"]:
        goal = natives[tuple(each["goal"].values())]
        first, last = goal["scores"][0], goal["scores"][-1]
        assert each["regret"] == pytest.approx((last - each["score"]) / (last - first))
        net, base = (results["nets"][goal["key"]][index] for index in (each["net"], 0))
        if goal["cost"] == "macs":
            cost, start = net["macs"], base["macs"]
        else:
            arguments = {"head_dim": 8, "patch_size": 8}
            cost, start = (seconds("", arguments | n["choice"], goal["cost"]) for n in (net, base))
        assert goal["budget"] == pytest.approx(2 * start)
        assert (each["end"] == "budget") == (
            abs(math.log(cost / goal["budget"])) <= math.log1p(results["settings"]["tolerance"]) + 1e-9
        )


@pytest.mark.parametrize("killed", [2, 9, 20])
def test_goes_on_where_it_was_killed(killed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ("--costs", "macs", "eager", "--oracles", "parameters")
    undisturbed = run(tmp_path / "a", *argv)
    measure, calls = TimingBesideBase.measure, []

    def stop(self: TimingBesideBase, *net: Any) -> dict[str, float]:
        calls.append(net)
        if len(calls) == killed:
            raise KeyboardInterrupt
        return measure(self, *net)

    monkeypatch.setattr(TimingBesideBase, "measure", stop)
    with pytest.raises(SystemExit, match="stopped; the same command goes on from here"):
        run(tmp_path / "b", *argv)
    monkeypatch.setattr(TimingBesideBase, "measure", measure)
    assert kept(run(tmp_path / "b", *argv)) == kept(undisturbed)


@pytest.fixture
def results() -> dict[str, Any]:
    """Made-up results: eager orders three nets as MACs do, compile turns two of them round."""

    def net(macs: float, eager: float, compiled: float) -> dict[str, Any]:
        latency = {"eager": {"over_base": eager}, "compile": {"over_base": compiled}}
        return {"choice": {}, "macs": macs, "latency": latency}

    def case(cost: str, exponents: dict[str, float], path: list[int], scores: list[float]) -> dict[str, Any]:
        fitted = {"exponents": exponents, "residuals": dict.fromkeys(exponents, 0.25)}
        named = {"key": "base", "cost": cost, "oracle": "macs"}
        return {**named, "strategy": fitted, "path": path, "scores": scores, "trials": 9, "end": "budget"}

    cases = [case("eager", {"depth": 0.5}, [0, 1], [1.0, 2.0]), case("compile", {"depth": 0.25}, [0, 2], [1.0, 3.0])]
    named = [{name: each[name] for name in ("key", "cost", "oracle")} for each in cases]
    moved = {"source": named[0], "goal": named[1], "end": "missed", "net": 1, "score": 2.0, "regret": 0.5}
    return {
        "settings": {"ratio": 2.0},
        "bases": {"base": {"name": "deit_tiny"}},
        "cases": cases,
        "transfers": [moved],
        "nets": {"base": [net(1, 1, 1), net(2, 2, 5), net(3, 4, 4)]},
    }


def test_report_from_its_file(results: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results))
    scale_transfer_report.main([str(tmp_path / "results.json"), "--picture", str(tmp_path / "a.png")])
    assert capsys.readouterr().out.strip() == scale_transfer_report.tables(results)
    assert (tmp_path / "a.png").stat().st_size > 10_000
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(SystemExit):
        scale_transfer_report.main([str(tmp_path / "results.json")])
    assert "results.json is no file of scale_transfer.py" in capsys.readouterr().err


def test_docs_show_the_results() -> None:
    results = json.loads((DOCS / "results" / "scaling_transfer.json").read_text())
    assert scale_transfer_report.tables(results) in (DOCS / "scaling.md").read_text()


def test_tables(results: dict[str, Any]) -> None:
    text = scale_transfer_report.tables(results)
    assert "| deit_tiny, eager, by macs | 0.50 | 0.25 | 2 | 9 | budget |" in text
    assert "| deit_tiny, eager, by macs | deit_tiny, compile, by macs | 50 % (missed) | 2.50 | 2.00 |" in text
    assert "| deit_tiny, 3 nets | eager | compile |" in text
    assert "| macs | 1.00 [" in text
    assert scale_transfer_report.tau(results, "base", "eager", "compile").value == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--costs", "coreml2"], "--costs has 'coreml2'; it must be macs, or one of eager, compile"),
        (["--onto-costs", "watts"], "--onto-costs has 'watts'; it must be macs, or one of eager"),
        (["--costs", "eager@toaster"], "device is 'toaster', which cannot be used"),
        (["--ratio", "1.01"], "--ratio is 1.01; it must be positive, and farther from 1 than the tolerance"),
        (["--ratio", "0"], "--ratio is 0; it must be positive, and farther from 1"),
        (["--rounds", "0"], "argument --rounds is 0; it must be at least 1"),
        (["--oracles", "luck"], "proxies is 'luck'; it must be one of"),
        (["--base", "deit_giant"], "base is 'deit_giant'; it must be one of deit_tiny"),
        (["--costs", "eager", "--clock", "cpu", "--threads", "2"], "clock is 'cpu' with 2 threads on 'cpu'"),
    ],
)
def test_refuses(argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        scale_transfer.main([*BASE, *FACTORS, *QUICK, *argv, "--output", str(tmp_path)])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
