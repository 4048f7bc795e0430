"""The command that scales a net, with bases of other kinds: PiT, As-ViT, files, and what is refused of them."""

import importlib.util
import json
from pathlib import Path

import pytest
import scale
import timm
import yaml
from scale_runs import CHEAP, refusal, result

from asvit_plugin.costs import params
from asvit_plugin.search import load_space

PIT = ["--base", "pit_ti", "depth=1,1,1", "num_heads=1,2,2", "head_dim=8", "img_size=32", "patch_size=8", "stride=8"]


def test_a_pit_stage_by_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    factors = ["--factors", "depth=2,3", "mlp_ratio_2"]
    scale.main([*PIT, *CHEAP, "--to", "1.8e5", "--growth", "1.5", *factors, "--output", str(tmp_path)])
    assert "| net | depth_1 | depth_2 | depth_3 | mlp_ratio_2 |" in capsys.readouterr().out
    record = result(tmp_path)
    assert [net["model"] for net in record["nets"]] == ["scaled_pit"] * len(record["nets"])
    last = record["nets"][-1]
    choice = last["choice"]
    assert last["arguments"]["depth"] == [choice["depth_1"], choice["depth_2"], choice["depth_3"]] != [1, 1, 1]
    assert load_space(tmp_path / "space.yaml").fingerprint == record["space"]["fingerprint"]
    recipe = yaml.safe_load((tmp_path / f"net_{last['step']}.yaml").read_text())
    built = timm.create_model(recipe["model"], img_size=recipe["img_size"], **recipe["model_kwargs"])
    assert params(built) == last["params"]


def test_a_genotype_and_then_the_net_that_was_found(tmp_path: Path) -> None:
    small = ["--base", "8,2,3|4,1,2|4,1,4|4,1,6|8,8", "img_size=32", *CHEAP, "--growth", "2"]
    scale.main([*small, "--to", "6.5e5", "--factors", "depth=1,2", "--output", str(tmp_path / "first")])
    last = result(tmp_path / "first")["nets"][-1]
    assert last["model"] == "as_vit"
    assert last["arguments"]["genotype"].startswith("8,2,3,")
    file = str(tmp_path / "first" / f"net_{last['step']}.yaml")
    wider = ["--to", "2e6", "--growth", "3", "--factors", "width"]
    scale.main(["--base", file, *CHEAP, *wider, "--output", str(tmp_path / "next")])
    record = result(tmp_path / "next")
    assert record["nets"][0]["arguments"] == last["arguments"]
    assert record["nets"][-1]["choice"]["width"] > 8


def test_a_table_of_pits(tmp_path: Path) -> None:
    nets = [{"base_dim": 8, "mlp_ratio": 4, "depth": [1, depth, 1], "num_heads": [1, 2, 2]} for depth in (1, 2, 3)]
    rows = [{"arch": net, "accuracy": {"top1": 50.0 + net["depth"][1]}} for net in nets]
    path = tmp_path / "nets.json"
    path.write_text(json.dumps({"source": "made up", "input_size": 32, "num_classes": 10, "nets": rows}))
    base = ["--base", "pit_ti", "depth=1,1,1", "num_heads=1,2,2", "head_dim=8", "img_size=32"]
    argv = ["--oracle", str(path), "--budget", "params", "--to", "3.7e4", "--factors", "depth=1,2,3", "--growth", "3"]
    scale.main([*base, *argv, "--output", str(tmp_path / "out")])
    found = result(tmp_path / "out")
    assert [net["score"] for net in found["nets"]] == [51.0, 53.0]
    assert sum(each["score"] is not None for each in found["trials"]) < len(found["trials"])  # others are not in it


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--base", "deit_tiny", "pit_ti"], "--base has 'deit_tiny' and 'pit_ti'; one net is scaled"),
        (["--base", "no.yaml"], "name is 'no.yaml'; the file cannot be read: No such file"),
        (["--base", "pit_ti", "--factors", "width"], "factors is 'width'; it must be one of 'depth', 'num_heads'"),
        (["--base", "as_vit", "--factors", "patch_size"], "factors is 'patch_size'; it must be one of 'depth'"),
        (["--base", "pit_ti", "--oracle", "tools/data/as_vit_digits.json"], "has no net of scaled_pit"),
        (["--recipe", "a.yaml"], "--recipe is for --oracle trained, and --oracle is 'spectrum_entropy'"),
        (["--train-options", "--lr 1"], "--train-options is for --oracle trained"),
    ],
)
def test_refuses_what_does_not_fit(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(scale.__file__).parents[1])
    assert message in refusal(capsys, "--to", "1e9", *argv, "--output", str(tmp_path))


def test_refuses_a_net_that_cannot_be_scaled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "net.yaml"
    file.write_text("{model: resnet18, model_kwargs: {}}")
    assert "base is 'resnet18'; it must be one of deit_tiny" in refusal(capsys, "--base", str(file), "--to", "1e9")


def test_refuses_a_runtime_that_is_not_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else found(name))
    argv = ["--budget", "latency", "--to", "1", "--runtime", "openvino", "--output", str(tmp_path)]
    assert "--runtime: runtime 'openvino' needs openvino: pip install" in refusal(capsys, *argv)
