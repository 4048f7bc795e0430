"""A finished run that several tests look at."""

from pathlib import Path
from shlex import split

import pytest
from runs import TINY


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """Folder of a finished run with progressive tokenization, averaged weights and mixed images."""
    import train

    output = tmp_path_factory.mktemp("finished")
    phases = split("--epochs 6 --progressive-tokenization --phases [[0.3,8],[0.6,4],[1,2]]")
    ema = split("--model-ema --model-ema-decay 0.9")
    train.main([*TINY, "--output", str(output), "--experiment", "run", *phases, *ema])
    return output / "run"
