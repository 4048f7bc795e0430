"""The study of weight-sharing search: its tables from made-up results, and all of it on a tiny space."""

import json
import sys
from pathlib import Path
from typing import Any

import evolution_study
import evolution_study_report
import pytest
from test_evolve import RUN, SMALL, SPACE


def row(group: str, number: int, seed: int, inherited: float, trained: float, macs: float = 1e6) -> dict[str, Any]:
    return {
        **{"group": group, "number": number, "seed": seed, "macs": macs, "params": 1000},
        **{"inherited": inherited, "trained": trained},
    }


@pytest.fixture
def results() -> dict[str, Any]:
    """Six random nets whose inherited accuracies order them as training does, but for the last two."""
    pairs = [(90, 91), (91, 92), (92, 93), (93, 94), (95, 95), (94, 96)]
    random = [row("random", i, seed, a, b + seed, 1e6 * (i % 3)) for i, (a, b) in enumerate(pairs) for seed in (0, 1)]
    found = [row("evolved", 0, 0, 96, 97, 2e6), row("mask search", 0, 0, 95, 96, 2e6)]
    others = [*found, row("largest", 0, 0, 95, 98, 9e6)]
    return {
        "nets": [*random, *others, *(row("random in budget", i, 0, 93, 94 + i, 2e6) for i in range(2))],
        "evolution": {"trials": [{"macs": 2e6, "values": {"top1": 90 + i}} for i in range(3)]},
        "search_seconds": {"evolved": 250.4, "mask search": 80.0},
    }


def test_rank_correlation_is_over_nets_not_trainings(results: dict[str, Any]) -> None:
    tau, _ = evolution_study_report.rank_correlation(results)
    assert tau.value == pytest.approx((14 - 1) / 15)
    assert tau.low < tau.value <= tau.high


def test_tables(results: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    evolution_study_report.print_tables(results)
    printed = capsys.readouterr().out
    assert "| random nets of the same budget |  | 2 x 1 | 2.00 | 1.00 k | 93.00 % | 94.50 ± 0.71 % |" in printed
    assert "| evolved within the budget | 250 s | 1 x 1 | 2.00 | 1.00 k | 96.00 % | 97.00 % |" in printed
    assert "| by mask search within the budget | 80 s | 1 x 1 | 2.00 | 1.00 k | 95.00 % | 96.00 % |" in printed
    assert "of the 6 random nets of all sizes: 0.87 [" in printed


def test_report_from_its_file(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results))
    argv = ["evolution_study_report.py", str(tmp_path / "results.json"), "--picture", str(tmp_path / "a.png")]
    monkeypatch.setattr(sys, "argv", argv)
    evolution_study_report.main()
    assert (tmp_path / "a.png").stat().st_size > 10_000
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(SystemExit):
        evolution_study_report.main()
    assert "no file of evolution_study.py" in capsys.readouterr().err


def test_refuses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["evolution_study.py", "--nets", "0"])
    with pytest.raises(SystemExit):
        evolution_study.main()
    assert capsys.readouterr().err.endswith("argument --nets is 0; it must be at least 1\n")


@pytest.mark.parametrize("page", ["supernet.md", "mask_search.md"])
def test_pages_show_the_results(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    docs = Path(__file__).parents[2] / "docs"
    evolution_study_report.print_tables(json.loads((docs / "results" / "evolution_digits.json").read_text()))
    printed = capsys.readouterr().out.splitlines()
    text = (docs / page).read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and line in printed]
    assert len(rows) == (6 if page == "supernet.md" else 4)  # with the heading
    if page == "supernet.md":
        assert printed[-1] in text


@pytest.mark.slow
def test_whole_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny_nets.yaml").write_text(SPACE)
    (tmp_path / "recipe.yaml").write_text(f"supernet: {tmp_path / 'tiny_nets.yaml'}\n{as_yaml(RUN)}")
    monkeypatch.setattr(evolution_study, "RECIPE", tmp_path / "recipe.yaml")
    monkeypatch.setattr(evolution_study, "EVOLUTION", SMALL[4:])
    monkeypatch.setattr(evolution_study, "MASKS", ["--samples", "3"])
    argv = ["--budget", "1.25e6", "--nets", "3", "--seeds", "1", "--epochs", "1", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["evolution_study.py", *argv])
    evolution_study.main()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    counts = {group: len(evolution_study_report.of_group(results, group)) for group in evolution_study_report.GROUPS}
    assert counts == {"evolved": 2, "mask search": 2, "random in budget": 4, "largest": 2, "random": 3}
    of_group = evolution_study_report.of_group
    for net in (*of_group(results, "random in budget"), *of_group(results, "mask search")):
        assert 0.975 * 1.25e6 <= net["macs"] <= 1.25e6
    searched = json.loads((tmp_path / "out" / "masks" / "result.json").read_text())
    assert {net["inherited"] for net in of_group(results, "mask search")} == {searched["best"]["top1"]}
    assert results["search_seconds"]["mask search"] > 0
    assert (tmp_path / "out" / "results.png").stat().st_size > 10_000
    assert "Kendall's tau" in capsys.readouterr().out
    finished = (tmp_path / "out" / "random-2-0" / "last.pth.tar").stat().st_mtime_ns
    evolution_study.main()  # nothing is trained again
    assert (tmp_path / "out" / "random-2-0" / "last.pth.tar").stat().st_mtime_ns == finished


def as_yaml(argv: list[str]) -> str:
    """Command-line options as the lines of a recipe."""
    lines, values = [], []
    for word in reversed(argv):
        if word.startswith("--"):
            name = word[2:].replace("-", "_")
            text = {0: "true", 1: values[0] if values else ""}.get(len(values), f"[{', '.join(values)}]")
            lines.append(f"model_kwargs: {{{name[13:]}: {text}}}" if "." in name else f"{name}: {text}")
            values = []
        else:
            values.insert(0, word)
    return "\n".join(lines)
