"""What the tests of tools/scale.py share."""

import json
from pathlib import Path

import pytest
import scale

CHEAP = ["--oracle", "parameters"]


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The last line that a refused command line prints."""
    with pytest.raises(SystemExit) as stopped:
        scale.main(argv)
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def result(folder: Path) -> dict:
    """What a run left."""
    return json.loads((folder / "result.json").read_text())
