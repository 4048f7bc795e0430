"""The table of finished runs: what it says of them is what they wrote, and what their trunks cost."""

import json
from pathlib import Path

import pytest
from detection_runs import YACS, refusal_of

pytest.importorskip("detectron2", reason="detectron2 is not installed, and on no index; the README says how")

import compare_runs
import timm
import yaml

from asvit_plugin.costs import macs


def test_table(finished: tuple[Path, dict], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, results = finished
    file = tmp_path / "results.json"
    (run,) = compare_runs.main([str(folder), "--results", str(file)])
    assert json.loads(file.read_text()) == [run]
    assert run["bbox/AP"] == pytest.approx(results["bbox"]["AP"], abs=0.005)
    assert run["segm/AP50"] == pytest.approx(results["segm"]["AP50"], abs=0.005)
    genotype = yaml.safe_load(YACS.read_text())["MODEL"]["TIMM"]["KWARGS"]["genotype"]
    model = timm.create_model("as_vit", genotype=genotype, img_size=128, num_classes=0)
    assert run["trunk"] == "as_vit"
    assert run["trunk_macs"] == pytest.approx(macs(model, (3, 128, 128)), rel=0.01)  # without what follows the maps
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert row[3] == f"{run['bbox/AP']:.1f}"


def test_runs_of_several_seeds_share_a_row(finished: tuple[Path, dict]) -> None:
    run = compare_runs.read_run(finished[0])
    other = run | {"bbox/AP": run["bbox/AP"] + 2, "seed": 1}
    (row,) = compare_runs.table([run, other]).splitlines()[2:]
    assert row.split(" | ")[3] == f"{run['bbox/AP'] + 1:.1f} ± 1.4"


def test_refuses_what_is_no_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    message = refusal_of(lambda: compare_runs.main([str(tmp_path)]), capfd)
    assert message.endswith("; it must be the output folder of a finished run of train_net.py")
