"""Latency of plain ViTs from a table of their parts."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import asvit_plugin  # noqa: F401
from asvit_plugin.costs import BlockTable, LatencyCache, LatencyLine, LatencySetting, params, relative_errors
from asvit_plugin.costs.block_latency import vit_parts

SMALL = dict(embed_dim=32, head_dim=16, img_size=32, num_classes=3)
NETS = [
    dict(depth=2, num_heads=2),
    dict(depth=4, num_heads=(1, 2, 1, 1)),
    dict(depth=3, num_heads=1, mlp_ratio=2.0),
    dict(depth=5, num_heads=(1, 1, 2, 2, 2), mlp_ratio=(2.0, 4.0, 4.0, 4.0, 2.0)),
]


def vit(**arguments: object) -> nn.Module:
    return timm.create_model("scaled_vit", **{**SMALL, **arguments}).eval()


def made_up(calls: list[nn.Module]) -> Callable[[list[nn.Module], list[torch.Tensor]], list[float]]:
    """A machine on which a part takes as many microseconds as it has parameters."""

    def measure(modules: list[nn.Module], inputs: list[torch.Tensor]) -> list[float]:
        calls.extend(modules)
        return [1e-6 * params(module) for module in modules]

    return measure


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("scaled_vit", dict(depth=3, num_heads=(1, 2, 1), **SMALL)),
        ("vit_tiny_patch16_224", dict(img_size=32)),
        ("deit_tiny_distilled_patch16_224", dict(img_size=32)),
        ("vit_base_patch16_clip_224", dict(img_size=32, embed_dim=48, num_heads=3, depth=2)),
        ("vit_wee_patch16_reg1_gap_256", dict(img_size=32, depth=2)),
    ],
)
@torch.no_grad()
def test_parts_one_after_the_other_are_the_model(name: str, arguments: dict) -> None:
    model = timm.create_model(name, **arguments).eval()
    names, images = list(model.state_dict()), torch.randn(2, 3, 32, 32)
    parts, outputs = vit_parts(model, images), images
    for part in parts:
        assert part.shape == tuple(outputs.shape)
        outputs = part.module(outputs)
    assert torch.equal(outputs, model(images))
    assert [part.name for part in parts[:2] + parts[-1:]] == ["stem", "blocks.0", "head"]
    assert list(model.state_dict()) == names
    assert not any(block._forward_pre_hooks for block in model.blocks)


def test_every_distinct_part_is_measured_once() -> None:
    calls: list[nn.Module] = []
    table = BlockTable(made_up(calls))
    table.totals([vit(**net) for net in NETS])
    blocks = 4  # one or two heads, MLPs of 2 or 4
    assert len(calls) == len(table.seconds) == blocks + 2
    table.total(vit(depth=7, num_heads=2))
    assert len(calls) == blocks + 2
    table.total(vit(depth=7, num_heads=2), (2, 3, 32, 32))
    assert len(calls) == blocks + 5


def test_a_made_up_linear_cost_is_recovered() -> None:
    calls: list[nn.Module] = []
    totals = BlockTable(made_up(calls)).totals([vit(**net) for net in NETS])
    seconds = [0.004 + 1.25 * total for total in totals]
    line = LatencyLine.fit(totals[:2], seconds[:2])
    assert line.offset == pytest.approx(0.004, rel=1e-6)
    assert line.slope == pytest.approx(1.25, rel=1e-6)
    assert relative_errors([line.predict(total) for total in totals[2:]], seconds[2:])[1] < 1e-9


def test_the_error_is_relative() -> None:
    assert relative_errors([1.1, 2.0, 2.0], [1.0, 2.0, 4.0]) == pytest.approx((0.1, 0.5))
    line = LatencyLine.fit([1.0, 2.0, 1e6], [1.0, 2.0, 2e6])  # one of three nets is off by 2: no line fits them all
    assert 0 < line.predict(1.0) < 2


def test_real_measurements_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, model = LatencyCache(tmp_path / "latency.json"), vit(depth=2, num_heads=1)
    setting = LatencySetting(threads=1)
    total = BlockTable.timed(setting, 1e-3, 2, cache).total(model)
    assert len(cache.latencies()) == 3
    assert 0 < total < 1
    assert BlockTable.timed(setting, 1e-3, 2, cache).total(model) == total


@pytest.mark.parametrize("name", ["resnet18", "scaled_pit", "swin_tiny_patch4_window7_224"])
def test_other_models_are_refused(name: str) -> None:
    model = timm.create_model(name)
    with pytest.raises(ValueError, match=f"{type(model).__name__} has no table of blocks; it must be a plain ViT"):
        vit_parts(model)


@pytest.mark.parametrize(
    "costs, seconds, message",
    [
        ([1.0, 1.0], [1.0, 2.0], "two different ones are needed"),
        ([1.0, 2.0], [1.0], "for 1 latencies"),
        ([1.0, 2.0], [0.0, 1.0], "seconds are .0.0, 1.0.; they must be positive"),
    ],
)
def test_a_line_needs_two_nets(costs: list[float], seconds: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatencyLine.fit(costs, seconds)
