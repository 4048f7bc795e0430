"""A few scenes, and a finished run, that several tests look at."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from detection_runs import YACS, small, train_net


@pytest.fixture(autouse=True)
def _own_loggers() -> Iterator[None]:
    """detectron2 sets its loggers up once for a process, on the standard output of the test that comes first."""
    yield
    for name in ("detectron2", "fvcore"):
        logging.getLogger(name).handlers.clear()
    if "detectron2.utils.logger" in sys.modules:
        sys.modules["detectron2.utils.logger"].setup_logger.cache_clear()


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from digits_scenes import make_scenes

    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    make_scenes(folder, train=6, val=2, size=64)
    return folder


@pytest.fixture(scope="session")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Folder and results of a run of the tiny yacs config."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, train_net(YACS, *small(YACS, scenes, folder))
