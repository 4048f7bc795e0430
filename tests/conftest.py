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
