"""Runs train.py several times in the processes that torchrun started once: argument lists come from a JSON file."""

import json
import sys
from pathlib import Path

import torch.distributed
import train

if __name__ == "__main__":
    join, leave = torch.distributed.init_process_group, torch.distributed.destroy_process_group
    torch.distributed.init_process_group = lambda *args, **kwargs: (
        torch.distributed.is_initialized() or join(*args, **kwargs)
    )
    torch.distributed.destroy_process_group = lambda: None
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        train.main(arguments)
        torch.distributed.barrier()
    leave()
