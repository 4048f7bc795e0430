"""The command that grows a family: seeds of every form, its files, and its refusals."""

import json
from pathlib import Path

import grow
import pytest
import timm
import yaml

from asvit_plugin.costs import params
from asvit_plugin.search import load_space

PLAIN = ["--space", "plain_vit", "--seed-net", "num_heads=2", "mlp_ratio=2", "patch_size=16", "img_size=32"]
SMALL = ["--low", "1e5", "--high", "1e6", "--proxies", "parameters", "--repeats", "1"]


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        grow.main(argv)
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*PLAIN, *SMALL, "--output", str(tmp_path / "grown")]
    grow.main(argv)
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "grown" / "family.json").read_text())
    assert (tmp_path / "grown" / "family.png").stat().st_size > 1000
    last = record["family"][-1]
    assert last["create_model"] in printed
    assert params(eval(last["create_model"], {"timm": timm})) == last["params"] >= 1e5
    assert printed.count("\n| ") == len(record["family"])
    for net in record["family"]:
        recipe = yaml.safe_load((tmp_path / "grown" / f"net_{net['step']}.yaml").read_text())
        assert recipe["img_size"] == 32
        assert "img_size" not in recipe["model_kwargs"]  # which train.py would refuse
        assert params(timm.create_model(recipe["model"], img_size=32, **recipe["model_kwargs"])) == net["params"]
    grow.main(argv)  # nothing is measured again
    assert json.loads((tmp_path / "grown" / "family.json").read_text())["family"] == record["family"]


def test_seed_of_a_search(tmp_path: Path) -> None:
    choice = {"K1": 8, "K2": 4}
    (tmp_path / "result.json").write_text(json.dumps({"best": {"choice": choice}}))
    assert grow.read_seed([str(tmp_path / "result.json")], load_space("as_vit")) == choice


def test_seed_as_a_genotype() -> None:
    space = load_space("as_vit")
    seed = grow.read_seed(["8,2,3|4,1,2|4,1,4|4,1,6|32"], space)
    arguments = space.growth.arguments(seed, {"L1": 3, "L2": 1, "L3": 4, "L4": 2, "W": 22})
    assert arguments == {"genotype": "8,2,3,3|4,1,2,1|4,1,4,4|4,1,6,2|32,88"}  # As-ViT Small


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--seed-net", "8,2"], "genotype '8,2' has 0 stages"),
        (["--space", "plain_vit", "--seed-net", "big"], "for space 'plain_vit' it must be DECISION=VALUE ..."),
        (["--space", "plain_vit", "--seed-net", "num_heads=2"], "the seed lacks 'img_size'; it must have"),
        ([*PLAIN, "--low", "9", "--high", "1"], "low is 9 and high 1; they must be positive, low at most high"),
        ([*PLAIN, "--low", "1", "--high", "2", "--proxies", "macs"], "high is 2 parameters; the smallest net that"),
        (["--space", "nowhere"], "space is 'nowhere'; it must be one of as_vit, "),
    ],
)
def test_refuses(argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refusal(capsys, *argv, "--output", str(tmp_path))


def test_refuses_a_file_that_is_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "result.json").write_text("[]")
    message = refusal(capsys, "--seed-net", str(tmp_path / "result.json"), "--output", str(tmp_path))
    assert message.endswith("result.json'; it must be the result.json of search_topology.py")
