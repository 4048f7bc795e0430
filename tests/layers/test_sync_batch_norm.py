"""SyncBatchNorm2d: two gloo processes equal one nn.BatchNorm2d on all their images; alone it is nn.BatchNorm2d."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from plugin_models import CHEAP
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from asvit_plugin.layers import SyncBatchNorm2d, convert_sync_batchnorm

Tensors = dict[str, Any]


def filled(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """``norm`` with random numbers in place of the ones and zeros it begins with."""
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        if tensor is not None:
            nn.init.uniform_(tensor, 0.5, 2.0)
    return norm


def run(model: nn.Module, x: torch.Tensor, upstream: torch.Tensor | None = None) -> Tensors:
    """Output, input gradient, parameter gradients and buffers after one training step without an update.

    ``upstream`` is by default a function of the output, so that shares of a batch get their shares of its gradient.
    """
    x = x.clone().requires_grad_()
    out = model.train()(x)
    parameters = dict(model.named_parameters())
    upstream = torch.sin(3.0 * out.detach() + 1.0) if upstream is None else upstream
    gradients = torch.autograd.grad(out, [x, *parameters.values()], upstream)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return dict(out=out.detach(), x=gradients[0], parameters=dict(zip(parameters, gradients[1:])), buffers=buffers)


def resnas(**kwargs: Any) -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model("vit_resnas", **CHEAP["vit_resnas"], num_classes=10, **kwargs)


def act_net() -> nn.Module:
    torch.manual_seed(1)
    norm = BatchNormAct2d(6, act_layer=nn.SiLU, drop_layer=nn.Identity)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), filled(norm), nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)
    )


def plain(**kwargs: Any) -> nn.Module:
    torch.manual_seed(1)
    return filled(nn.BatchNorm2d(3, **kwargs))


def pictures(batch: int, side: int = 64) -> torch.Tensor:
    """Double precision, around 2, each image with a scale of its own."""
    generator = torch.Generator().manual_seed(batch)
    scale = torch.linspace(0.5, 3.0, batch, dtype=torch.float64)[:, None, None, None]
    return torch.randn(batch, 3, side, side, generator=generator, dtype=torch.float64) * scale + 2.0


# Name: the net, the two processes' batches, and the largest error relative to each tensor's largest number.
STEPS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], float]] = {
    "uneven": (plain, (3, 5), 1e-12),
    "empty": (plain, (0, 4), 1e-12),
    "one image": (plain, (1, 1), 1e-12),
    "not affine": (lambda: plain(affine=False), (3, 5), 1e-12),
    "no running statistics": (lambda: plain(track_running_stats=False), (3, 5), 1e-12),
    "activation": (act_net, (3, 5), 1e-12),
    "vit_resnas": (resnas, (3, 3), 1e-10),
}
HALVES = [torch.bfloat16, torch.float16]


def processes(rank: int, folder: Path) -> None:
    """What each of the two processes computes; what it finds lies in ``folder`` by its rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found: Tensors = {"several": several(convert_sync_batchnorm(plain(momentum=None).double()), shares(rank))}
    for name, (make, sizes, _) in STEPS.items():
        found[name] = run(convert_sync_batchnorm(make().double()), pictures(sum(sizes)).split(sizes)[rank])
    for dtype in HALVES:
        x, upstream = (whole.split((3, 5))[rank] for whole in halves(dtype))
        found[str(dtype)] = run(convert_sync_batchnorm(plain()), x, upstream)
        found[f"all {dtype}"] = run(convert_sync_batchnorm(plain().to(dtype)), x, upstream)
    found["offset"] = run(convert_sync_batchnorm(plain()), offset().split((3, 5))[rank])
    found["sizes"] = run(convert_sync_batchnorm(plain().double()), of_two_sizes()[rank])
    found["refused"] = refusal(convert_sync_batchnorm(plain()), torch.zeros(1 - rank, 3, 1, 1))
    found["eval"] = convert_sync_batchnorm(act_net()).eval()(pictures(2)[: rank + 1].float()).detach()
    found["single"] = run(convert_sync_batchnorm(plain(), alone(rank)), pictures(4).float())
    wrapped = DistributedDataParallel(convert_sync_batchnorm(resnas().double()))
    found["ddp"] = train(wrapped, slice(2 * rank, 2 * rank + 2))
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def shares(rank: int) -> list[torch.Tensor]:
    return [pictures(n).split((1, n - 1))[rank] for n in (3, 5, 4)]


def several(norm: nn.Module, batches: list[torch.Tensor]) -> Tensors:
    with torch.no_grad():
        for batch in batches:
            norm.train()(batch)
    return {name: buffer.clone() for name, buffer in norm.named_buffers()}


