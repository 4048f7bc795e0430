"""The command that scales a net: its paths, fronts and files, oracles, and refusals."""

import json
from pathlib import Path

import pytest
import scale
import timm
import yaml
from scale_runs import CHEAP, refusal, result

from asvit_plugin.costs import params
from asvit_plugin.search import load_space

BASE = ["--base", "deit_tiny", "depth=2", "num_heads=2", "head_dim=8", "img_size=32", "patch_size=8"]


def test_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*BASE, *CHEAP, "--to", "1.5e6", "--output", str(tmp_path)]
    scale.main(argv)
    printed, record = capsys.readouterr().out, result(tmp_path)
    assert record["end"] == "budget"
    assert (tmp_path / "result.png").stat().st_size > 1000
    assert printed.count("\n| ") - 1 == len(record["nets"]) > 2
    assert record["nets"][-1]["macs"] == pytest.approx(1.5e6, rel=0.031)
    for net in record["nets"]:
        assert f"{net['step']}: {net['create_model']}" in printed
        recipe = yaml.safe_load((tmp_path / f"net_{net['step']}.yaml").read_text())
        built = timm.create_model(recipe["model"], img_size=recipe["img_size"], **recipe["model_kwargs"])
        assert params(built) == params(eval(net["create_model"], {"timm": timm})) == net["params"]
    assert load_space(tmp_path / "space.yaml").fingerprint == record["space"]["fingerprint"]
    scale.main(argv)  # nothing is measured again
    assert result(tmp_path)["nets"] == record["nets"]
    assert result(tmp_path)["trials"] == record["trials"]


def test_at_equal_cost_by_a_proxy(tmp_path: Path) -> None:
    factors = ["--factors", "depth", "head_dim", "--repeats", "1", "--tolerance", "0.2", "--steps", "2"]
    scale.main([*BASE, "--iso", *factors, "--output", str(tmp_path)])
    record = result(tmp_path)
    assert record["oracle"] == {"oracle": "spectrum_entropy", "maximize": True, "repeats": 1, "seed": 0}
    assert set(record["nets"][0]["choice"]) == {"depth", "head_dim"}
    assert all(net["macs"] == pytest.approx(record["nets"][0]["macs"], rel=0.21) for net in record["nets"])


