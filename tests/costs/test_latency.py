"""Measured latency and peak memory of small models."""

import time

import pytest
import torch
from torch import nn

from asvit_plugin.costs import (
    LatencyCache,
    LatencyProbe,
    LatencySetting,
    measure_in_turn,
    measure_latency,
    speed_ratio,
)

MIB = 2**20


class Widening(nn.Module):
    """Needs 64 MiB beside its weights for an input of 1 Mi numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.scale).sum()


def test_latency_of_a_model_that_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout())
    threads = torch.get_num_threads()
    latency = measure_latency(model, torch.zeros(3, 8), threads=2, seconds=0.05)
    assert torch.get_num_threads() == threads
    assert model.training
    assert 0 < latency.p10 <= latency.median <= latency.p90 < 0.1
    assert latency.drift > 0
    assert latency.runs >= 5
    assert (latency.key.batch, latency.key.threads, latency.key.input) == (3, 2, (8,))
    assert latency.throughput == 3 / latency.median
    assert (latency.peak_memory, latency.no_memory) == (None, "not asked for")


def test_slow_models_get_five_runs_all_the_same() -> None:
    model = nn.Linear(512, 512)
    assert measure_latency(model, torch.zeros(512, 512), seconds=1e-9).runs >= 5


def test_twice_the_work_takes_longer() -> None:
    light = LatencyProbe(nn.Linear(256, 256), torch.zeros(256, 256))
    heavy = LatencyProbe(nn.Sequential(*[nn.Linear(256, 256)] * 8), torch.zeros(256, 256))
    first, second = measure_in_turn([light, heavy], seconds=0.2, rounds=4)
    assert second.median > 2 * first.median
    assert first.runs >= second.runs >= 4
    assert first.key == light.key != second.key
    assert len(first.turns) == len(second.turns) == 4
    assert speed_ratio(first, second)[0] > 2


def test_one_run_must_keep_within_the_limit() -> None:
    class Waiting(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.02)
            return super().forward(x)

    LatencyProbe(Waiting(2, 2), torch.zeros(1, 2), limit=30)
    with pytest.raises(TimeoutError, match=r"^one batch took [\d.]+ s, and the limit is 0.01 s$"):
        LatencyProbe(Waiting(2, 2), torch.zeros(1, 2), limit=0.01)


def test_processor_time_leaves_waiting_out() -> None:
    class Waiting(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.02)
            return super().forward(x)

    seconds = {}
    for clock in ("wall", "cpu"):
        probe = LatencyProbe(Waiting(2, 2), torch.zeros(1, 2), LatencySetting(threads=1, clock=clock))
        probe.run(1e-3)
        seconds[clock] = probe.result().median
    assert seconds["wall"] > 0.02
    assert 0 < seconds["cpu"] < 0.01


def test_peak_memory_on_the_cpu() -> None:
    latency = measure_latency(Widening(), torch.zeros(1, MIB), seconds=1e-3, memory=True)
    assert latency.no_memory == ""
    assert 63 * MIB < latency.peak_memory < 80 * MIB


def test_a_model_of_this_process_alone_has_no_peak_memory() -> None:
    model = nn.Linear(2, 2)
    model.own = lambda x: x
    latency = measure_latency(model, torch.zeros(1, 2), seconds=1e-3, memory=True)
    assert latency.peak_memory is None
    assert latency.no_memory.startswith("the model cannot be handed to a new process: ")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("runtime", ["eager", "torchscript"])
def test_cuda(runtime: str) -> None:
    latency = measure_latency(Widening(), torch.zeros(1, MIB), runtime, "cuda", "float16", seconds=0.05)
    assert latency.median > 0
    assert 31 * MIB < latency.peak_memory < 40 * MIB


def test_what_is_in_the_cache_is_not_measured_again(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, model = LatencyCache(tmp_path / "latency.json"), nn.Linear(2, 2)
    first = measure_latency(model, torch.zeros(1, 2), seconds=1e-3, cache=cache)
    monkeypatch.setattr(LatencyProbe, "run", lambda *_: pytest.fail("measured again"))
    assert measure_latency(model, torch.zeros(1, 2), seconds=1e-3, cache=cache) == first
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        measure_latency(model, torch.zeros(2, 2), seconds=1e-3, cache=cache)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="seconds is 0; it must be positive"):
        measure_latency(nn.Linear(2, 2), torch.zeros(1, 2), seconds=0)
    with pytest.raises(ValueError, match="runtime 'eager' cannot run Linear of an input .1, 3. in float32 on 'cpu': "):
        measure_latency(nn.Linear(2, 2), torch.zeros(1, 3))
    with pytest.raises(
        ValueError, match="^runtime 'torchscript' cannot run Linear of an input .* on 'cpu': (?!runtime)"
    ):
        measure_latency(nn.Linear(2, 2), torch.zeros(1, 3), "torchscript")
