"""A few topologies, really trained: the table that rank_proxies.py reads."""

import json
import sys
from pathlib import Path

import pytest
import topology_study
import trained_nets

from asvit_plugin.models.as_vit_genotype import AsViTGenotype
from asvit_plugin.search import load_space


def run(monkeypatch: pytest.MonkeyPatch, *argv: str) -> None:
    monkeypatch.setattr(sys, "argv", ["topology_study.py", *argv])
    topology_study.main()


@pytest.mark.slow
def test_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["--nets", "3", "--seeds", "1", "--epochs", "1", "--output", str(tmp_path)]
    run(monkeypatch, *argv)
    table = json.loads((tmp_path / "table.json").read_text())
    assert all(5 < net["accuracy"]["top1"] <= 100 for net in table["nets"])
    finished = (tmp_path / "net000-0" / "last.pth.tar").stat().st_mtime_ns
    run(monkeypatch, *argv)  # nothing is trained again
    assert (tmp_path / "net000-0" / "last.pth.tar").stat().st_mtime_ns == finished
    nets = trained_nets.read_table(tmp_path / "table.json").nets
    model = nets[2].build(32)
    assert str(model.genotype) == topology_study.draw_topologies(3)[2]


def test_topologies_are_of_the_space_and_differ() -> None:
    few, more = topology_study.draw_topologies(5), topology_study.draw_topologies(40)
    assert more[:5] == few
    assert len(set(more)) == 40
    space = load_space("as_vit")
    for genotype in map(AsViTGenotype.parse, more):
        assert genotype.embed_dim == topology_study.WIDTH
        assert genotype.kernel_sizes[0] in space.decisions["K1"]


def test_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "--epochs", "0")
    assert capsys.readouterr().err.endswith("argument --epochs is 0; it must be at least 1\n")
