"""One model in every runtime: the same outputs, and clear refusals."""

import importlib.util

import pytest
import timm
import torch
from torch import nn

from asvit_plugin.costs import DTYPES, RUNTIMES, make_run
from asvit_plugin.costs.runtimes import PACKAGES, check_runtime
from asvit_plugin.exporting import first_line


def need(runtime: str) -> None:
    for name in PACKAGES.get(runtime, ()):
        pytest.importorskip(name)


def small_net(width: int = 4) -> nn.Module:
    layers = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.GELU(), nn.Flatten(), nn.Linear(width * 36, 5)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_outputs_are_those_of_the_model_in_eval_mode(runtime: str) -> None:
    need(runtime)
    model, images = small_net(), torch.randn(2, 3, 8, 8)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run = make_run(model, images, runtime)
    other = torch.randn(2, 3, 8, 8)
    found = run(other).clone()
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(found, model.eval()(other), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "runtime, dtype",
    [("eager", "bfloat16"), ("torchscript", "bfloat16"), ("openvino", "bfloat16"), ("onnxruntime", "float16")],
)
def test_half_precision(runtime: str, dtype: str) -> None:
    need(runtime)
    try:
        check_runtime(runtime, "cpu", dtype)
    except ValueError as error:
        pytest.skip(str(error))  # a CPU without units for it
    model, images = small_net().eval(), torch.randn(2, 3, 8, 8)
    found = make_run(model, images.to(DTYPES[dtype]), runtime)(images.to(DTYPES[dtype])).float()
    with torch.no_grad():
        wanted = model(images)
    assert 0 < (found - wanted).abs().max() < 0.05


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torchscript"])
def test_vit(runtime: str) -> None:
    need(runtime)
    model = timm.create_model("scaled_vit", depth=1, img_size=32, num_classes=3).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(make_run(model, images, runtime)(images), model(images), atol=1e-4, rtol=1e-3)


def test_every_compiled_model_is_compiled() -> None:
    images = torch.randn(2, 3)
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(recompile_limit=1):  # of torch itself: more run eagerly
        for width in (2, 3):
            make_run(nn.Sequential(nn.Linear(3, width), nn.ReLU()), images, "compile")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("runtime", PACKAGES)
def test_a_runtime_that_is_not_installed_says_what_to_install(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == runtime else found(name))
    with pytest.raises(
        ModuleNotFoundError, match=f"'{runtime}' needs .*{runtime}: pip install 'asvit-plugin.latency]'"
    ):
        check_runtime(runtime)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("tensorrt",), "runtime is 'tensorrt'; it must be one of 'eager', 'compile'"),
        (("eager", "cpu", "int8"), "dtype is 'int8'; it must be one of 'float32'"),
        (("onnxruntime", "cpu", "bfloat16"), "dtype is 'bfloat16'; runtime 'onnxruntime' takes 'float32', 'float16'"),
        (("openvino", "meta"), "device is 'meta'; runtime 'openvino' is measured on 'cpu' only"),
    ],
)
def test_refusals(arguments: tuple[str, ...], message: str) -> None:
    need(arguments[0])
    with pytest.raises(ValueError, match=message):
        check_runtime(*arguments)


@pytest.mark.parametrize("runtime", ["torchscript", "onnxruntime"])
def test_a_model_that_cannot_run_is_one_sentence(runtime: str) -> None:
    need(runtime)
    with pytest.raises(
        ValueError, match=f"runtime '{runtime}' cannot run Sequential of an input .2, 3, 9, 9. in float32"
    ):
        make_run(small_net(), torch.randn(2, 3, 9, 9), runtime)


@pytest.mark.parametrize(
    "said, line",
    [
        ("one\ntwo", "one"),
        ("\n  \n  one  \ntwo", "one"),
        ("", "ValueError"),
        (" \n", "ValueError"),
        ("x" * 5000, "x" * 600 + " ..."),
    ],
    ids=["lines", "blank_first", "nothing", "blank", "long"],
)
def test_first_lines_of_errors(said: str, line: str) -> None:
    assert first_line(ValueError(said)) == line
