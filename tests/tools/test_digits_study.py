"""tools/digits_study.py: small runs of it, stopped and continued, and that docs/digits_study.md shows its results."""

import json
import sys
from pathlib import Path

import digits_report
import digits_study
import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "digits_study.json"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher and one castled arm, trained for moments."""
    arms = digits_study.STUDIES["castling"]
    few = "--epochs 5 --batch-size 128 --img-size 16 --no-aug"
    chosen = {name: f"{arms[name]} {few}" for name in ("teacher", "branch and convolution")}
    monkeypatch.setattr(digits_study, "STUDIES", {"castling": chosen})


def test_runs_measures_and_continues(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["digits_study.py", "--seeds", "1", "--output", str(tmp_path)])
    digits_study.main()
    results = (tmp_path / "results.json").read_text()
    teacher, castled = json.loads(results)["runs"]
    assert teacher["untrained"] is None
    assert 0 <= castled["untrained"] <= 100
    assert len(castled["top1"]) == 5
    assert castled["blend"][-1] == castled["threshold"][-1] == 1
    assert castled["masks"][-1] == {f"blocks.{i}": [0.0, 0.0] for i in range(digits_study.DEPTH)}
    assert (tmp_path / "results.png").stat().st_size > 10_000
    table = capsys.readouterr().out
    assert "| branch and convolution |" in table

    last = tmp_path / "castling-teacher-0" / "last.pth.tar"
    before = last.stat().st_mtime_ns
    digits_study.main()
    assert last.stat().st_mtime_ns == before
    assert json.loads((tmp_path / "results.json").read_text())["runs"] == json.loads(results)["runs"]


def test_a_run_that_fails_ends_the_study(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(digits_study.STUDIES["castling"], "teacher", "--model nosuch")
    monkeypatch.setattr(sys, "argv", ["digits_study.py", "--seeds", "1", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="nosuch"):
        digits_study.main()


def test_docs_show_the_results() -> None:
    rows = json.loads(RESULTS.read_text())["runs"]
    text = (ROOT / "docs" / "digits_study.md").read_text()
    for study in ("tokens", "castling", "mixing"):
        assert digits_report.table(study, rows) in text
    assert digits_report.mask_table(rows) in text
    for study, seeds in digits_study.SEEDS.items():
        arms = digits_report.arms_of(study, rows)
        assert [arm for arm, _ in arms] == list(digits_study.STUDIES[study])
        assert all([run["seed"] for run in runs] == list(range(seeds)) for _, runs in arms)
