"""As-ViT under compilers, exporters, other data types and memory savers."""

from collections.abc import Iterator

import pytest
import timm
import torch
from timm.layers import set_fused_attn
from tiny import tiny
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

SIZES = [(64, 64), (96, 128), (100, 70), (224, 224), (65, 191)]
POLICIES = ["split", "size"]
SHALLOW = "5,2,2|2,2,3|3,1,2|4,1,2|8,8"
# A compiler takes a side of one window for a constant, so under "size" every image here has two regions a side.
COMPILED = [pytest.param("split", SIZES, id="split"), pytest.param("size", SIZES[1:], id="size")]


@pytest.fixture
def _fused_attn_default() -> Iterator[None]:
    yield
    set_fused_attn(True)


def gradients(model: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    loss = model(x).square().mean() + model.forward_features(x).square().mean()
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.usefixtures("_fused_attn_default")
def test_fused_attention_equals_plain_attention() -> None:
    set_fused_attn(True)
    fused = tiny(drop_path_rate=0.0).double()
    set_fused_attn(False)
    plain = tiny(drop_path_rate=0.0).double()
    assert fused.stages[0].blocks[0].attn.fused_attn
    assert not plain.stages[0].blocks[0].attn.fused_attn
    plain.load_state_dict(fused.state_dict())
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    torch.testing.assert_close(gradients(fused, x), gradients(plain, x), rtol=1e-8, atol=1e-10)


def test_gradient_checkpointing_changes_nothing() -> None:
    model = tiny().train()
    x = torch.randn(2, 3, 64, 64)
    plain = gradients(model, x)
    model.set_grad_checkpointing()
    runs = []
    model.stages[1].blocks[1].register_forward_pre_hook(lambda *_: runs.append(1))
    checkpointed = gradients(model, x)
    assert len(runs) == 4  # twice for each of the two forward passes
    torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize("pos_embed", [True, False], ids=["pos_embed", "no_pos_embed"])
@pytest.mark.parametrize("window_policy", POLICIES)
def test_every_parameter_gets_a_gradient(window_policy: str, pos_embed: bool) -> None:
    model = tiny(window_policy=window_policy, pos_embed=pos_embed).train()
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    zero = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not zero


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["bf16", "fp64"])
def test_other_types_after_a_forward_pass(dtype: torch.dtype) -> None:
    model = tiny()
    x = torch.randn(2, 3, 100, 64)
    expected = model(x)
    other = model.to(dtype)(x.to(dtype))
    assert other.dtype == dtype
    torch.testing.assert_close(other.float(), expected, rtol=0, atol=0.03 if dtype == torch.bfloat16 else 1e-5)


def test_drop_path_rises_over_blocks_and_acts_in_training() -> None:
    model = tiny(drop_path_rate=0.5)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for stage in model.stages for block in stage.blocks]
    assert rates[0] == 0.0
    assert rates[-1] == pytest.approx(0.5)
    assert rates == sorted(rates)
    x = torch.randn(8, 3, 64, 64)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize("name", ["drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate"])
def test_dropout_acts_in_training_only(name: str) -> None:
    model = tiny(**{name: 0.5})
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize("window_policy, sizes", COMPILED)
def test_compiles_at_most_twice_for_all_sizes(window_policy: str, sizes: list[tuple[int, int]]) -> None:
    torch._dynamo.reset()
    model = tiny(genotype=SHALLOW, window_policy=window_policy, pretrain_img_size=32)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        for size in sizes:
            x = torch.randn(2, 3, *size)
            torch.testing.assert_close(compiled(x), model(x))
    assert counter.frame_count <= 2


def test_compiles_at_most_twice_for_single_images() -> None:
    """With merges of 2 or 3, torch guards on the size that its CPU convolution changes kernels at (see the docs)."""
    torch._dynamo.reset()
    model = tiny(genotype="4,2,2|4,2,2|4,1,2|4,1,2|8,8")
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        for size in SIZES:
            x = torch.randn(1, 3, *size)
            torch.testing.assert_close(compiled(x), model(x))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("window_policy, sizes", COMPILED)
def test_export_with_dynamic_batch_and_size(window_policy: str, sizes: list[tuple[int, int]]) -> None:
    model = tiny(genotype=SHALLOW, window_policy=window_policy, pretrain_img_size=32)
    dynamic = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
    exported = torch.export.export(model, (torch.randn(2, 3, 96, 128),), dynamic_shapes=dynamic).module()
    with torch.no_grad():
        for batch, size in enumerate(sizes, start=2):
            x = torch.randn(batch, 3, *size)
            torch.testing.assert_close(exported(x), model(x))


@pytest.mark.parametrize("window_policy", POLICIES)
def test_torchscript_at_several_sizes(window_policy: str) -> None:
    model = tiny(window_policy=window_policy, pretrain_img_size=64)
    scripted = torch.jit.script(model)
    with torch.no_grad():
        for size in SIZES:
            x = torch.randn(1, 3, *size)
            torch.testing.assert_close(scripted(x), model(x))


def test_torchscript_of_the_feature_pyramid() -> None:
    model = tiny(features_only=True)
    scripted = torch.jit.script(model)
    for size in SIZES:
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(scripted(x), model(x))


def test_meta_device_then_init_weights_equals_a_direct_build() -> None:
    meta = tiny(device="meta")
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    for p in meta.to_empty(device="cpu").parameters():
        torch.nn.init.constant_(p, torch.nan)
    meta.init_weights()
    direct = tiny()
    for (name, ours), theirs in zip(meta.named_parameters(), direct.parameters()):
        assert ours.isfinite().all(), name
        assert ours.std(correction=0).item() == pytest.approx(theirs.std(correction=0).item(), rel=0.5, abs=1e-3), name
    assert meta(torch.randn(1, 3, 64, 64)).isfinite().all()


def test_weight_init_skip_leaves_pytorch_defaults() -> None:
    assert tiny().stages[3].blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert tiny(weight_init="skip").stages[3].blocks[0].mlp.fc1.weight.std() > 0.05


def test_pooling_and_class_count() -> None:
    model = tiny()
    x = torch.randn(2, 3, 64, 64)
    features = model.forward_features(x)
    pre_logits = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pre_logits, torch.tanh(model.head.pre_logits.fc(features.mean((1, 2)))))
    model.reset_classifier(0)
    assert torch.equal(model(x), pre_logits)
    model.reset_classifier(5, "max")
    assert model(x).shape == (2, 5)
    torch.testing.assert_close(
        model.forward_head(features, pre_logits=True), torch.tanh(model.head.pre_logits.fc(features.amax((1, 2))))
    )
    model.reset_classifier(0, "")
    assert torch.equal(model(x), features)
    model.reset_classifier(7, "avg")
    assert model(x).shape == (2, 7)


def test_default_entry_point_is_the_seed_topology() -> None:
    assert timm.create_model("as_vit", device="meta").genotype == "8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,32"
