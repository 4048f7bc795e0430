"""tools/benchmark_masks.py on small images, and the tables of docs/mask_search.md."""

import json
import sys
from pathlib import Path

import benchmark_masks
import pytest

DOCS = Path(__file__).parents[2] / "docs"
SMALL = ["--img-size", "32", "--batch-size", "2", "--rounds", "1", "--seconds", "0.01", "--threads", "1"]


def rows(monkeypatch: pytest.MonkeyPatch, path: Path, *arguments: str) -> dict[str, dict]:
    argv = ["tools/benchmark_masks.py", *SMALL, *arguments, "--device", "cpu", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", argv)
    benchmark_masks.main()
    return {row["step"]: row for row in json.loads(path.read_text())["steps"]}


def test_plain_vit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(monkeypatch, tmp_path / "a.json", "deit_tiny_patch16_224", "--options", "3", "13", "--img-size", "48")
    plain = found[benchmark_masks.PLAIN]
    assert (plain["time_ratio"]["median"], plain["saved_ratio"]) == (1.0, 1.0)
    few, many = (found[f"widths of {count} options: mixture"]["saved_bytes"] for count in (3, 13))
    assert plain["saved_bytes"] < few <= many < 1.02 * few
    strides = [found[f"widths, heads, depth, token strides {text}: mixture"] for text in ("1, 2", "1, 2, 3")]
    assert few < strides[0]["saved_bytes"] < strides[1]["saved_bytes"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[-len(found) :] == [benchmark_masks.line(row) for row in found.values()]


def test_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows(monkeypatch, tmp_path / "new" / "a.json", "digits_vit_resnas")
    assert found["slices: one net"]["saved_ratio"] < 1 < found["masks: one net"]["saved_ratio"]
    assert found["masks: one net"]["saved_bytes"] < found["masks: mixture"]["saved_bytes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_net"], "space is 'no_such_net'; it must be one of"),
        (["pit_ti_224"], "gates cannot mask this"),
        (["deit_tiny_patch16_224", "--batch-size", "0"], "--batch-size is 0; it must be at least 1"),
        (["deit_tiny_patch16_224", "--token-strides", "0"], "options of token_stride"),
    ],
)
def test_mistakes_get_one_sentence(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tools/benchmark_masks.py", *arguments])
    with pytest.raises(SystemExit):
        benchmark_masks.main()
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["masks_digits", "masks_deit_tiny"])
def test_page_shows_the_figures(name: str) -> None:
    text = (DOCS / "mask_search.md").read_text()
    record = json.loads((DOCS / "benchmarks" / f"{name}.json").read_text())
    assert all(benchmark_masks.line(row) in text for row in record["steps"])
    assert record["machine"]["command"].split(" --json")[0] in text
