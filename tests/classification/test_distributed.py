"""Two processes: every held-out image counts once, one of them writes, and one process alone measures the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import validate
from engine import Process, _own_share
from runs import SCRIPTS, TINY
from timm.data.distributed_sampler import OrderedDistributedSampler
from torch.utils.data import DataLoader, TensorDataset


@pytest.mark.parametrize("images, world_size, batch", [(7, 2, 2), (8, 3, 2), (9, 4, 5), (3, 4, 2)])
def test_shares_hold_every_image_once(images: int, world_size: int, batch: int) -> None:
    dataset = TensorDataset(torch.arange(images), torch.arange(images))
    seen = []
    for rank in range(world_size):
        sampler = OrderedDistributedSampler(dataset, num_replicas=world_size, rank=rank)
        loader = DataLoader(dataset, batch_size=batch, sampler=sampler)
        for share, _ in _own_share(loader, Process(torch.device("cpu"), rank, world_size)):
            seen += share.tolist()
    assert sorted(seen) == list(range(images))


def test_two_processes(tmp_path: Path) -> None:
    run = [*TINY, "--output", str(tmp_path), "--epochs", "2", "--validation-batch-size", "49", "--device", "cpu"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = os.pathsep.join([str(SCRIPTS.parent), os.environ.get("PYTHONPATH", "")])
    finished = subprocess.run(
        [*launcher, str(SCRIPTS / "train.py"), *run],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("everything is in") == 1
    assert finished.stdout.count("epoch   1 ") == finished.stdout.count("epoch   2 ") == 1
    state = torch.load(tmp_path / "as_vit" / "last.pth.tar", weights_only=True)
    assert state["world_size"] == 2
    for row in state["history"]:  # 180 images each, in batches of 49, 49, 49 and 33
        right = row["top1"] * 360 / 100
        assert abs(right - round(right)) < 1e-9
    result = validate.main(["--checkpoint", str(tmp_path / "as_vit" / "last.pth.tar")])
    assert result["images"] == 360
    assert result["top1"] == state["history"][-1]["top1"]
