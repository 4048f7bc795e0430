"""tools/benchmark_report.py: pages say what their files say, and those in docs/ are what it makes of theirs."""

import copy
import json
from pathlib import Path
from typing import Any

import benchmark_report
import pytest
from benchmark_record import read_benchmark

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks"
COMMITTED = sorted(DOCS.glob("suite_*.json"))


def row(model: str, ratio: float, memory: int | None = 2**20) -> dict[str, Any]:
    ratios = {"speed_ratio": ratio, "speed_ratio_p10": ratio - 0.1, "speed_ratio_p90": ratio + 0.1}
    times = {"median": 0.5, "p10": 0.4, "p90": 0.6, "runs": 9, "drift": 1.0, "peak_memory": memory, "no_memory": ""}
    return {"model": model, "params": 5_700_000, "macs": 1_250_000_000, "images_per_s": 16.25, **ratios, **times}


def cell(size: int, rows: list[dict[str, Any]], step: str = "forward") -> dict[str, Any]:
    return {"group": "1G", "img_size": size, "step": step, "runtime": "eager", "batch": 8, "models": rows}


TOO_SLOW = {"model": "as_vit", "too_slow": True, "reason": "one batch took 31 s, and the limit is 30 s"}
NEVER = {"model": "as_vit", "reason": "at 384 px one batch took 31 s, and the limit is 30 s"}
CONTENT: dict[str, Any] = {
    "machine": {
        "device": "AMD EPYC",
        "torch": "2.15.0",
        "timm": "1.0.31",
        "cores": 2,
        "threads": 1,
        "instructions": "AVX512",
        "asvit-plugin": "0.1.0",
        "command": "python tools/benchmark.py --groups 1G\npython tools/benchmark.py --groups 1G --img-size 384",
    },
    "settings": {"dtype": "float32", "clock": "wall", "seconds": 3.0, "rounds": 9},
    "cells": [
        cell(512, [NEVER, row("deit_tiny_patch16_224", 1.0, None)]),
        cell(384, [TOO_SLOW, row("deit_tiny_patch16_224", 1.0)]),
        cell(224, [row("as_vit", 1.5), row("deit_tiny_patch16_224", 1.0)]),
        cell(224, [row("as_vit", 1.25), {"model": "deit_tiny_patch16_224", "reason": "out of memory"}], "training"),
    ],
}


def lines_of(content: dict[str, Any]) -> list[str]:
    return benchmark_report.page(content, "suite_test").splitlines()


def test_tables_of_a_group() -> None:
    lines = lines_of(CONTENT)
    forward = lines[lines.index("## Forward, eager") : lines.index("## Training, eager")]
    assert "### 1G: ratio to `deit_tiny_patch16_224`" in forward
    for line in (
        "| model | 224 px | 384 px | 512 px |",
        "| `as_vit` | 1.50 (1.40 to 1.60) | [1] | [2] |",
        "| `deit_tiny_patch16_224` | 1.00 (0.90 to 1.10) | 1.00 (0.90 to 1.10) | 1.00 (0.90 to 1.10) |",
        "[1] one batch took 31 s, and the limit is 30 s",
        "[2] at 384 px one batch took 31 s, and the limit is 30 s",
        "| `as_vit` | 5.70 | 1.25, 16.2, 1 |  |  |",
        "| `deit_tiny_patch16_224` | 5.70 | 1.25, 16.2, 1 | 1.25, 16.2, 1 | 1.25, 16.2 |",
    ):
        assert line in forward


def test_a_peer_that_failed_leaves_ratios_open() -> None:
    content = copy.deepcopy(CONTENT)
    content["cells"][-1]["models"][0].update(speed_ratio=None, speed_ratio_p10=None, speed_ratio_p90=None)
    lines = lines_of(content)
    training = lines[lines.index("## Training, eager") :]
    assert "| `as_vit` |  |" in training
    assert "| `as_vit` | 5.70 | 1.25, 16.2, 1 |" in training
    assert "[1] out of memory" in training


def test_a_page_says_what_was_measured_and_how() -> None:
    text = "\n".join(lines_of(CONTENT))
    for part in ("AMD EPYC", "1 thread on 2 cores (AVX512)", "torch 2.15.0", "float32, wall time", "3 s in 9 turns"):
        assert part in text
    assert f"```sh\n{CONTENT['machine']['command']}\n```" in text


def test_page_and_picture_lie_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "suite_test.json"
    path.write_text(json.dumps(CONTENT))
    benchmark_report.main([str(path)])
    assert (tmp_path / "suite_test.md").read_text() == benchmark_report.page(CONTENT, "suite_test")
    assert (tmp_path / "suite_test.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_has_a_point_for_each_model_that_was_timed() -> None:
    axes = benchmark_report.draw(CONTENT).axes
    points = {axis.get_title(): sum(len(line.get_xdata()) for line in axis.lines) for axis in axes}
    assert {title: count for title, count in points.items() if count} == {
        "224 px, forward, eager": 2,
        "384 px, forward, eager": 1,
        "512 px, forward, eager": 1,
        "224 px, training, eager": 1,
    }
    assert [text.get_text() for text in axes[0].texts] == ["as_vit"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("{}", "suite_test.json is no file of tools/benchmark.py (KeyError: 'machine')"),
        (json.dumps({**CONTENT, "cells": []}), "suite_test.json has no cells yet"),
    ],
)
def test_mistakes_get_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture, text: str, message: str) -> None:
    path = tmp_path / "suite_test.json"
    path.write_text(text)
    with pytest.raises(SystemExit) as exit:
        benchmark_report.main([str(path)])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("path", COMMITTED, ids=[path.stem for path in COMMITTED])
def test_pages_in_docs_are_what_their_files_give(path: Path) -> None:
    assert path.with_suffix(".md").read_text() == benchmark_report.page(read_benchmark(path), path.stem)
    assert path.with_suffix(".png").exists()


def test_the_readme_shows_a_table_of_a_page() -> None:
    docs = Path(__file__).parents[2]
    readme = (docs / "README.md").read_text()
    rows = [line for line in readme.splitlines() if " to " in line and line.startswith("| `")]
    page = (docs / "docs" / "benchmarks" / "suite_amd_epyc.md").read_text()
    assert len(rows) > 5
    assert all(row in page for row in rows)
