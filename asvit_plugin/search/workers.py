"""Which of the processes that work on one study are alive.

A process holds a lock on a file of its own for as long as it lives; the operating system lets go of it however the
process ends. A trial names the process that runs it, so whoever can take that lock knows that the trial is nobody's.
Optuna's heartbeat says the same about processes on other machines, but minutes later.
"""

import hashlib
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    import optuna

WORKER = "worker"  # user attribute of a trial: who runs it
_UNSIGNED = 180  # seconds after which a trial on another machine that names nobody is nobody's


class Workers:
    """The processes of one study, as files in a folder.

    Args:
        folder: Where they are; next to an SQLite file, or on this machine for a database elsewhere.
        complete: Whether all processes of the study share the folder: then who has no file there is dead.
    """

    def __init__(self, folder: Path, complete: bool) -> None:
        self.folder, self.complete = folder, complete
        folder.mkdir(parents=True, exist_ok=True)
        self.guard = FileLock(folder / "study.lock")
        self.name = uuid.uuid4().hex
        self._mine = FileLock(self._file(self.name))
        self._mine.acquire()
        self._unsigned: dict[int, float] = {}

    def close(self) -> None:
        """Sign off."""
        self._mine.release(force=True)
        self.guard.release(force=True)
        self._file(self.name).unlink(missing_ok=True)

    def is_dead(self, trial: "optuna.trial.FrozenTrial") -> bool:
        """Whether the process that ran a RUNNING trial is known to have ended; ask it under the guard only."""
        name = trial.user_attrs.get(WORKER)
        if name == self.name:
            return False
        if name is None and self.complete:  # a trial is signed under the guard, which is ours now: it was killed before
            return True
        if name is None:
            return time.monotonic() - self._unsigned.setdefault(trial.number, time.monotonic()) > _UNSIGNED
        if not self._file(name).exists():
            return self.complete
        try:
            with FileLock(self._file(name), blocking=False):
                pass
        except Timeout:
            return False
        with suppress(OSError):
            self._file(name).unlink()
        return True

    def _file(self, name: str) -> Path:
        return self.folder / f"{Path(name).name}.worker"


def temporary_folder(key: str) -> Path:
    """Where the processes of this machine that use a database elsewhere meet."""
    return Path(tempfile.gettempdir()) / f"asvit_plugin_{hashlib.sha256(key.encode()).hexdigest()[:16]}"
