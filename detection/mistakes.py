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
    """:func:`asvit_plugin.exporting.first_line` of an exception; of a loader's worker, of what was raised there."""
    from asvit_plugin import exporting  # takes seconds, and is of use only when something is wrong

    line = exporting.first_line(error)
    if "DataLoader worker" in line:  # then comes the worker's traceback, with the message last
        return str(error).rstrip().splitlines()[-1].strip().rpartition("DataError: ")[2]
    return line


def expect_mistakes() -> None:
    """Keep detectron2 from printing a traceback of what ends in one sentence."""
    for name in _REPORTING:
        logger = logging.getLogger(name)
        if _is_no_mistake not in logger.filters:
            logger.addFilter(_is_no_mistake)


def _is_no_mistake(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], DataError | FloatingPointError))
