"""tools/rank_proxies.py: its statistics, the nets that it builds, scores that are kept, and its mistakes."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rank_proxies
import timm
from rank_statistics import Comparison, pair_signs, partial_taus, taus, worst_to_best
from scipy.stats import kendalltau, spearmanr
from trained_nets import read_table

from asvit_plugin.costs import params
from asvit_plugin.search import PROXIES, Score

DOCS = Path(__file__).parents[2] / "docs" / "proxies.md"
PIT_TI = {"base_dim": 32, "mlp_ratio": 4, "depth": [2, 6, 4], "num_heads": [2, 4, 8]}
DEIT_TI = {"hidden_dim": 192, "depth": 12, "num_heads": [3] * 12, "mlp_ratio": [4] * 12}
TINY = {"base_dim": 8, "mlp_ratio": 2, "depth": [1, 1, 1]}
RESNET = {"model": "resnet18", "arguments": {}}


def write_table(path: Path, archs: list[Any], **changes: Any) -> Path:
    nets = [{"arch": arch, "accuracy": {"a": 50.0 + i, "b": 70.0 - i * i}} for i, arch in enumerate(archs)]
    path.write_text(json.dumps({"source": "a test", "input_size": 32, "nets": nets, **changes}))
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    heads = ([1, 1, 1], [1, 2, 2], [1, 2, 4], [2, 4, 4])
    return write_table(tmp_path / "tiny.json", [{**TINY, "num_heads": each} for each in heads])


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stand-ins that take no time; the parameters of every net that the first one is asked for."""
    asked: list[int] = []

    def first(model: Any, *, img_size: int, repeats: int, seed: int, device: str) -> Score:
        asked.append(params(model))
        return Score((math.nan,) if len(asked) == 2 else (float(asked[-1] % 97),))

    def size(model: Any, *, img_size: int) -> Score:
        return Score((float(params(model)),))

    proxies = {"first": (first, False), "parameters": (size, True), "macs": (size, True)}
    stand_ins = {name: SimpleNamespace(measure=each, maximize=more) for name, (each, more) in proxies.items()}
    monkeypatch.setattr(rank_proxies, "PROXIES", stand_ins)
    return asked


def command(table: Path, *more: str) -> list[str]:
    return [str(table), "--scores", str(table.with_name("scores.json")), "--resamples", "50", *more]


# Statistics ---------------------------------------------------------------------------------------------------------


def test_taus_are_scipys_with_ties_and_for_resamples() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 12, (2, 40)).astype(float)
    draws = generator.multinomial(40, np.full(40, 1 / 40), size=5)
    found = taus(pair_signs(x), pair_signs(y), np.vstack([np.ones(40), draws]))
    assert found[0] == pytest.approx(kendalltau(x, y).statistic)
    for row, tau in zip(draws, found[1:]):
        assert tau == pytest.approx(kendalltau(np.repeat(x, row), np.repeat(y, row)).statistic)


def test_agreement_by_hand() -> None:
    parameters = [1, 2, 3, 4, 5, 6, 7, 8]
    accuracy = [2, 1, 4, 3, 6, 5, 8, 7]  # in 4 of 28 pairs the smaller net is better
    by_size = Comparison(accuracy, parameters, bands=2, resamples=20).agreement(parameters)
    assert by_size.tau.value == pytest.approx(20 / 28)
    assert by_size.rho == pytest.approx(spearmanr(accuracy, parameters).statistic)
    assert math.isnan(by_size.partial_tau.value)
    assert by_size.band_tau.value == pytest.approx((6 - 4) / 6)
    perfect = Comparison(accuracy, parameters, bands=2, resamples=20).agreement([-a for a in accuracy], maximize=False)
    values = (perfect.tau.value, perfect.rho, perfect.partial_tau.value, perfect.band_tau.value)
    assert values == pytest.approx((1, 1, 1, 1))


def test_partial_tau_is_the_textbooks() -> None:
    xy, xz, yz = (np.array([value]) for value in (0.5, 0.6, 0.7))
    assert partial_taus(xy, xz, yz) == pytest.approx((0.5 - 0.42) / math.sqrt((1 - 0.36) * (1 - 0.49)))


def test_intervals_hold_the_estimate_narrow_with_more_nets_and_repeat() -> None:
    generator = np.random.default_rng(1)
    widths = []
    for count in (20, 200):
        size = generator.random(count)
        accuracy, scores = size + generator.random(count), size + generator.random(count)
        tau = Comparison(accuracy, size, resamples=300, seed=3).agreement(scores).tau
        assert tau == Comparison(accuracy, size, resamples=300, seed=3).agreement(scores).tau
        assert tau.low < tau.value < tau.high
        widths.append(tau.high - tau.low)
    assert widths[1] < widths[0] / 2


