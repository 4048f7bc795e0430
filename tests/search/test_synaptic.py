"""SynFlow and DSS against sums made by hand."""

import math

import pytest
import timm
import torch
from nets import make
from torch import nn

from asvit_plugin.search import dss, synflow
from asvit_plugin.search.redrawing import draws
from asvit_plugin.search.synaptic import ATTENTION_MATRIX, linear_gradients


def by_hand(name: str) -> tuple[float, float]:
    """SynFlow and DSS of the first draw."""
    model = next(draws(make(name), repeats=1, seed=0, device=None)).model.double().eval().requires_grad_()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    model(torch.ones(1, 3, 32, 32, dtype=torch.float64)).sum().backward()
    flow = diverse = 0.0
    for layer_name, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            saliency = (layer.weight * layer.weight.grad).abs().sum().item()
            flow += saliency
            if ".attn." in layer_name:
                norms = [torch.linalg.svdvals(matrix.detach()).sum() for matrix in (layer.weight, layer.weight.grad)]
                diverse += (norms[0] * norms[1]).item()
            else:
                diverse += saliency
    return math.log(flow), math.log(diverse)


@pytest.mark.parametrize("name", ["scaled_vit", "scaled_pit"])
def test_sums(name: str) -> None:
    flow, diverse = by_hand(name)
    assert synflow(make(name), repeats=1).value == pytest.approx(flow)
    assert dss(make(name), repeats=1).value == pytest.approx(diverse)


def test_flow_through_a_chain_is_the_same_in_every_layer() -> None:
    """What SynFlow is named for: of layers in a row without biases or norms, each has the whole loss."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False))
    flows = [(w * gradient).abs().sum().item() for _, w, gradient in linear_gradients(model, (3, 2, 2))]
    assert flows[0] == pytest.approx(flows[1])
    assert flows[0] == pytest.approx(model(torch.ones(1, 3, 2, 2, dtype=torch.float64)).sum().item())


def test_deep_nets_do_not_overflow() -> None:
    deep = timm.create_model("scaled_vit", img_size=32, patch_size=16, depth=48, num_heads=4, head_dim=32)
    assert math.isfinite(synflow(deep, repeats=1).value)
    plain = nn.Sequential(nn.Flatten(), *(nn.Linear(48, 48, bias=False) for _ in range(60)))
    assert all(gradient.isfinite().all() for _, _, gradient in linear_gradients(plain, (3, 4, 4)))


@pytest.mark.parametrize(
    "name, is_one",
    [
        ("blocks.0.attn.qkv", True),
        ("layers.1.blocks.0.attn.proj", True),
        ("blocks.0.mlp.fc1", False),
        ("patch_embed.proj", False),
        ("layers.0.blocks.0.attn.cpb_mlp.fc1", False),
    ],
)
def test_matrices_of_attention(name: str, is_one: bool) -> None:
    assert bool(ATTENTION_MATRIX.fullmatch(name)) is is_one
