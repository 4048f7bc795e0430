"""Files of what was measured on this machine, in the user's cache folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_file(name: str) -> Path:
    """This machine's file of that name: ``asvit_plugin/NAME`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "asvit_plugin" / name


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else is in here for the same file; makes its folder. The lock goes with the process that holds it."""
    from filelock import FileLock  # torch brings it

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield
