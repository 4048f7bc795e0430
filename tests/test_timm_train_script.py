"""timm's own train.py over our models.

timm's source distribution leaves train.py out, so the test needs a checkout of timm's repository: set TIMM_TRAIN_SCRIPT
to the path of its train.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = os.environ.get("TIMM_TRAIN_SCRIPT", "")


@pytest.mark.skipif(not SCRIPT, reason="TIMM_TRAIN_SCRIPT does not name a copy of timm's train.py")
def test_trains_a_model_of_ours(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        for label in ("dark", "bright"):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for index in range(4):
                shade = 40 + index if label == "dark" else 200 + index
                Image.new("RGB", (64, 64), (shade, shade, shade)).save(folder / f"{index}.png")
    options = "--device cpu --device-modules asvit_plugin --model as_vit_small --img-size 64 --num-classes 2 -b 4"
    more = "--epochs 1 --warmup-epochs 0 --workers 0 --no-prefetcher --opt adamw --lr 1e-4 --experiment run"
    command = [
        sys.executable,
        SCRIPT,
        str(tmp_path / "data"),
        *options.split(),
        *more.split(),
        "--output",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "last.pth.tar").is_file()
    assert "top1" in (tmp_path / "run" / "summary.csv").read_text()
