"""Trains with averaged weights in the processes that torchrun started; each writes down the average's batch norms."""

import json
import sys
from pathlib import Path

import torch.distributed
import train

if __name__ == "__main__":
    runs, fit = Path(sys.argv[1]), train.fit

    def fit_and_tell(training: train.Training, *rest: object) -> None:
        fit(training, *rest)
        buffers = training.ema.module.named_buffers()
        found = {name: each.tolist() for name, each in buffers if name.endswith(("running_mean", "running_var"))}
        (runs.parent / f"rank_{torch.distributed.get_rank()}.json").write_text(json.dumps(found))

    train.fit = fit_and_tell
    for arguments in json.loads(runs.read_text()):
        train.main(arguments)
