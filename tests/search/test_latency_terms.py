"""Latency as a cost of gated nets: what is measured, and what its parts add up to, by measurements that are made up."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from supernets import ONE_STAGE, supernet
from torch import nn

from asvit_plugin.costs import BlockTable, LatencyCache, LatencySetting, params
from asvit_plugin.search import latency_terms
from asvit_plugin.search.gated_net import GatedNet, GatedResNAS
from asvit_plugin.search.gated_vit import gate_vit
from asvit_plugin.search.latency_terms import LATENCY


def vit() -> GatedNet:
    kwargs = {"depth": 3, "embed_dim": 32, "num_heads": 2, "head_dim": 16, "patch_size": 8, "img_size": 32}
    model = timm.create_model("scaled_vit", num_classes=5, **kwargs)
    return gate_vit(model, {"embed_dim": [16], "depth": [2], "num_heads": None, "mlp_hidden": [64]})


@pytest.mark.parametrize("make", [vit, lambda: GatedResNAS(supernet(ONE_STAGE))], ids=["vit", "vit_resnas"])
def test_parts_add_up_to_the_net(make: type, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def measure(modules: list[nn.Module], inputs: list[torch.Tensor]) -> list[float]:
        measured.extend(modules)
        return [float(params(module)) for module in modules]

    monkeypatch.setattr(BlockTable, "timed", lambda *args, **kwargs: BlockTable(measure))
    net = make()
    latency_terms.add_latency(net, (3, *((56, 56) if isinstance(net, GatedResNAS) else (32, 32))))
    assert len(measured) > 4
    rng = np.random.default_rng(0)
    for _ in range(10):  # parameters are a sum over the same parts
        choice = net.space.sample(rng)
        assert net.cost_of(LATENCY, choice) == params(net.extract(choice)) == net.cost_of("params", choice)


def test_seconds_are_measured_once(tmp_path: Path) -> None:
    cache, setting = LatencyCache(tmp_path / "latency.json"), LatencySetting(threads=1)
    first, second = vit(), vit()
    latency_terms.add_latency(first, (3, 32, 32), setting, 0.001, cache)
    kept = (tmp_path / "latency.json").read_bytes()
    latency_terms.add_latency(second, (3, 32, 32), setting, 0.001, cache)
    assert (tmp_path / "latency.json").read_bytes() == kept
    assert second.reach(LATENCY) == first.reach(LATENCY)
    assert 0 < first.reach(LATENCY)[0] < first.reach(LATENCY)[1]


def test_a_failed_measurement_leaves_no_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(modules: list[nn.Module], inputs: list[torch.Tensor]) -> list[float]:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(BlockTable, "timed", lambda *args, **kwargs: BlockTable(fail))
    net = vit()
    with pytest.raises(RuntimeError, match="no such kernel"):
        latency_terms.add_latency(net, (3, 32, 32))
    assert net.costs == ("macs", "params")