@pytest.mark.parametrize("maximize", [True, False])
def test_no_value_ranks_worst(maximize: bool) -> None:
    sign = 1 if maximize else -1
    ranks = worst_to_best([sign * 3.0, math.nan, sign * 5.0, math.inf], maximize)
    assert list(ranks) == [2, 1, 3, 1]


def test_scores_that_are_all_alike_say_nothing() -> None:
    found = Comparison([1, 2, 3], [3, 2, 1], resamples=5).agreement([math.nan] * 3)
    assert all(math.isnan(each) for each in (found.tau.value, found.rho, found.partial_tau.value, found.band_tau.low))


# Nets ---------------------------------------------------------------------------------------------------------------


def test_every_form_builds_the_net_it_says(tmp_path: Path) -> None:
    table = read_table(write_table(tmp_path / "t.json", [PIT_TI, DEIT_TI, RESNET], input_size=224))
    counts = [params(net.build(table.input_size)) for net in table.nets]
    assert counts == [params(timm.create_model(name)) for name in ("pit_ti_224", "vit_tiny_patch16_224", "resnet18")]


def test_autoformers_nets_differ_block_by_block(tmp_path: Path) -> None:
    arch = {"hidden_dim": 40, "depth": 2, "num_heads": [3, 4], "mlp_ratio": [3.5, 4]}
    table = read_table(write_table(tmp_path / "t.json", [arch] * 3, num_classes=10))
    model = table.nets[0].build(32)
    assert [block.attn.qkv.out_features for block in model.blocks] == [3 * 3 * 64, 3 * 4 * 64]
    assert [block.mlp.fc1.out_features for block in model.blocks] == [140, 160]
    assert model.num_classes == 10


