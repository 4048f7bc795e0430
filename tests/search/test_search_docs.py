"""The code blocks of docs/search.md, run as they stand."""

from pathlib import Path

import optuna
import pytest
from doc_blocks import DOCS, run_block
from test_topology import Proxy

from asvit_plugin.costs import params
from asvit_plugin.search import load_space, measuring

PAGE = "search.md"


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's relative paths, and stand-ins for its proxies, which have a page and tests of their own."""
    monkeypatch.chdir(tmp_path)
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    named = {"length_distortion": Proxy(True, params), "ntk_condition": Proxy(False, lambda net: params(net) % 7)}
    monkeypatch.setattr(measuring, "PROXIES", named)


def test_from_python(capsys: pytest.CaptureFixture[str]) -> None:
    run_block(PAGE, "From Python")
    assert 'timm.create_model("as_vit", genotype=' in capsys.readouterr().out
    assert Path("quick.db").exists()


def test_a_space_of_ones_own() -> None:
    text = (DOCS / PAGE).read_text().split("```yaml\n")[1].split("```")[0]
    Path("mine.yaml").write_text(text)
    names = run_block(PAGE, "Spaces")
    assert len(names["net"].blocks) == names["choice"]["depth"]
    assert names["space"].size == sum(
        2 * 2**4 * sum(a <= b for a in heads for b in heads) * len(heads) ** 2 for heads in ((2, 3, 4), (2, 3, 4))
    )


def test_another_search() -> None:
    names = run_block(
        PAGE, "Other searches", train_and_time=lambda model, kwargs: [kwargs["depth"], kwargs["head_dim"]]
    )
    assert names["front"]


def test_the_page_tells_the_size_of_the_papers_space() -> None:
    assert f"{load_space('as_vit').size:,} topologies" in (DOCS / PAGE).read_text()
