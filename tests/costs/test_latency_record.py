"""Keys of latencies: what must tell measurements apart does, and nothing else."""

import subprocess
import sys
from dataclasses import fields, replace

import pytest
import timm
import torch
from torch import nn

import asvit_plugin
from asvit_plugin.costs import Latency, LatencyKey, LatencySetting, speed_ratio
from asvit_plugin.costs.fingerprint import describe_model, fingerprint

KEY = LatencyKey("vit 1a", (3, 8, 8), "some CPU", "eager", "float32", 2, 1, "wall", ("torch 2.15.0",))
OTHER = {
    "model": "vit 1b",
    "input": (3, 8, 9),
    "device": "another CPU",
    "runtime": "compile",
    "dtype": "bfloat16",
    "batch": 3,
    "threads": 2,
    "clock": "cpu",
    "versions": ("torch 2.15.1",),
    "step": "training",
}
SMALL = dict(depth=2, embed_dim=32, num_heads=2, head_dim=16, img_size=32, num_classes=3)
PRINT = """
import timm, asvit_plugin
from asvit_plugin.costs.fingerprint import describe_model
print(describe_model(timm.create_model("scaled_vit", {})))
"""


def vit(**arguments: object) -> nn.Module:
    return timm.create_model("scaled_vit", **{**SMALL, **arguments})


def test_keys_differ_by_every_field() -> None:
    assert set(OTHER) == {field.name for field in fields(LatencyKey)}
    assert len({KEY.text, *(replace(KEY, **{name: value}).text for name, value in OTHER.items())}) == 1 + len(OTHER)
    assert replace(KEY, batch=2).text == KEY.text


def test_the_key_of_a_measurement() -> None:
    key = LatencyKey.of(vit(), (4, 3, 32, 32), LatencySetting("eager", "cpu", "bfloat16", 1))
    assert (key.input, key.batch, key.dtype, key.threads, key.runtime) == ((3, 32, 32), 4, "bfloat16", 1, "eager")
    assert key.model.startswith("scaled_vit ")
    assert key.device not in ("", "cpu")
    assert f"torch {torch.__version__}" in key.versions


def test_the_runtime_brings_its_version() -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    key = LatencyKey.of(vit(), (1, 3, 32, 32), LatencySetting("onnxruntime"))
    assert f"onnxruntime {runtime.__version__}" in key.versions


@pytest.mark.parametrize(
    "changed",
    [
        dict(depth=3),
        dict(num_heads=4, head_dim=8),  # parameters of the same shapes
        dict(num_heads=(1, 2)),
        dict(mlp_ratio=2.0),
        dict(img_size=48),
        dict(patch_size=8),
        dict(class_token=False, global_pool="avg"),
        dict(num_classes=4),
    ],
)
def test_fingerprints_tell_arguments_apart(changed: dict) -> None:
    assert fingerprint(vit(**changed)) != fingerprint(vit())


def test_fingerprints_do_not_see_weights_or_mode() -> None:
    model = vit()
    assert fingerprint(vit().eval()) == fingerprint(model)
    nn.init.zeros_(model.head.weight)
    assert fingerprint(model) == fingerprint(vit())


def test_fingerprints_see_the_state_of_a_castled_model() -> None:
    model = asvit_plugin.castle(vit())
    states = [fingerprint(vit()), fingerprint(model)]
    for threshold in (0.02, 1.0):
        asvit_plugin.switch_attention(model, 1.0, threshold)
        states.append(fingerprint(model))
    assert len(set(states)) == 4


def test_fingerprints_are_the_same_in_another_process() -> None:
    arguments = ", ".join(f"{name}={value!r}" for name, value in SMALL.items())
    done = subprocess.run(
        [sys.executable, "-c", PRINT.replace("{}", arguments)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == describe_model(vit())


def test_summary_of_times() -> None:
    turns = [[1.0, 1.0], [1.0, 2.0, 2.0], [2.0, 3.0, 3.0, 3.0]]
    latency = Latency.of(KEY, turns, 90)
    assert (latency.median, latency.runs, latency.drift) == (2.0, 90, 3.0)
    assert (latency.p10, latency.p90) == (1.0, 3.0)
    assert latency.throughput == 1.0  # two inputs in two seconds
    assert latency.turns == (1.0, 2.0, 3.0)
    assert Latency.of(KEY, [[2.0]], 1).drift == 1.0


def test_speed_ratios_are_taken_turn_by_turn() -> None:
    own = Latency.of(KEY, [[1.0], [10.0], [2.0]], 3)  # the machine was slow in the second turn
    peer = Latency.of(replace(KEY, batch=4), [[3.0], [30.0], [4.0]], 3)
    assert speed_ratio(own, peer) == pytest.approx((1.5, 1.1, 1.5))  # half as many inputs as the peer each time
    assert speed_ratio(own, own) == (1.0, 1.0, 1.0)


def test_speed_ratios_need_turns() -> None:
    first, second = Latency.of(KEY, [[1.0]], 1), Latency.of(KEY, [[1.0], [1.0]], 2)
    with pytest.raises(ValueError, match="turns are 1 and 2; they must be equally many, at least 1"):
        speed_ratio(first, second)
    with pytest.raises(ValueError, match="turns are 0 and 0"):
        speed_ratio(replace(first, turns=()), replace(first, turns=()))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(threads=0), "threads is 0; it must be a whole number of at least 1"),
        (dict(device="toaster"), "device is 'toaster', which cannot be used: .*toaster"),
        (dict(clock="cpu", threads=2), "clock is 'cpu' with 2 threads on 'cpu'; it needs one thread on 'cpu'"),
        (dict(clock="sun"), "clock is 'sun'; it must be one of 'wall', 'cpu'"),
        (dict(runtime="tflite"), "runtime is 'tflite'; it must be one of 'eager'"),
    ],
)
def test_refusals(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatencySetting(**arguments)
