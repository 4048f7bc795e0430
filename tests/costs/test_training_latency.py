"""Training steps as something that is timed: they train as written out by hand, and leave the model alone."""

import json
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from asvit_plugin.costs import LatencyCache, LatencyProbe, LatencySetting, macs, make_run, measure_latency
from asvit_plugin.costs.runtimes import TRAINING_RUNTIMES
from asvit_plugin.costs.training_step import mean_cross_entropy

MIB = 2**20


def small_net() -> nn.Module:
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(144, 5)
    return nn.Sequential(*layers)


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("runtime", TRAINING_RUNTIMES)
def test_loss_and_gradients_are_those_of_train_mode(runtime: str) -> None:
    model, images = small_net().eval(), torch.randn(2, 3, 8, 8)
    steps: list[list[torch.Tensor]] = []

    def watch(optimizer: torch.optim.Optimizer, *_: object) -> None:
        assert type(optimizer) is torch.optim.AdamW
        steps.append([each.grad.clone() for each in optimizer.param_groups[0]["params"]])

    with torch.no_grad():
        run = make_run(model, images, runtime, "training")
        handle = register_optimizer_step_pre_hook(watch)
        try:
            losses = [run(images), run(images)]
        finally:
            handle.remove()
    reference = small_net().double().train()
    reference.load_state_dict(model.double().state_dict())
    wanted = F.cross_entropy(reference(images.double()), torch.tensor([0, 1]))
    wanted.backward()
    assert len(steps) == 2
    for loss, found in zip(losses, steps):
        torch.testing.assert_close(loss.double(), wanted.detach(), atol=1e-6, rtol=1e-5)
        for each, parameter in zip(found, reference.parameters(), strict=True):
            torch.testing.assert_close(each.double(), parameter.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("runtime", TRAINING_RUNTIMES)
def test_the_model_and_random_numbers_stay_as_they_are(runtime: str) -> None:
    model = nn.Sequential(small_net(), nn.Dropout(0.5)).eval()
    model[0][4].requires_grad_(False)
    before, random = state_of(model), torch.get_rng_state()
    latency = measure_latency(model, torch.zeros(2, 3, 8, 8), runtime, seconds=0.01, step="training")
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, True, True, True, False, False]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert latency.median > 0
    assert latency.key.step == "training"


def test_a_step_computes_forward_and_backward() -> None:
    model, images = timm.create_model("scaled_vit", depth=2, img_size=32, num_classes=3), torch.randn(2, 3, 32, 32)
    run = make_run(model, images, step="training")
    with FlopCounterMode(display=False) as counter:
        run(images)
    forward = 2 * macs(model, images)
    assert 2.5 * forward < counter.get_total_flops() < 3.5 * forward  # not quite 3: the images need no gradient


def test_several_outputs_count_alike() -> None:
    first, second = torch.randn(3, 5), torch.randn(3, 5)
    losses = [F.cross_entropy(each, torch.tensor([0, 1, 2])) for each in (first, second)]
    wanted = sum(losses) / 2
    torch.testing.assert_close(mean_cross_entropy((first, second)), wanted)
    torch.testing.assert_close(mean_cross_entropy({"logits": first, "more": [second]}), wanted)


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "castling_deit_tiny_patch16_224"])
def test_models_of_several_outputs_or_own_attention(name: str) -> None:
    model = timm.create_model(name, img_size=32, depth=1)
    loss = make_run(model, torch.zeros(2, 3, 32, 32), step="training")(torch.zeros(2, 3, 32, 32))
    assert 0 < loss.item() < 20


def test_half_precision() -> None:
    probe = LatencyProbe(small_net(), torch.randn(2, 3, 8, 8), LatencySetting(dtype="bfloat16", step="training"))
    probe.run(0.01)
    assert probe.result().key.dtype == "bfloat16"


def test_peak_memory_holds_weights_gradients_and_moments() -> None:
    model = nn.Linear(2048, 1024, bias=False)  # 8 MiB
    found = {
        step: measure_latency(model, torch.zeros(1, 2048), seconds=1e-3, memory=True, step=step).peak_memory
        for step in ("forward", "training")
    }
    assert 8 * MIB <= found["forward"] < 12 * MIB
    assert 4 * 8 * MIB <= found["training"] < 4 * 8 * MIB + 28 * MIB  # AdamW needs some for a moment


def test_steps_are_told_apart_in_the_cache(tmp_path) -> None:
    cache, model = LatencyCache(tmp_path / "latency.json"), nn.Linear(2, 2)
    images = torch.zeros(1, 2)
    forward = measure_latency(model, images, seconds=1e-3, cache=cache)
    training = measure_latency(model, images, seconds=1e-3, cache=cache, step="training")
    assert forward.key == replace(training.key, step="forward")
    assert cache.get(forward.key) == forward
    assert cache.get(training.key) == training


def test_a_file_without_steps_holds_forward_passes(tmp_path) -> None:
    cache, model = LatencyCache(tmp_path / "latency.json"), nn.Linear(2, 2)
    latency = measure_latency(model, torch.zeros(1, 2), seconds=1e-3, cache=cache)
    table = json.loads(cache.path.read_text())
    (entry,) = table["latencies"]
    del entry["key"]["step"], entry["turns"]
    cache.path.write_text(json.dumps({"format": 1, "latencies": [entry]}))
    assert cache.get(latency.key) == replace(latency, turns=())
    training = measure_latency(model, torch.zeros(1, 2), seconds=1e-3, cache=cache, step="training")
    assert json.loads(cache.path.read_text())["format"] == 2
    assert {each.key for each in cache.latencies()} == {latency.key, training.key}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(step="backward"), "step is 'backward'; it must be one of 'forward', 'training'"),
        (
            dict(step="training", runtime="torchscript"),
            "step is 'training'; runtime 'torchscript' runs models forward only, and 'eager' and 'compile' train them",
        ),
    ],
)
def test_refusals(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LatencySetting(**arguments)


@pytest.mark.parametrize(
    "model, reason",
    [
        (nn.Linear(2, 2).requires_grad_(False), "no parameter needs a gradient, so there is nothing to train"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "Expected more than 1 value per channel when training"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(model: nn.Module, reason: str) -> None:
    what = f"runtime 'eager' cannot run {type(model).__name__} of an input .1, 2. in float32 on 'cpu': {reason}"
    with pytest.raises(ValueError, match=what):
        measure_latency(model, torch.zeros(1, 2), step="training")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda() -> None:
    latency = measure_latency(nn.Linear(2048, 1024), torch.zeros(1, 2048), device="cuda", seconds=0.05, step="training")
    assert 4 * 8 * MIB <= latency.peak_memory < 10 * 8 * MIB
