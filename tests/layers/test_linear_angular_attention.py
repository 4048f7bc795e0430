"""The attention module: the released block, timm's ``Attention`` at blend 0, and all states between."""

from typing import Any

import numpy as np
import pytest
import torch
from drawn import draw, image, reference
from timm.layers import Attention, LayerNorm
from torch import nn

from asvit_plugin.layers import LinearAngularAttention

STATES = {"softmax": (0.0, 0.02), "blended": (0.3, 0.05), "masked": (1.0, 0.02), "linear": (1.0, 1.0)}


def attention(**kwargs: Any) -> LinearAngularAttention:
    """A small one whose convolution is not silent."""
    module = LinearAngularAttention(**{"dim": 24, "num_heads": 3, "qkv_bias": True, "dwconv_kernel_size": 3, **kwargs})
    nn.init.normal_(module.dconv.weight)
    return module.eval()


@pytest.mark.parametrize("mode", ["linear", "masked"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=str)
def test_equals_the_released_block(mode: str, dtype: torch.dtype, tolerance: float) -> None:
    facts = reference(f"castling_{mode}")
    shape = dict(dim=facts["dim"], num_heads=facts["num_heads"], dwconv_kernel_size=facts["dwconv_kernel"])
    module = LinearAngularAttention(**shape, qkv_bias=True, mode=mode, dtype=dtype)
    assert module.threshold == (facts["threshold"] if facts["masked_softmax"] else 1.0)
    module.load_state_dict({name: draw(name, shape) for name, shape in facts["state_dict"].items()})
    y = module(image(facts["input_seed"], facts["input_shape"]).to(dtype))
    expected = torch.tensor(facts["output_head"], dtype=dtype)
    torch.testing.assert_close(y[0, :6, :16], expected, rtol=0, atol=tolerance)
    assert y.norm().item() == pytest.approx(facts["output_norm"], rel=tolerance)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        dict(attn_head_dim=4, qkv_bias=False, proj_bias=False, dim_out=10),
        dict(qk_norm=True, scale_norm=True, norm_layer=LayerNorm),
        dict(gated=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("fused", [True, False])
def test_softmax_mode_is_timms_attention(kwargs: dict[str, Any], fused: bool) -> None:
    theirs = Attention(**{"dim": 24, "num_heads": 3, "qkv_bias": True, **kwargs})
    ours = attention(mode="softmax", **kwargs)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    ours.fused_attn = theirs.fused_attn = fused
    x, mask = torch.randn(2, 11, 24), torch.rand(11, 11) > 0.3
    mask |= torch.eye(11, dtype=torch.bool)
    assert torch.equal(ours(x), theirs.eval()(x))
    assert torch.equal(ours(x, attn_mask=mask), theirs(x, attn_mask=mask))
    assert torch.equal(ours(x, is_causal=True), theirs(x, is_causal=True))


def test_state_dict_is_timms_and_the_named_new_ones() -> None:
    timms = set(Attention(24, 3, qkv_bias=True).state_dict())
    assert set(attention().state_dict()) - timms == {"dconv.weight"}
    assert set(attention(output_gain=True).state_dict()) - timms == {"dconv.weight", "gain"}
    assert timms <= set(attention().state_dict())


def test_masked_branch_by_brute_force() -> None:
    module = attention(mode="masked", dtype=torch.float64)
    module.switch(1.0, 0.12)
    x = torch.randn(2, 11, 24, dtype=torch.float64)
    q, k, v = module.heads(x)
    weights = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1)
    branch = torch.zeros_like(v)
    for b, h, i, j in (weights > 0.12).nonzero().tolist():
        branch[b, h, i] += weights[b, h, i, j] * v[b, h, j]
    unit_q, unit_k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
    y = v / 2 + unit_q @ (unit_k.transpose(-2, -1) @ v) / torch.pi + branch
    y = y / y.norm(dim=-1, keepdim=True)
    y = y + nn.functional.conv2d(v, module.dconv.weight, padding=(1, 0), groups=3)
    assert branch.norm() > 0
    torch.testing.assert_close(module(x), module.proj(y.transpose(1, 2).flatten(2)), rtol=0, atol=1e-12)


def test_blend_goes_from_softmax_to_linear_in_a_line() -> None:
    module, x = attention(dtype=torch.float64), torch.randn(2, 11, 24, dtype=torch.float64)
    ends = []
    for blend in (0.0, 1.0):
        module.switch(blend, 0.05)
        ends.append(module(x))
    for blend in (0.25, 0.9):
        module.switch(blend, 0.05)
        torch.testing.assert_close(module(x), torch.lerp(*ends, blend))


def test_an_empty_mask_is_linear_attention() -> None:
    module, x = attention(mode="masked", dtype=torch.float64), torch.randn(2, 11, 24, dtype=torch.float64)
    module.switch(1.0, 0.999)
    masked = module(x)
    module.switch(1.0, 1.0)
    torch.testing.assert_close(module(x), masked)


@pytest.mark.parametrize("state", STATES)
def test_all_parameters_of_the_state_learn(state: str) -> None:
    module = attention(output_gain=True).train()
    module.switch(*STATES[state])
    module(torch.randn(2, 40, 24)).square().sum().backward()
    unused = {name for name, parameter in module.named_parameters() if parameter.grad is None}
    assert unused == ({"dconv.weight", "gain"} if state == "softmax" else set())


@pytest.mark.parametrize("dwconv, shape", [("2d_head", (3, 1, 3, 3)), ("2d_channel", (24, 1, 3, 3))])
def test_two_dimensional_convolution_needs_the_grid(dwconv: str, shape: tuple[int, ...]) -> None:
    module = attention(dwconv=dwconv, num_prefix_tokens=1)
    assert module.dconv.weight.shape == shape
    x = torch.randn(2, 1 + 12, 24)
    assert not torch.allclose(module(x, grid_size=(3, 4)), module(x, grid_size=(4, 3)))
    with pytest.raises(ValueError, match="grid_size is None; a convolution over the token grid needs"):
        module(x)
    with pytest.raises(ValueError, match=r"grid_size is \(3, 5\); it must hold the 12 tokens behind 1 prefix tokens"):
        module(x, grid_size=(3, 5))


def test_prefix_tokens_do_not_see_patches_through_the_convolution() -> None:
    """All that a class token gets of a patch comes through the global term, which is silenced here."""
    module, x = attention(num_prefix_tokens=1, reference_length=1e-30), torch.randn(1, 10, 24)
    y = module(x)
    x[:, 1:] += 1
    torch.testing.assert_close(module(x)[:, 0], y[:, 0])
    assert not torch.allclose(module(x)[:, 1:], y[:, 1:])


@pytest.mark.parametrize("state", STATES)
def test_scripted_traced_and_compiled_are_the_same(state: str) -> None:
    module, x = attention(output_gain=True, num_prefix_tokens=1), torch.randn(2, 11, 24)
    module.switch(*STATES[state])
    expected = module(x)
    torch.testing.assert_close(torch.jit.script(module)(x), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(module)(x), expected)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},))
    torch.testing.assert_close(exported.module()(torch.cat([x, x], 1)), module(torch.cat([x, x], 1)))


