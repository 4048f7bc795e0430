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


def launch(script: str, *arguments: str) -> subprocess.Popen:
    """Starts a script in two processes with torchrun; one outside SCRIPTS is named by its whole path."""
    path = os.pathsep.join([str(SCRIPTS), str(SCRIPTS.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(str(SCRIPTS / script), *arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )


def finish(launcher: subprocess.Popen, seconds: float) -> tuple[str, str]:
    """What torchrun and its processes wrote, when all have ended; past the time they are stopped and it is an error."""
    try:
        return launcher.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        launcher.terminate()  # torchrun then ends its processes, first gently
        output, errors = launcher.communicate(timeout=60)
        raise AssertionError(f"not finished after {seconds} s:\n{output}\n{errors}") from None
