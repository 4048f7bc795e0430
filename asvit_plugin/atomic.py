"""Files and folders that are whole at every moment."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path | str, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that its path holds the old or the new content, whole, whenever the program is killed.

    Processes that write the same path must take turns. What a killed one leaves beside it, the next one replaces.

    Args:
        path: File to write; its folder must exist.
        write: Writes the content to an open binary file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself
    finally:
        os.close(folder)


@contextmanager
def new_folder(target: Path | str) -> Iterator[Path]:
    """A folder to write in, which takes ``target``'s place at the end: that is whole at every moment, or not there.

    Args:
        target: Folder to write; one that exists is replaced, and missing parents are made.
    """
    target = Path(target).resolve()
    beside = next(parent for parent in target.parents if parent.exists())
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=beside) as temporary:
        folder = Path(temporary) / target.name
        folder.mkdir()
        yield folder
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            shutil.move(target, Path(temporary) / "old")
        folder.rename(target)
