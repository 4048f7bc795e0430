"""Growing small nets: the released loop, budgets, kills, several processes, and what is refused."""

import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import timm
import torch

from asvit_plugin.costs import macs, params
from asvit_plugin.search import PROXIES, GrowthSettings, grow, load_space
from asvit_plugin.search.growth_rule import pick, widths
from asvit_plugin.search.space import Space
from asvit_plugin.search.space_schema import parse_space

optuna.logging.set_verbosity(optuna.logging.CRITICAL)
FORK = multiprocessing.get_context("fork")
AS_VIT = load_space("as_vit")
SEED = {"K1": 4, "K2": 2, "K3": 2, "K4": 2, "S1": 2, "S2": 1, "S3": 1, "E1": 2, "E2": 2, "E3": 3, "E4": 2, "H": 8}
CHEAP = dict(proxies=("parameters", "macs"), repeats=1, img_size=32)
FEW = GrowthSettings(low=2.5e6, high=4e6, **CHEAP)

PLAIN = load_space("plain_vit")
PLAIN_SEED = {"num_heads": 2, "mlp_ratio": 2, "patch_size": 16, "img_size": 32}
SMALL = GrowthSettings(low=1.5e5, high=1e6, proxies=("parameters",), repeats=1)


def genotype(depths: list[int], width: int) -> str:
    stages = zip((4, 2, 2, 2), (2, 1, 1, 1), (2, 2, 3, 2), depths)
    return "|".join([*(",".join(map(str, stage)) for stage in stages), f"8,{width}"])


def released_loop(low: float, high: float) -> list[str]:
    """The released loop as it stands, with parameters and MACs of the thin net in the place of its scores."""
    with torch.device("meta"):
        return _released_loop(low, high)


def _released_loop(low: float, high: float) -> list[str]:
    depths, width, family = [1, 1, 1, 1], 8, []
    while True:
        found = []
        for stage in range(4):
            for wider in widths(width):
                deeper = [depth + (index == stage) for index, depth in enumerate(depths)]
                if params(timm.create_model("as_vit", genotype=genotype(deeper, 4 * wider), img_size=32)) <= high:
                    thin = timm.create_model("as_vit", genotype=genotype(deeper, wider), img_size=32, pos_embed=False)
                    found.append((deeper, wider, params(thin), macs(thin, (1, 3, 32, 32))))
        if not found:
            return family
        scores = {"parameters": [each[2] for each in found], "macs": [each[3] for each in found]}
        depths, width, *_ = found[pick(scores, {name: PROXIES[name].maximize for name in scores})]
        family.append(genotype(depths, 4 * width))
        if params(timm.create_model("as_vit", genotype=family[-1], img_size=32)) >= low:
            return family


def genotypes(family: list[Any]) -> list[str]:
    return [net.arguments["genotype"] for net in family]


def test_is_the_released_loop() -> None:
    family = grow(AS_VIT, SEED, FEW)
    assert genotypes(family) == released_loop(FEW.low, FEW.high)
    assert len(family) > 1
    net = family[-1]
    model = eval(net.line, {"timm": timm})
    assert (params(model), macs(model, (1, 3, 32, 32))) == (net.params, net.macs)
    assert net.cost == net.params >= FEW.low
    assert all(each.params < FEW.low for each in family[:-1])


def test_budget_of_macs() -> None:
    family = grow(AS_VIT, SEED, GrowthSettings(budget="macs", low=6e6, high=2e7, **CHEAP))
    assert family[-1].cost == family[-1].macs
    assert 6e6 <= family[-1].macs <= 2e7


def test_budget_of_latency() -> None:
    settings = GrowthSettings(budget="latency", low=1e-6, high=60.0, **CHEAP)
    small = Space("small", "as_vit", AS_VIT.decisions, AS_VIT.template, growth=_one_depth())
    (net,) = grow(small, SEED, settings)
    assert 1e-6 < net.cost < 60


def _one_depth():
    from asvit_plugin.search.growth_rule import GrowthRule

    template = {"genotype": "{K1},{S1},{E1},{L}|2,1,1,1|2,1,1,1|2,1,1,1|{H},{W}"}
    return GrowthRule(("L",), "W", {"L": 1, "W": 8}, template, width_factor=1)


