"""Small real runs of the classification scripts, in this process or in their own."""

import os
import subprocess
import sys
from pathlib import Path
from shlex import split

import torch

SCRIPTS = Path(__file__).parents[2] / "classification"
sys.path.insert(0, str(SCRIPTS))

TINY = [
    *split("--model as_vit --model-kwargs.genotype 4,1,1,1|2,1,1,1|2,1,1,1|2,1,1,1|8,8 --model-kwargs.stem_stride 2"),
    *split("--in-chans 1 --img-size 16 --crop-pct 1 --workers 0"),
    *split("--batch-size 64 --hflip 0 --scale 0.8 1 --color-jitter 0 --warmup-epochs 1 --sched-on-updates --lr 4e-3"),
    *split("--tensorboard false"),
]


def start(script: str, *arguments: str, **kwargs) -> subprocess.Popen:
    """Starts a script in its own process, with as many threads as this one."""
    path = os.pathsep.join([str(SCRIPTS.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, str(SCRIPTS / script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **kwargs,
    )