def test_the_example_of_the_docs(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(DOCS.read_text().split("```json\n")[1].split("```")[0])
    table = read_table(tmp_path / "t.json")
    assert [net.model for net in table.nets] == ["scaled_vit", "as_vit", "deit_tiny_patch16_224"]
    assert all(net.build(table.input_size).num_classes == 100 for net in table.nets)


@pytest.mark.parametrize(
    ("name", "label", "section"),
    [
        ("rank_proxies_pit", "c100_base_acc", "## Do they predict anything?"),
        ("rank_proxies_as_vit_digits", "top1", "### As-ViT's own topologies"),
    ],
)
def test_the_numbers_of_the_docs(name: str, label: str, section: str) -> None:
    results = json.loads((DOCS.parent / "results" / f"{name}.json").read_text())
    text = DOCS.read_text().split(section)[1].split("\n### ")[0]
    for proxy in PROXIES:
        found = results["agreement"][label][proxy]
        taus = [found["tau"], found["band_tau"], *([found["partial_tau"]] if proxy != "parameters" else [])]
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{proxy}` |") and "[" in line]
        assert all("{value:.2f} [{low:.2f}, {high:.2f}]".format(**tau) in row for tau in taus)


def test_the_table_of_the_docs() -> None:
    table = read_table(rank_proxies.PIT_TABLE)
    assert len(table.nets) == 100
    assert "Auto-Prox" in table.source
    assert "Apache-2.0" in table.source
    assert len(table.labels) == 6
    assert table.nets[0].accuracy["c100_base_acc"] == 68.33


# The command --------------------------------------------------------------------------------------------------------


def test_prints_and_writes_all_of_it(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", str(tmp_path / "results.json"), "--picture", str(tmp_path / "picture.png")]
    rank_proxies.main(command(tiny, "--repeats", "1", "--img-size", "24", *files))
    printed = capsys.readouterr()
    result = json.loads((tmp_path / "results.json").read_text())
    assert set(result["agreement"]) == {"a", "b"}
    assert set(result["scores"]) == set(result["seconds_per_net"]) == set(rank_proxies.PROXIES)
    assert result["settings"]["img_size"] == 24
    assert result["agreement"]["a"]["parameters"]["tau"] == {"value": 1, "low": 1, "high": 1}
    for name in ("a, 4 nets", "b, 4 nets", *(f"| `{proxy}` |" for proxy in result["scores"])):
        assert name in printed.out
    assert "28/28" in printed.err
    assert (tmp_path / "picture.png").stat().st_size > 5_000


def test_stopped_it_goes_on(tiny: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    add = rank_proxies.Scores.add

    def stop_after_two(self: Any, *args: Any) -> None:
        add(self, *args)
        if len(measured) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rank_proxies.Scores, "add", stop_after_two)
        with pytest.raises(SystemExit, match="goes on from"):
            rank_proxies.main(command(tiny, "--proxies", "first"))
    assert len(measured) == 2
    results = tiny.with_name("results.json")
    rank_proxies.main(command(tiny, "--proxies", "first", "--json", str(results)))
    assert len(measured) == len(set(measured)) == 4
    assert [value is None for value in json.loads(results.read_text())["scores"]["first"]] == [
        False,
        True,
        False,
        False,
    ]
    rank_proxies.main(command(tiny, "--proxies", "first", "--labels", "b"))
    assert len(measured) == 4
    rank_proxies.main(command(tiny, "--proxies", "first", "--size", "macs"))
    assert len(measured) == 4
    for number, more in enumerate((["--seed", "1"], ["--repeats", "2"], ["--img-size", "16"]), start=2):
        rank_proxies.main(command(tiny, "--proxies", "first", *more))
        assert len(measured) == 4 * number


def test_sums_of_ranks(tiny: Path, measured: list[int]) -> None:
    results = tiny.with_name("results.json")
    rank_proxies.main(
        command(tiny, "--proxies", "macs", "--sums", "macs+parameters", "macs+first", "--json", str(results))
    )
    found = json.loads(results.read_text())
    assert set(found["scores"]) == {"macs", "parameters", "first"}
    assert found["agreement"]["a"]["macs+parameters"]["tau"]["value"] == 1  # both grow with the accuracy here
    assert found["agreement"]["b"]["macs+parameters"]["tau"]["value"] == -1
    assert abs(found["agreement"]["a"]["macs+first"]["tau"]["value"]) < 1


def test_two_runs_do_not_write_one_file(tiny: Path, measured: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    with rank_proxies.FileLock(tiny.with_name("scores.json.lock")), pytest.raises(SystemExit):
        rank_proxies.main(command(tiny))
    assert "which another run is writing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, message",
    [
        (["--labels", "c"], "labels has 'c'; it must be among a, b"),
        (["--proxies", "nosuch"], "invalid choice: 'nosuch'"),
        (["--sums", "first+nosuch"], "sums has 'nosuch'; it must be among first, parameters, macs"),
        (["--size", "first"], "invalid choice: 'first'"),
        (["--img-size", "0"], "img_size is 0; it must be at least 1"),
        (["--repeats", "0"], "repeats is 0; it must be at least 1"),
        (["--device", "nosuch"], "nosuch"),
        (["--scores", "{table}"], "which is no file of scores"),
        (["--scores", "{table}/scores.json"], "File exists"),
    ],
)
def test_mistakes_are_one_sentence(
    more: list[str], message: str, tiny: Path, measured: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        rank_proxies.main(command(tiny, *(each.format(table=tiny) for each in more)))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not measured


NET = {"arch": RESNET, "accuracy": {"a": 1.0}}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"nets": [NET, NET]}, "nets has 2 nets; a comparison needs at least 3"),
        ({"nets": 7}, "nets has no list of nets"),
        ({"input_size": "224"}, "input_size is '224'; it must be a whole number"),
        ({"nets": [NET, NET, {"arch": RESNET}]}, "nets[2] lacks accuracy"),
        ({"nets": [NET, {**NET, "arch": TINY}, NET]}, "nets[1].arch has base_dim, mlp_ratio, depth; it must have"),
        ({"nets": [NET, {**NET, "accuracy": {"a": None}}, NET]}, "nets[1].accuracy.a is None; it must be a finite"),
        (
            {"nets": [NET, {**NET, "accuracy": {"b": 1}}, NET]},
            "nets[1] has accuracies b; it must have those of nets[0]",
        ),
        ({"nets": [{**NET, "arch": {**RESNET, "model": "nosuch"}}] * 3}, "nets[0]: nosuch cannot be built: Unknown"),
        ({"nets": [{**NET, "arch": {**PIT_TI, "depth": [0, 1, 1]}}] * 3}, "scaled_pit cannot be built: depth is"),
    ],
)
def test_other_tables_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        rank_proxies.main(command(write_table(tmp_path / "t.json", [RESNET] * 3, **changes)))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text, message", [(None, "No such file"), ("{", "is no JSON"), ("[]", "the table is list")])
def test_unreadable_tables(text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if text is not None:
        (tmp_path / "t.json").write_text(text)
    with pytest.raises(SystemExit):
        rank_proxies.main(command(tmp_path / "t.json"))
    assert message in capsys.readouterr().err


def test_a_net_that_a_proxy_does_not_fit_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        rank_proxies.main(command(write_table(tmp_path / "t.json", [RESNET] * 3), "--proxies", "dss"))
    assert "nets[0]: " in capsys.readouterr().err
