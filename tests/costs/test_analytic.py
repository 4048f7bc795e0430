"""Shapes that are no net's; that the formulas equal the counts is tested beside the models."""

from typing import Any

import pytest

from asvit_plugin.costs import PiTShape, ViTShape


def test_a_number_of_heads_and_a_ratio_for_every_block() -> None:
    with pytest.raises(ValueError, match="num_heads has 1 and mlp_ratio 2; both must have one value per block"):
        ViTShape(num_heads=[3], mlp_ratio=[4, 4], embed_dim=192)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(mlp_ratio=[[4], [4, 4]]), r"num_heads\[1\] has 1 and mlp_ratio\[1\] 2; .* per block"),
        (dict(mlp_ratio=[[4]]), "embed_dims has 2 and mlp_ratio 1; .* per stage"),
        (dict(num_heads=[[1], [1], [1]]), "embed_dims has 2 and num_heads 3; .* per stage"),
        (dict(embed_dims=[16]), "embed_dims has 1 and num_heads 2; .* per stage"),
        (dict(head_dim=[8]), "embed_dims has 2 and head_dim 1; .* per stage"),
    ],
)
def test_a_value_for_every_stage_and_block(changes: dict[str, Any], message: str) -> None:
    shape = dict(num_heads=[[1], [2]], mlp_ratio=[[4], [4]], embed_dims=[16, 32], head_dim=[8, 16])
    assert PiTShape(**shape).macs > 0
    with pytest.raises(ValueError, match=message):
        PiTShape(**{**shape, **changes})
