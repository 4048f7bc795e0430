"""The code blocks of docs/proxies.md, run as they stand, and its table."""

import re

import pytest
from doc_blocks import DOCS

from asvit_plugin.search import PROXIES

PAGE = (DOCS / "proxies.md").read_text()


def test_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    assert len(names["score"].values) == 5
    assert sorted(names["columns"]) == ["length_distortion", "ntk_condition"]
    assert names["best"] in (0, 1)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_table_holds_every_proxy_and_its_direction() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (more|less) \|", PAGE, re.MULTILINE)
    assert {name: better == "more" for name, better in rows} == {name: p.maximize for name, p in PROXIES.items()}
