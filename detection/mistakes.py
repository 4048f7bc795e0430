"""How the detection scripts say what is wrong: one sentence, and exit status 2."""

import logging
import sys
from pathlib import Path
from typing import NoReturn

MISSING = (
    "detectron2 is not installed, and on no package index: build it with "
    "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"
)
# Loggers through which detectron2 reports an exception, traceback and all, before it raises it again.
_REPORTING = ("detectron2.engine.train_loop",)


class DataError(ValueError):
    """An image or its annotations cannot be read; says which."""


def exit_with(message: str) -> NoReturn:
    """Prints one line to stderr and ends the program as argparse does, with status 2."""
    remark(f"error: {message}")
    raise SystemExit(2)


def remark(message: str) -> None:
    """Prints one line to stderr."""
    print(f"{Path(sys.argv[0]).name}: {' '.join(message.split())}", file=sys.stderr, flush=True)


def first_line(error: BaseException) -> str:
    """What an exception says first, or its kind where it says nothing; of a loader's worker, what was raised there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and "DataLoader worker" in lines[0]:  # then comes the worker's traceback, with the message last
        return lines[-1].rpartition("DataError: ")[2]
    return lines[0] if lines else type(error).__name__


def expect_mistakes() -> None:
    """Keep detectron2 from printing a traceback of what ends in one sentence."""
    for name in _REPORTING:
        logger = logging.getLogger(name)
        if _is_no_mistake not in logger.filters:
            logger.addFilter(_is_no_mistake)


def _is_no_mistake(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], DataError | FloatingPointError))
