"""tools/measure_attention.py writes what castle(blocks="auto") reads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from asvit_plugin.costs import AttentionTiming, break_even_tokens, read_attention_timings, write_attention_timings

SCRIPT = Path(__file__).parents[2] / "tools" / "measure_attention.py"


def test_measures_and_keeps_earlier_measurements(tmp_path: Path) -> None:
    table = tmp_path / "cache" / "attention.json"
    write_attention_timings(
        [AttentionTiming(2, 8, 10, 1.0, 2.0), AttentionTiming(2, 8, 12, 1.0, 2.0)], "cpu", "eager", table
    )
    write_attention_timings([AttentionTiming(2, 8, 10, 1.0, 2.0)], "cpu", "compile", table)
    shape = ["--num-heads", "2", "--head-dim", "8", "--tokens", "12", "40", "--batch-size", "1", "--rounds", "1"]
    command = [sys.executable, str(SCRIPT), *shape, "--device", "cpu", "--threads", "1", "--table", str(table)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| 40 |" in done.stdout
    timings = {each.tokens: each for each in read_attention_timings("cpu", "eager", table)}
    assert set(timings) == {10, 12, 40}
    assert timings[10].softmax == 1.0
    assert 0 < timings[12].softmax < 1.0
    assert len(json.loads(table.read_text())) == 2


def test_no_table_is_no_measurement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert read_attention_timings("cpu") == []
    with pytest.raises(ValueError, match=f"cannot be read from {tmp_path / 'none.json'}"):
        read_attention_timings("cpu", path=tmp_path / "none.json")
    (tmp_path / "broken.json").write_text('{"cpu, eager": [{"tokens": 3}]}')
    with pytest.raises(ValueError, match="cannot be read from .*broken.json"):
        read_attention_timings("cpu", path=tmp_path / "broken.json")


@pytest.mark.parametrize(
    "faster, expected",
    [({}, 64), ({16: True, 64: True}, 16), ({16: True, 64: False, 256: True}, 256), ({16: False}, float("inf"))],
)
def test_break_even(faster: dict[int, bool], expected: float) -> None:
    timings = [AttentionTiming(2, 8, tokens, 1.0, 0.5 if pays else 2.0) for tokens, pays in faster.items()]
    other = AttentionTiming(2, 64, 8, 1.0, 0.5)
    assert break_even_tokens(8, [*timings, other]) == expected


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tokens", "1"], "--tokens holds 1"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--device", "toaster"], "toaster"),
    ],
)
def test_mistakes_get_one_sentence(arguments: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
