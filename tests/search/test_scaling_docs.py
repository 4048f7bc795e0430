"""The code of docs/scaling.md, run as it stands."""

import optuna
from doc_blocks import run_block


def test_from_python() -> None:
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    found = run_block("scaling.md", "From Python")["found"]
    assert found.end == "budget"
    assert 0.97 * 4e6 < found.path[-1].macs <= 1.03 * 4e6