def halves(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Images with squares beyond float16, and a gradient of the norm's output."""
    return (pictures(8) * 300).to(dtype), torch.sin(3.0 * pictures(8) + 1.0).to(dtype)


def offset() -> torch.Tensor:
    """Float32 whose mean is 1000 times its deviation, differently for each image."""
    return (pictures(8) + torch.linspace(2000.0, 2010.0, 8)[:, None, None, None]).float()


def of_two_sizes() -> tuple[torch.Tensor, torch.Tensor]:
    return pictures(3, 8), pictures(2, 14)


def refusal(norm: nn.Module, x: torch.Tensor) -> str:
    try:
        norm.train()(x)
    except ValueError as error:
        return str(error)
    return ""


def alone(rank: int) -> dist.ProcessGroup:
    """The group of this process alone; every process has to make both."""
    return [dist.new_group([other]) for other in range(2)][rank]


def train(model: nn.Module, part: slice) -> Tensors:
    """Weights after two steps, each with ``part`` of four images."""
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    for images in pictures(8).split(4):
        optimizer.zero_grad()
        model(images[part]).sub(1.0).square().mean().backward()
        optimizer.step()
    return {name.removeprefix("module."): tensor.detach() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Tensors]:
    """What the two processes computed."""
    folder = tmp_path_factory.mktemp("processes")
    context = torch.multiprocessing.spawn(processes, (folder,), nprocs=2, join=False)
    try:
        for _ in range(2):  # each call returns when one process ends, and raises if that failed
            context.join(timeout=60)
        assert all(process.exitcode == 0 for process in context.processes), "the processes wait for each other"
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def assert_near(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float, what: str = "") -> None:
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error <= tolerance, f"{what}: {error:.1e}"


def assert_same_step(ranks: list[Tensors], whole: Tensors, tolerance: float) -> None:
    """Outputs and input gradients side by side, parameter gradients summed, buffers equal on both."""
    for name in ("out", "x"):
        assert_near(torch.cat([r[name] for r in ranks]), whole[name], tolerance, name)
    for name, expected in whole["parameters"].items():
        assert_near(sum(r["parameters"][name] for r in ranks), expected, tolerance, name)
    for name, expected in whole["buffers"].items():
        for rank in ranks:
            assert_near(rank["buffers"][name], expected, tolerance, name)


@pytest.mark.parametrize("name", STEPS)
def test_two_processes_equal_one(found: list[Tensors], name: str) -> None:
    make, sizes, tolerance = STEPS[name]
    whole = run(make().double(), pictures(sum(sizes)))
    assert_same_step([rank[name] for rank in found], whole, tolerance)


def test_cumulative_running_statistics(found: list[Tensors]) -> None:
    whole = several(plain(momentum=None).double(), [torch.cat(pair) for pair in zip(shares(0), shares(1))])
    assert whole["num_batches_tracked"] == 3
    for rank in found:
        for name, expected in whole.items():
            assert_near(rank["several"][name], expected, 1e-12, name)


def test_images_of_two_sizes(found: list[Tensors]) -> None:
    """Every pixel weighs the same: the whole is one image of all of them."""
    flat = torch.cat([x.transpose(0, 1).flatten(1) for x in of_two_sizes()], 1)[None, :, :, None]
    whole = run(plain().double(), flat)
    ranks = [rank["sizes"] for rank in found]
    for name in ("out", "x"):
        ours = torch.cat([rank[name].transpose(0, 1).flatten(1) for rank in ranks], 1)
        assert_near(ours, whole[name].flatten(1)[0].reshape(ours.shape), 1e-12, name)
    assert_near(sum(r["parameters"]["weight"] for r in ranks), whole["parameters"]["weight"], 1e-12)


@pytest.mark.parametrize("weights", ["", "all "], ids=["fp32-weights", "half-weights"])
@pytest.mark.parametrize("dtype", HALVES, ids=["bf16", "fp16"])
def test_half_precision(found: list[Tensors], dtype: torch.dtype, weights: str) -> None:
    """Statistics and gradients are of float32's precision; the results are rounded once."""
    norm = plain().to(dtype if weights else torch.float32)
    ranks = [rank[f"{weights}{dtype}"] for rank in found]
    assert {rank["out"].dtype for rank in ranks} == {rank["x"].dtype for rank in ranks} == {dtype}
    assert all(rank["parameters"]["weight"].dtype == norm.weight.dtype for rank in ranks)
    precision = torch.finfo(norm.weight.dtype).eps
    whole = run(norm.double(), *(t.double() for t in halves(dtype)))
    for name in ("out", "x"):
        assert_near(torch.cat([r[name] for r in ranks]).double(), whole[name], torch.finfo(dtype).eps, name)
    for name, expected in whole["parameters"].items():
        ours = sum(r["parameters"][name].double() for r in ranks)
        assert_near(ours, expected, 10 * precision, name)
    assert_near(ranks[0]["buffers"]["running_var"].double(), whole["buffers"]["running_var"], 2 * precision)


def test_large_means_in_float32(found: list[Tensors]) -> None:
    whole = run(plain().double(), offset().double())
    ranks = [rank["offset"] for rank in found]
    assert_near(torch.cat([r["out"] for r in ranks]), whole["out"], 1e-4)
    assert_near(ranks[0]["buffers"]["running_var"], whole["buffers"]["running_var"], 1e-4)


def test_data_parallel_training(found: list[Tensors]) -> None:
    """Both processes end with the same weights, those of one that trains with all images."""
    first, second = (rank["ddp"] for rank in found)
    whole = train(resnas().double(), slice(None))
    assert first.keys() == second.keys() == whole.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        assert_near(tensor, whole[name], 1e-10, name)


def test_one_value_per_channel_is_refused_by_all(found: list[Tensors]) -> None:
    sentence = "x must have at least 2 values per channel over all processes, not 1"
    assert [rank["refused"] for rank in found] == [sentence, sentence]


def test_eval_and_group_of_one_are_plain(found: list[Tensors]) -> None:
    """Exactly, and in eval mode without waiting for the other process: batches differ in size."""
    single = run(plain(), pictures(4).float())
    for rank, theirs in enumerate(found):
        assert torch.equal(theirs["eval"], act_net().eval()(pictures(2)[: rank + 1].float()))
        assert torch.equal(theirs["single"]["out"], single["out"])
        assert torch.equal(theirs["single"]["x"], single["x"])


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("make", [plain, act_net, lambda: plain(momentum=None)], ids=["plain", "act", "cumulative"])
def test_alone_is_plain(make: Callable[[], nn.Module], training: bool) -> None:
    norm, x = make().train(training), pictures(4).float()
    synchronised = convert_sync_batchnorm(copy.deepcopy(norm))
    assert torch.equal(synchronised(x), norm(x))
    for name, tensor in norm.state_dict().items():
        assert torch.equal(synchronised.state_dict()[name], tensor), name


def test_conversion_keeps_everything() -> None:
    model = timm.create_model("test_efficientnet").eval()
    model.conv_stem.requires_grad_(False)
    model.bn1.weight.requires_grad_(False)
    model.bn1.momentum, model.bn1.eps = None, 0.1
    model.blocks[0].train()
    tensors, modes = model.state_dict(keep_vars=True), {n: m.training for n, m in model.named_modules()}
    acts = [module.act for module in model.modules() if isinstance(module, BatchNormAct2d)]
    converted = convert_sync_batchnorm(model)
    assert converted is model
    assert all(tensor is tensors[name] for name, tensor in model.state_dict(keep_vars=True).items())
    assert {n: m.training for n, m in model.named_modules()} == modes
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [norm.act for norm in norms] == acts
    assert all(isinstance(norm, SyncBatchNorm2d) for norm in norms)
    assert (model.bn1.momentum, model.bn1.eps, model.bn1.weight.requires_grad) == (None, 0.1, False)
    assert convert_sync_batchnorm(model).bn1 is norms[0]


def test_conversion_of_a_norm_that_has_two_names() -> None:
    norm = nn.BatchNorm2d(3)
    model = convert_sync_batchnorm(nn.Sequential(norm, nn.ModuleList([norm]), nn.ReLU()))
    assert isinstance(model[0], SyncBatchNorm2d)
    assert model[1][0] is model[0]


@pytest.mark.parametrize("make", [resnas, plain, lambda: plain(affine=False)], ids=["resnas", "plain", "not-affine"])
def test_state_dicts_load_both_ways(make: Callable[[], nn.Module]) -> None:
    original = make()
    converted = convert_sync_batchnorm(copy.deepcopy(original))
    assert list(converted.state_dict()) == list(original.state_dict())
    converted.load_state_dict(original.state_dict())
    original.load_state_dict(converted.state_dict())


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.SyncBatchNorm(4)], ids=lambda norm: type(norm).__name__)
def test_other_classes_are_refused(norm: nn.Module) -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), norm)
    with pytest.raises(ValueError, match=f"^model's batch norms must be BatchNorm2d .*, not {type(norm).__name__}$"):
        convert_sync_batchnorm(model)
    assert type(model[0]) is nn.BatchNorm2d


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_has_kernels_of_its_own() -> None:
    converted = convert_sync_batchnorm(act_net().cuda())
    assert isinstance(converted[1], SyncBatchNormAct)
    assert type(converted[3]) is nn.SyncBatchNorm
