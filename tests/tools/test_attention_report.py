"""tools/attention_report.py: what it makes of figures, and that docs/castling.md shows the committed ones."""

from pathlib import Path

import attention_report
import pytest

ROOT = Path(__file__).parents[2]
MEASURED = sorted((ROOT / "docs" / "benchmarks").glob("attention_*.json"))


def row(tokens: int, runtime: str) -> dict[str, object]:
    """A core that needs twice as long as a copy of what it must move, and softmax ten times as long as that."""
    block = {"softmax": 0.2, "linear": 0.1, "ratio": [2.0, 1.9, 2.1]}
    core = {"softmax": 0.02, "linear": 0.002, "ratio": [10.0, 9.5, 11]}
    shared = {"batch_size": 4, "sdpa": "flash_attention", "bandwidth": 1e9, "bytes": 1e6}
    return {"tokens": tokens, "runtime": runtime, **shared, "block": block, "core": core}


def test_a_row() -> None:
    assert attention_report.line(row(4097, "eager")) == (
        "| 4,097 | 4 | eager | 20 | 2 | 10.00 (9.50 to 11.00) | 5 % / 50 % | 200 | 100 | 2.00 (1.90 to 2.10) |"
    )


def test_rows_go_by_runtime_and_tokens() -> None:
    rows = [row(tokens, runtime) for tokens in (577, 197) for runtime in ("compile", "eager")]
    lines = attention_report.table({"rows": rows}).splitlines()
    assert lines[2:] == [attention_report.line(rows[index]) for index in (3, 1, 2, 0)]
    assert len({text.count("|") for text in lines}) == 1


@pytest.mark.parametrize("text", ["[]", "{", '{"rows": []}'])
def test_another_file_gets_one_sentence(text: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(SystemExit):
        attention_report.main([str(tmp_path / "other.json")])
    assert "other.json, which cannot be shown: " in capsys.readouterr().err


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_docs_show_the_results(path: Path, capsys: pytest.CaptureFixture) -> None:
    attention_report.main([str(path)])
    assert capsys.readouterr().out.strip() in (ROOT / "docs" / "castling.md").read_text()


def test_there_are_results() -> None:
    assert MEASURED
