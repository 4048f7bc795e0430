"""The code blocks of docs/supernet.md, run as they stand, and what its table says of the shipped spaces."""

import re
from pathlib import Path

import optuna
import pytest
from doc_blocks import DOCS, run_block

from asvit_plugin import NetworkDef, ViTResNAS
from asvit_plugin.search import load_network_space, network_cost

PAGE = "supernet.md"
TEXT = (DOCS / PAGE).read_text()


def test_the_supernet() -> None:
    names = run_block(PAGE, "The supernet")
    assert names["logits"].shape == (4, 10)
    assert type(names["net"]) is ViTResNAS


def test_a_space_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(TEXT.split("```yaml\n")[1].split("```")[0])
    networks = load_network_space(tmp_path / "mine.yaml")
    assert networks.space.pools == {"exists": (3, 1)}
    assert networks.roles == {"dim": "embed", "heads": "heads", "mlp": "mlp", "exists": "exists"}


def test_evolution_from_python(capsys: pytest.CaptureFixture[str]) -> None:
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    names = run_block(PAGE, "Evolution", accuracy_of=lambda net: sum(net.dims))
    definition, macs = capsys.readouterr().out.strip().rsplit(" ", 1)
    assert 0.975 * 4e6 <= int(macs) <= 4e6
    assert NetworkDef.parse(definition).dims == NetworkDef.parse(names["found"].best["network_def"]).dims


@pytest.mark.parametrize(
    "row", re.findall(r"\| `(\w+)`[^|]*\| ([\d, ]+) \|[^|]*\|[^|]*\| ([\d.]+) - ([\d.]+) \|", TEXT)
)
def test_table_of_spaces(row: tuple[str, str, str, str]) -> None:
    name, blocks, low, high = row
    networks = load_network_space(name)
    assert ", ".join(str(len(stage)) for stage in networks.largest.stages) == blocks
    cost = network_cost(networks, "macs", **({"img_size": 56, "in_chans": 1} if "digits" in name else {}))
    for choice, said in ((networks.smallest_choice(), low), (networks.largest_choice(), high)):
        assert round(cost(choice) / 1e9, len(said.partition(".")[2])) == float(said)
