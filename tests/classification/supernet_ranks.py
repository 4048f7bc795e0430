"""Trains a supernet in the processes that torchrun started, and writes down what each of them did."""

import hashlib
import json
import sys
from pathlib import Path

import torch.distributed
import train

from asvit_plugin.search.architectures import Architectures

if __name__ == "__main__":
    runs = Path(sys.argv[1])
    steps, step, fit = [], Architectures.step, train.fit
    Architectures.step = lambda self, size: steps.append(step(self, size)) or steps[-1]

    def fit_and_tell(training: train.Training, *rest: object) -> None:
        del steps[:]  # those of the timing
        fit(training, *rest)
        weights = b"".join(each.detach().numpy().tobytes() for each in training.model.parameters())
        found = {"steps": steps, "mode": training.model.mode, "weights": hashlib.sha256(weights).hexdigest()}
        (runs.parent / f"rank_{torch.distributed.get_rank()}.json").write_text(json.dumps(found))

    train.fit = fit_and_tell
    for arguments in json.loads(runs.read_text()):
        train.main(arguments)
