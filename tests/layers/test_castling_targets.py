"""Which blocks are castled, by what they are called, and the reasons of those that are not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from plugin_models import cheap
from torch import nn

from asvit_plugin.layers import castle_blocks, castled_attention


@pytest.mark.parametrize("blocks", [[0, 2], [np.int64(0), np.int64(2)], ["blocks.2", 0], (-4, -2)], ids=str)
def test_blocks_by_name_or_number(blocks: Any) -> None:
    model = cheap("scaled_vit")
    assert castle_blocks(model, blocks) == list(castled_attention(model)) == ["blocks.0", "blocks.2"]


@pytest.mark.parametrize("block", [[0], None, True, 0.0, np.int64(4), {}], ids=str)
def test_what_is_neither_is_refused(block: Any) -> None:
    model = cheap("scaled_vit")
    with pytest.raises(ValueError, match="blocks names .*; castled can be 'blocks.0' to 'blocks.3', or 0 to 3"):
        castle_blocks(model, [block])
    assert not castled_attention(model)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("davit_tiny", "WindowAttention has a form of its own, in windows$"),
        ("swinv2_tiny_window8_256", "WindowAttention has a relative position bias"),
        ("swinv2_cr_tiny_224", "WindowMultiHeadAttention has a relative position bias"),
        ("vit_srelpos_small_patch16_224", "RelPosAttention has a relative position bias"),
        ("vit_relpos_small_patch16_224", "RelPosAttention has a relative position bias"),
    ],
)
def test_reasons(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has no attention that can be castled: .*{reason}"):
        castle_blocks(timm.create_model(name, device="meta"), "all")


class Linear(nn.Module):
    """Of the same name as torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize(
    "make, kind",
    [(Linear, "test_castling_targets.Linear"), (nn.Sequential, "Sequential")],
    ids=["Linear", "Sequential"],
)
def test_projections_of_another_class_are_told_apart(make: Callable[[], nn.Module], kind: str) -> None:
    model = cheap("scaled_vit")
    model.blocks[1].attn.qkv = make()
    with pytest.raises(ValueError, match=rf"blocks.1.attn.qkv is a ([\w.]+\.)?{kind}; castling needs an nn.Linear"):
        castle_blocks(model, "all")
    assert not castled_attention(model)
