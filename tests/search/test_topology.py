"""The seed search over small spaces, with stand-ins for the proxies."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import timm

from asvit_plugin.costs import macs, params
from asvit_plugin.search import Space, TopologySettings, load_space, measuring, search_topology
from asvit_plugin.search.space_schema import parse_space

TINY = """
model: scaled_vit
decisions:
  depth: [1, 2, 3]
  num_heads: [1, 2]
  mlp_ratio: [1, 2]
  img_size: [16, 32]
arguments: {head_dim: 8, patch_size: 8, depth: "{depth}", num_heads: "{num_heads}", mlp_ratio: "{mlp_ratio}",
            img_size: "{img_size}"}
"""


class Proxy:
    """Counts something of a net, and its own calls."""

    def __init__(self, maximize: bool, value: Any) -> None:
        self.maximize, self.value = maximize, value
        self.calls: list[dict[str, Any]] = []

    def measure(self, model: Any, **kwargs: Any) -> SimpleNamespace:
        self.calls.append(kwargs)
        return SimpleNamespace(value=float(self.value(model)), spread=math.nan, values=[])


@pytest.fixture
def proxies(monkeypatch: pytest.MonkeyPatch) -> dict[str, Proxy]:
    """As many blocks as can be, with as few parameters as can be; three blocks give no value."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    depth = Proxy(True, lambda model: math.nan if len(model.blocks) == 3 else len(model.blocks))
    named = {"depth": depth, "size": Proxy(False, params)}
    monkeypatch.setattr(measuring, "PROXIES", named)
    return named


@pytest.fixture
def tiny() -> Space:
    return parse_space(TINY, "tiny")


def settings(**kwargs: Any) -> TopologySettings:
    return TopologySettings(**{"proxies": ("depth", "size"), "steps": 16, "seed": 1, "repeats": 2, **kwargs})


@pytest.mark.parametrize("sampler", ["reinforce", "random", "tpe", "nsga2"])
def test_every_sampler_gives_a_net_that_can_be_built(
    sampler: str, proxies: dict[str, Proxy], tiny: Space, tmp_path: Path
) -> None:
    found = search_topology(tiny, settings(sampler=sampler), tmp_path / "study.db")
    assert [trial["number"] for trial in found.trials] == list(range(16))
    model = eval(found.best.line, {"timm": timm})
    assert params(model) == found.best.params == found.best.values["size"]
    assert macs(model) == found.best.macs
    assert len(model.blocks) == found.best.values["depth"]
    assert (found.argmax is None) == (found.policy is None) == (sampler != "reinforce")
    if found.argmax is not None:
        assert found.argmax.choice == found.policy.most_probable()
        assert len(found.policy.rewards) == len(found.policy.entropies) == 16


def test_a_net_without_a_value_is_kept_and_ranks_worst(proxies: dict[str, Proxy], tiny: Space) -> None:
    found = search_topology(tiny, settings())
    without = [trial for trial in found.trials if math.isnan(trial["values"]["depth"])]
    assert without
    assert all(trial["choice"]["depth"] == 3 and trial["values"]["size"] > 0 for trial in without)
    assert found.best.choice["depth"] < 3
    assert all(found.policy.rewards[trial["number"]] <= 0 for trial in without)


def test_a_net_is_measured_once(proxies: dict[str, Proxy], tiny: Space) -> None:
    found = search_topology(tiny, settings(steps=24))
    nets = {tuple(trial["choice"].values()) for trial in found.trials}
    assert len(nets) < 24
    assert len(proxies["size"].calls) == len(nets | {tuple(found.argmax.choice.values())})
    assert all(call["seed"] == 1 and call["repeats"] == 2 and call["device"] == "cpu" for call in proxies["size"].calls)
    assert {call["img_size"] for call in proxies["size"].calls} == {16, 32}


def test_progress_is_told_from_the_start(proxies: dict[str, Proxy], tiny: Space, tmp_path: Path) -> None:
    search_topology(tiny, settings(steps=3), tmp_path / "study.db")
    seen: list[int] = []
    search_topology(tiny, settings(steps=5), tmp_path / "study.db", on_trial=lambda trials: seen.append(len(trials)))
    assert seen == [3, 4, 5]


def test_the_papers_settings_are_the_defaults() -> None:
    space = load_space("as_vit")
    defaults = TopologySettings.__dataclass_fields__
    assert defaults["steps"].default == 500
    assert defaults["seed"].default == 8
    assert defaults["repeats"].default == 5
    assert defaults["proxies"].default == ("length_distortion", "ntk_condition")
    assert "img_size" not in space.template  # the model's own: 224


def test_a_study_of_another_space_is_refused(proxies: dict[str, Proxy], tiny: Space, tmp_path: Path) -> None:
    search_topology(tiny, settings(steps=1), tmp_path / "study.db")
    other = parse_space(TINY.replace("[1, 2, 3]", "[1, 2]"), "tiny")
    with pytest.raises(ValueError, match=r"study 'tiny' in .* was begun with space 'tiny \([0-9a-f]{16}\)', not 'tiny"):
        search_topology(other, settings(steps=1), tmp_path / "study.db")
    with pytest.raises(ValueError, match=r"was begun with proxies \['depth', 'size'\], not \['size'\]"):
        search_topology(tiny, settings(steps=1, proxies=("size",)), tmp_path / "study.db")


def test_a_net_that_cannot_be_built_is_named(proxies: dict[str, Proxy]) -> None:
    space = parse_space("model: scaled_vit\ndecisions: {d: [0]}\narguments: {depth: '{d}'}", "s")
    with pytest.raises(ValueError, match="scaled_vit cannot be built with depth=0: depth is 0; it must be"):
        search_topology(space, settings(steps=1))
    space = parse_space("model: nosuch\ndecisions: {d: [1]}\narguments: {}", "s")
    with pytest.raises(ValueError, match="nosuch cannot be built"):
        search_topology(space, settings(steps=1))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(steps=0), "steps is 0; it must be a whole number of at least 1"),
        (dict(repeats=1.5), "repeats is 1.5"),
        (dict(seed=-1), "seed is -1"),
        (dict(sampler="grid"), "sampler is 'grid'; it must be one of 'reinforce', 'random'"),
        (dict(proxies=("nosuch",)), "proxies is 'nosuch'; it must be one of 'depth', 'size'"),
        (dict(proxies="parameters"), "proxies is .parameters.; it must be a list of names, such as"),
        (dict(proxies=()), "at least one, and none twice"),
        (dict(img_size=0), "img_size is 0"),
    ],
)
def test_bad_settings_are_refused(proxies: dict[str, Proxy], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**kwargs)


def test_the_image_size_has_one_source(proxies: dict[str, Proxy], tiny: Space) -> None:
    with pytest.raises(ValueError, match="img_size is 24, but space 'tiny' decides it; leave it out"):
        search_topology(tiny, settings(steps=1, img_size=24))
    fixed = parse_space("model: scaled_vit\ndecisions: {d: [1]}\narguments: {depth: '{d}', head_dim: 8}", "fixed")
    found = search_topology(fixed, settings(steps=1, img_size=48))
    assert "img_size=48" in found.best.line
    assert proxies["size"].calls[-1]["img_size"] == 48
