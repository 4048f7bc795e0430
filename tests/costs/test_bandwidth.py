"""The copy that says how fast memory moves."""

from dataclasses import replace

import pytest
import torch

from asvit_plugin.costs import LatencySetting, bandwidth, copy_probe
from asvit_plugin.costs.bandwidth import Copy


def test_a_copy_moves_every_byte_and_makes_no_memory() -> None:
    copy, x = Copy(1, 1000), torch.randn(1, 1000)
    y = copy(x)
    assert torch.equal(y, x)
    assert y.data_ptr() == copy.target.data_ptr()


@pytest.mark.parametrize("dtype, itemsize", [("float32", 4), ("bfloat16", 2)])
def test_bandwidth_counts_reads_and_writes(dtype: str, itemsize: int) -> None:
    probe = copy_probe(LatencySetting("compile", "cpu", dtype, 1), copied=2**20)
    assert (probe.key.runtime, probe.key.dtype) == ("eager", dtype)
    assert probe.key.input[0] * itemsize == 2**20
    probe.run(0.01)
    measured = replace(probe.result(), median=0.5)
    assert bandwidth(measured) == 2 * 2**20 / 0.5
    assert 1e8 < bandwidth(probe.result()) < 1e14
