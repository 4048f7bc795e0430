"""ViT-ResNAS's network definition."""

import pytest
import timm

from asvit_plugin import NetworkDef
from asvit_plugin.models.vit_resnas import NETWORKS

HEAD = ", (2, 16, 10))"
BLOCK = "(1, (16, 2, 8), (16, 32), 1)"


@pytest.mark.parametrize("name", NETWORKS)
def test_prints_what_it_parses(name: str) -> None:
    net = NETWORKS[name]
    assert NetworkDef.parse(str(net)) == net
    assert NetworkDef.parse(eval(str(net))) == net
    assert NetworkDef.parse(net) is net
    assert timm.create_model(name, device="meta").network_def == str(net)


def test_removed_block_of_medium() -> None:
    blocks = NETWORKS["vit_resnas_medium"].stages[2]
    assert [block.exists for block in blocks] == [True, True, True, False, True, True, True]


@pytest.mark.parametrize("stem, width", [("(4, 16)", 24), ("(5, 16, 32)", 32), ("(0, 16)", 0)])
def test_stems(stem: str, width: int) -> None:
    text = f"({stem}, {BLOCK}{HEAD}"
    assert NetworkDef.parse(text).stem_width == width
    assert str(NetworkDef.parse(text)) == text


@pytest.mark.parametrize(
    "definition, message",
    [
        ("rm -rf", "must be a tuple of tuples"),
        ("(1, 2, 3)", "must be a tuple of tuples"),
        ("((4, 16),)", "must be a tuple of tuples"),
        (None, "must be a tuple of tuples"),
        (f"((7, 16), {BLOCK}{HEAD}", r"entry 0 is \(7, 16\); it must be a stem"),
        (f"((4, 0), {BLOCK}{HEAD}", r"entry 0 is \(4, 0\)"),
        (f"((4, 16), (6, 1, 2){HEAD}", r"entry 1 is \(6, 1, 2\); it must begin with 1"),
        (f"((4, 16), (1, (24, 2, 8), (16, 32), 1){HEAD}", "the stage has 16 channels"),
        (f"((4, 16), (1, (16, 0, 8), (16, 32), 1){HEAD}", "the attention part"),
        (f"((4, 16), (1, (16, 2, 8), (16, '32'), 1){HEAD}", "the MLP part"),
        (f"((4, 16), (1, (16, 2, 8), (16, 32), 2){HEAD}", "0 or 1"),
        (f"((4, 16), {BLOCK}, (3, 24, 32), (2, 32, 10))", r"entry 2 is \(3, 24, 32\); it must be \(3, 16, D_out\)"),
        (f"((4, 16), {BLOCK}, (3, 16, 8), (2, 8, 10))", "D_out of at least 16"),
        (f"((4, 16), {BLOCK}, (2, 32, 10))", r"the last must be \(2, 16, classes\)"),
        (f"((4, 16), {BLOCK}, (2, 16))", r"it must be \(2, D, classes\)"),
    ],
)
def test_mistakes_get_one_sentence(definition: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        NetworkDef.parse(definition)
    assert "\n" not in str(caught.value)
