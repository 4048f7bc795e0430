"""Settings of every test: no network, one thread (parallel tests that share cores stall otherwise), fixed seeds."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

import asvit_plugin  # noqa: F401  (registers the models)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def no_measurements(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what was measured on this machine out of ``castle(blocks="auto")``."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
