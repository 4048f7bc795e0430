"""How a run of several processes ends when one of them does."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch.distributed
from parsing import complain
from pretrained import first_line

LOST = "another process of this run ended, or all were told to; --resume auto continues from the last checkpoint"
# What gloo, the operating system and NCCL say when the other end of a connection is gone; there is no class for it.
_BROKEN = re.compile(r"gloo|(closed|reset) by peer|broken pipe|remote process exited", re.IGNORECASE)


@contextmanager
def ending_together() -> Iterator[None]:
    """Within, the loss of another process ends this one with a sentence and exit status 1.

    It shows as a failed collective or as torchrun's SIGTERM, whichever comes first. A process group that is not yet
    there at the start is watched for the former only: before the training, torchrun's signal needs no comment.
    """
    previous = signal.signal(signal.SIGTERM, _end) if torch.distributed.is_initialized() else None
    try:
        yield
    except RuntimeError as error:
        if not torch.distributed.is_initialized() or not _BROKEN.search(str(error)):
            raise
        if previous is not None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it may come right now, and one sentence is enough
        complain(f"{LOST} ({first_line(error).split('. ')[0]})")
        raise SystemExit(1) from error
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    complain(LOST)
    raise SystemExit(1)
