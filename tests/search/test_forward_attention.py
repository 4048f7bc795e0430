"""Forward-mode derivatives of attention against those of PyTorch's unfused path."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from asvit_plugin.search import forward_attention
from asvit_plugin.search.forward_attention import ForwardAttention


@pytest.mark.parametrize("chunk", [1, 200, 2**21])
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"is_causal": True}, {"attn_mask": True}], ids=str)
@pytest.mark.parametrize("varied", [(0, 1, 2), (1, 2), (0,)], ids=str)
def test_tangents(varied: tuple[int, ...], options: dict, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_attention, "CHUNK", chunk)
    inputs = list(torch.randn(3, 2, 3, 7, 4).double().unbind())
    inputs[0] = inputs[0][:, :, :5]  # fewer queries than keys
    if "attn_mask" in options:
        options = {"attn_mask": torch.randn(5, 7).double()}

    def attend(*chosen: torch.Tensor) -> torch.Tensor:
        arguments = dict(enumerate(inputs)) | dict(zip(varied, chosen))
        return F.scaled_dot_product_attention(*arguments.values(), **options)

    primals = tuple(inputs[index] for index in varied)
    tangents = tuple(torch.randn_like(primal) for primal in primals)
    with sdpa_kernel(SDPBackend.MATH):
        expected = jvp(attend, primals, tangents)
    with ForwardAttention():
        found = jvp(attend, primals, tangents)
    torch.testing.assert_close(found, expected)