def test_plain_vits_grow_by_the_same_rule() -> None:
    family = grow(PLAIN, PLAIN_SEED, SMALL)
    assert len(family) > 2
    assert [net.size["depth"] for net in family] == list(range(2, len(family) + 2))
    assert family[-1].arguments["head_dim"] == 4 * family[-1].size["head_dim"]


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [2, 7])
def test_goes_on_after_a_kill(after: int, tmp_path: Path) -> None:
    seen = []

    def kill(step: int, done: int, count: int) -> None:
        seen.append((step, done))
        if len(seen) == after:
            raise Killed

    with pytest.raises(Killed):
        grow(PLAIN, PLAIN_SEED, SMALL, tmp_path / "study.db", on_trial=kill)
    assert grow(PLAIN, PLAIN_SEED, SMALL, tmp_path / "study.db") == grow(PLAIN, PLAIN_SEED, SMALL)
    assert_measured_once(tmp_path / "study.db")


def assert_measured_once(storage: Path) -> None:
    study = optuna.load_study(study_name="plain_vit-growth", storage=f"sqlite:///{storage}")
    done = [trial.user_attrs for trial in study.trials if trial.state.name == "COMPLETE"]
    candidates = [(each["step"], each["candidate"]) for each in done]
    assert len(candidates) == len(set(candidates)) > 3


def test_two_processes_share_the_candidates(tmp_path: Path) -> None:
    storage = tmp_path / "study.db"
    workers = [FORK.Process(target=grow, args=(PLAIN, PLAIN_SEED, SMALL, storage)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(100)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert grow(PLAIN, PLAIN_SEED, SMALL, storage) == grow(PLAIN, PLAIN_SEED, SMALL)
    assert_measured_once(storage)


def test_refuses_a_budget_that_no_net_meets() -> None:
    with pytest.raises(ValueError, match=r"high is 1000 parameters; the smallest net that the seed grows into has \d"):
        grow(AS_VIT, SEED, GrowthSettings(low=10, high=1000, **CHEAP))


def test_refuses_a_seed_without_a_decision() -> None:
    seed = {name: value for name, value in SEED.items() if name != "H"}
    with pytest.raises(ValueError, match="the seed lacks 'H'; it must have"):
        grow(AS_VIT, seed, FEW)


def test_refuses_a_space_that_does_not_grow() -> None:
    space = parse_space("{model: scaled_vit, decisions: {depth: [1]}, arguments: {depth: '{depth}'}}", "still")
    with pytest.raises(ValueError, match="space 'still' has no growth, which says how its nets grow"):
        grow(space, {"depth": 1}, FEW)


def test_refuses_an_image_size_that_the_space_decides() -> None:
    with pytest.raises(ValueError, match="img_size is 64, but space 'plain_vit' decides it; leave it out"):
        grow(PLAIN, PLAIN_SEED, replace(SMALL, img_size=64))


def test_refuses_a_study_of_another_budget(tmp_path: Path) -> None:
    storage = tmp_path / "study.db"
    grow(PLAIN, PLAIN_SEED, SMALL, storage)
    with pytest.raises(ValueError, match="was begun with low 150000.0, not 200000.0"):
        grow(PLAIN, PLAIN_SEED, replace(SMALL, low=2e5), storage)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(budget="time"), "budget is 'time'; it must be one of"),
        (dict(low=5.0, high=1.0), "low is 5 and high 1; they must be positive, low at most high"),
        (dict(repeats=0), "repeats is 0; it must be a whole number of at least 1"),
        (dict(seed=-1), "seed is -1; it must be a whole number of at least 0"),
        (dict(img_size=0), "img_size is 0; it must be a whole number of at least 1, or None"),
        (dict(proxies=("macs", "macs")), "there must be at least one, and none twice"),
        (dict(proxies=("luck",)), "proxies is 'luck'; it must be one of"),
    ],
)
def test_refuses_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GrowthSettings(**change)


GROWTH = "growth: {depths: [depth], width: dim, start: {depth: 1, dim: 8}, width_factor: 4, arguments: {depth: '%s'}}"


@pytest.mark.parametrize(
    ("growth", "message"),
    [
        (GROWTH % "{deep}", "'deep' in space 'x' names 'deep', which is no decision of it"),
        ("growth: {depths: [depth]}", "growth of space 'x' lacks the key 'width'"),
        ("growth: 3", "growth of space 'x' is 3; it must be a mapping"),
        (GROWTH % "1" + "\n  ", None),
    ],
)
def test_growth_of_a_space_file(growth: str, message: str | None) -> None:
    text = f"model: scaled_vit\ndecisions: {{num_heads: [1]}}\narguments: {{num_heads: '{{num_heads}}'}}\n{growth}"
    if message is None:
        assert parse_space(text, "x").growth.start == {"depth": 1, "dim": 8}
        return
    with pytest.raises(ValueError, match=message):
        parse_space(text, "x")
