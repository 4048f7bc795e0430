"""The code of docs/growing.md, run as it stands."""

import optuna
from doc_blocks import DOCS, run_block

from asvit_plugin.search.space_schema import parse_space


def test_from_python() -> None:
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    family = run_block("growing.md", "From Python")["family"]
    assert 3e5 <= family[-1].params <= 1e6
    assert all(net.params < 3e5 for net in family[:-1])


def test_growth_of_a_space() -> None:
    text = (DOCS / "growing.md").read_text().split("```yaml\n")[1].split("```")[0]
    space = parse_space(
        "model: scaled_vit\ndecisions: {num_heads: [2, 3]}\narguments: {num_heads: '{num_heads}'}\n" + text, "mine"
    )
    assert space.growth.width == "head_dim"
