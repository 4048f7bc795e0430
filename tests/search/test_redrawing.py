"""Weights drawn anew: the same rule for all families, whatever the given weights are."""

import pytest
import timm
import torch
from nets import NETS, make
from torch import nn

from asvit_plugin.search.redrawing import draws, redraw


@pytest.mark.parametrize("name", NETS)
def test_a_draw_depends_on_the_architecture_and_the_seed_alone(name: str) -> None:
    first, second = make(name), make(name)
    for model in (first, second):
        redraw(model, seed=7)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


def test_the_rule() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, init_values=0.1)
    model.requires_grad_(False)
    for parameter in model.parameters():
        if parameter.std() > 0:
            parameter += 1.0
    redraw(model, seed=0)
    block = model.blocks[0]
    for layer in (block.attn.qkv, block.mlp.fc1, model.head):
        assert layer.weight.std() == pytest.approx(0.02, rel=0.02)
        assert not layer.bias.any()
    assert model.pos_embed.std() == pytest.approx(0.02, rel=0.1)
    assert model.patch_embed.proj.bias.any()  # PyTorch's own, uniform
    assert model.patch_embed.proj.weight.abs().max() <= (3 * 16**2) ** -0.5
    assert (block.norm1.weight == 1.0).all()
    torch.testing.assert_close(block.ls1.gamma, torch.full((192,), 0.1))


def test_every_repeat_draws_the_stem_anew() -> None:
    """The authors' five nets share one."""
    stems = [draw.model.patch_embed.proj.weight for draw in draws(make("as_vit"), 3, seed=0, device=None)]
    assert not torch.equal(stems[0], stems[1])
    assert not torch.equal(stems[1], stems[2])


def test_wrappers_are_looked_through() -> None:
    draw = next(draws(nn.DataParallel(make("as_vit")), 1, seed=0, device=None))
    assert type(draw.model) is type(make("as_vit"))
