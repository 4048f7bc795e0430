"""tools/benchmark_supernet.py, in this process: every start of another one imports torch and timm anew."""

import json
import sys
from pathlib import Path

import benchmark_supernet
import pytest

SMALL = ["digits_vit_resnas", "--img-size", "56", "--rounds", "1", "--threads", "1", "--device", "cpu"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["tools/benchmark_supernet.py", *arguments])
    benchmark_supernet.main()


def test_times_both_modes_beside_nets_that_stand_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results" / "figures.json"
    run(monkeypatch, *SMALL, "--batch-size", "6", "--examples-per-arch", "2", "--amp", "--json", str(path))
    figures = json.loads(path.read_text())
    rows = {row["step"]: row for row in figures["steps"]}
    kinds = [
        "supernet, masks",
        "supernet, slices",
        "the same nets alone",
        "one net of the same MACs",
        "the largest net",
    ]
    assert list(rows) == kinds
    assert rows["one net of the same MACs"]["ratio"] == 1.0
    assert all(row["seconds"] > 0 for row in rows.values())
    mean, one, largest = (rows[kind]["gmacs_per_image"] for kind in kinds[2:])
    assert mean == pytest.approx(one, rel=0.02)
    assert largest > mean
    assert (figures["batch_size"], figures["examples_per_arch"], figures["amp"]) == (6, 2, True)
    assert "batch of 6 by 3 nets" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["plain_vit"], "space 'plain_vit' is of the model 'scaled_vit'"),
        (["no_such_space"], "space is 'no_such_space'; it must be one of"),
        (["--batch-size", "5"], "--batch-size 5 is no multiple of --examples-per-arch 2"),
        (["--rounds", "0"], "--rounds is 0; it must be at least 1"),
        (["--device", "toaster"], "toaster"),
    ],
)
def test_mistakes_get_one_sentence(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *arguments)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert message in error.splitlines()[-1]