def test_a_schedules_steps_are_one_graph() -> None:
    frames = 0

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        nonlocal frames
        frames += 1
        return graph

    module, x = attention(), torch.randn(2, 11, 24)
    compiled = torch.compile(module, backend=count, fullgraph=True)
    for step in range(1, 9):
        module.switch(step / 10, 0.02 * step)
        torch.testing.assert_close(compiled(x), module(x))
    assert frames == 1


def test_state_survives_casts_and_meta() -> None:
    module = LinearAngularAttention(24, 3, mode="masked", device="meta", output_gain=True)
    module.to_empty(device="cpu")
    for each in (module.qkv, module.proj):
        each.reset_parameters()
    module.init_weights()
    assert (module.blend, module.threshold) == (1.0, 0.02)
    x = torch.randn(2, 5, 24)
    with torch.no_grad():
        assert module(x).isfinite().all()
        assert module.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    assert module.threshold == 0.02


def test_dropout_acts_on_the_softmax_branch_only() -> None:
    module, x = attention(attn_drop=0.5).train(), torch.randn(2, 40, 24)
    assert torch.equal(module(x), module(x))
    module.switch(1.0, 0.02)
    assert not torch.equal(module(x), module(x))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(num_heads=0), "num_heads is 0; it must be a whole number of at least 1"),
        (dict(num_prefix_tokens=-1), "num_prefix_tokens is -1"),
        (dict(eps=0), "eps is 0; it must be above 0"),
        (dict(reference_length=float("nan")), "reference_length is nan; it must be positive"),
        (dict(num_heads=5), "num_heads is 5; it must divide dim, which is 24"),
        (dict(mode="cosine"), "mode is 'cosine'; it must be one of 'softmax', 'masked', 'linear'"),
        (dict(dwconv="3d"), "dwconv is '3d'; it must be one of '1d_head', '2d_head', '2d_channel'"),
        (dict(dwconv_kernel_size=4), "dwconv_kernel_size is 4; it must be an odd number"),
        (dict(dwconv_kernel_size=3.0), "dwconv_kernel_size is 3.0; it must be a whole number"),
        (dict(dwconv_kernel_size=True), "dwconv_kernel_size is True; it must be a whole number"),
        (dict(half_term="sum"), "half_term is 'sum'; it must be one of 'identity', 'mean'"),
        (dict(reference_length=0), "reference_length is 0; it must be positive"),
        (dict(reference_length=196, half_term="mean"), "half_term='mean' takes none"),
    ],
)
def test_bad_arguments_get_one_sentence(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention(**kwargs)


def test_numpy_numbers_are_numbers() -> None:
    module = attention(dwconv_kernel_size=np.int64(5), num_prefix_tokens=np.int64(1))
    assert module.dconv.weight.shape[2:] == (5, 1)
    assert torch.jit.script(module)(torch.ones(1, 7, 24)).shape == (1, 7, 24)


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="num_prefix_tokens is 5; of 5 tokens none is left to convolve"):
        attention(num_prefix_tokens=5)(torch.randn(1, 5, 24))


@pytest.mark.parametrize("blend, threshold, field", [(-0.1, 0.5, "blend"), (1.5, 0.5, "blend"), (1, 2, "threshold")])
def test_states_out_of_range_are_refused(blend: float, threshold: float, field: str) -> None:
    module = attention()
    with pytest.raises(ValueError, match=f"{field} is .*; it must lie between 0 and 1"):
        module.switch(blend, threshold)
    assert module.mode == "linear"


@pytest.mark.parametrize("mask", [dict(attn_mask=torch.zeros(5, 5)), dict(is_causal=True)], ids=["mask", "causal"])
def test_masks_are_refused_where_the_linear_branch_runs(mask: dict[str, Any]) -> None:
    module = attention()
    with pytest.raises(ValueError, match="linear attention has no weights to mask"):
        module(torch.randn(1, 5, 24), **mask)