def test_latency(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = str(tmp_path / "latency.json")
    timing = ["--budget", "latency", "--to", "10", "--runtime", "torchscript", "--seconds", "0.01", "--cache", cache]
    scale.main([*BASE, *CHEAP, *timing, "--factors", "depth=2,3", "--output", str(tmp_path / "out")])
    record = result(tmp_path / "out")
    assert (record["end"], record["timing"]["runtime"], record["timing"]["batch"]) == ("no move", "torchscript", 1)
    assert [net["choice"]["depth"] for net in record["nets"]] == [2, 3]
    assert "| ms |" in capsys.readouterr().out
    assert len(json.loads(Path(cache).read_text())["latencies"]) == 2


def test_front(tmp_path: Path) -> None:
    argv = [*BASE, *CHEAP, "--to", "2e6", "--sampler", "nsga2", "--steps", "8", "--output", str(tmp_path)]
    scale.main(argv)
    record = result(tmp_path)
    assert len(record["trials"]) == 8
    assert record["settings"]["sampler"] == "nsga2"
    scale.main([*argv[:-3], "9", *argv[-2:]])
    assert len(result(tmp_path)["trials"]) == 9
    left = {path.name for path in tmp_path.glob("net_*.yaml")}
    assert left == {f"net_{net['step']}.yaml" for net in result(tmp_path)["nets"]}


def table(tmp_path: Path, depths: tuple[int, ...] = (2, 3, 4)) -> str:
    shape = {"num_heads": 2, "head_dim": 8, "patch_size": 8}
    nets = [
        {"arch": {"model": "scaled_vit", "arguments": {**shape, "depth": depth}}, "accuracy": {"top1": 50.0 + depth}}
        for depth in depths
    ]
    path = tmp_path / "nets.json"
    path.write_text(json.dumps({"source": "made up", "input_size": 32, "num_classes": 10, "nets": nets}))
    return str(path)


def test_a_table_as_the_oracle(tmp_path: Path) -> None:
    argv = ["--oracle", table(tmp_path), "--to", "4e5", "--growth", "2", "--factors", "depth=3,4", "head_dim"]
    scale.main([*BASE, *argv, "--tolerance", "0.3", "--output", str(tmp_path / "out")])
    nets = result(tmp_path / "out")["nets"]
    assert nets[0]["score"] == 52.0
    assert {net["score"] for net in nets} <= {52.0, 53.0, 54.0}  # no other net is in the table
    assert len(nets) > 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--to", "10"], "budget is 10 multiply-accumulates; the nets of space 'scaling' reach from"),
        (["--to", "1e6", "--base", "deit_giant"], "--base is 'deit_giant'; it must be one of deit_tiny, deit_small"),
        (
            ["--to", "1e6", "--base", "deit_giant"],
            "scaled_pit, as_vit, as_vit_small, as_vit_base, as_vit_large, a genotype of As-ViT, or a net_STEP.yaml",
        ),
        (["--to", "1e6", "--base", "depth=x"], "depth is 'x'; as a scaling factor it must be a whole number"),
        (["--to", "1e6", "--base", "num_classes=3"], "--base: 'num_classes' cannot be set there"),
        (["--to", "1e6", "--factors", "width"], "factors is 'width'; it must be one of 'depth', 'num_heads'"),
        (["--to", "1e6", "--oracle", "luck"], "--oracle is 'luck'; it must be one of length_distortion"),
        (["--to", "1e6", "--label", "top1"], "--label is 'top1'; it is for a table"),
        ([], "give --to BUDGET, so many multiply-accumulates, or --iso"),
        (["--budget", "latency"], "give --to BUDGET, so many seconds, or --iso"),
        (["--iso", "--to", "1e6"], "--iso stays at what the base costs, and --to is 1e+06; give one of them"),
        (["--to", "1e6", "--strategy", "none.json"], "--strategy is 'none.json', and there is no such file"),
        (["--iso", "--sampler", "nsga2"], "--iso is for a path; with --sampler leave it out"),
        (["--budget", "latency", "--to", "1", "--threads", "0"], "threads is 0; it must be a whole number"),
    ],
)
def test_refuses(argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refusal(capsys, *BASE, *argv, "--output", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()  # nothing is left that the right command would trip over


def test_shows_and_writes_the_net_of_every_step_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    factors = ["--factors", "depth", "head_dim", "mlp_ratio"]
    argv = [*BASE, *CHEAP, *factors, "--to", "5e5", "--output", str(tmp_path)]

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(scale, "write_report", stopped)
        with pytest.raises(SystemExit, match="stopped; the same command goes on from here"):
            scale.main(argv)
    first, *steps = capsys.readouterr().out.strip().splitlines()
    files = {path.name: path.read_text() for path in tmp_path.glob("net_*.yaml")}
    scale.main(argv)
    record = result(tmp_path)
    base, *_, last = nets = record["nets"]
    assert first.startswith(f"deit_tiny costs {base['cost'] / 1e9:.4g} GMACs, the budget is 0.0005 GMACs: up to about ")
    assert len(steps) == len(nets) > 2
    assert steps[0] == f"step 0: {base['cost'] / 1e9:.4g} GMACs, parameters {base['score']:.5g}"
    assert steps[-1].startswith(f"step {last['step']}: {last['move']}; {last['cost'] / 1e9:.4g} GMACs, parameters ")
    assert files == {path.name: path.read_text() for path in tmp_path.glob("net_*.yaml")}
    assert set(files) == {f"net_{net['step']}.yaml" for net in nets}
    assert "strategy.json and net_*.yaml" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("other", "begun"),
    [
        (["--to", "1.6e6"], "with value 1500000.0, not 1600000.0"),
        (["--to", "1e6", "--factors", "depth", "num_heads"], "with another --base or other --factors"),
    ],
    ids=("budget", "factors"),
)
def test_refuses_the_output_of_another_path(
    other: list[str], begun: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*BASE, *CHEAP, "--steps", "1", "--output", str(tmp_path)]
    scale.main([*argv, "--to", "1.5e6"])
    said = refusal(capsys, *argv, *other)
    assert f"--output is {str(tmp_path)!r}, which holds what was begun {begun}; name another --output" in said


def test_refuses_a_label_that_the_table_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--to", "1e6", "--oracle", table(tmp_path), "--label", "top5", "--output", str(tmp_path)]
    assert "--label is 'top5'; it must be one of top1" in refusal(capsys, *BASE, *argv)
