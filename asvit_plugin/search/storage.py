"""The databases that studies are kept in: SQLite files whole at every moment, and what goes wrong with others."""

import os
import sqlite3
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy

from .workers import Workers, temporary_folder

_HEARTBEAT, _GRACE = 30, 180  # seconds; Optuna's, for processes on other machines
_TRIES = 3  # two machines may fill one database with tables at once


def resolve(storage: Path | str | None, nowhere: Path) -> tuple[str | None, Workers]:
    """The URL of a storage, and where the processes that use it meet.

    Args:
        storage: A file (SQLite) or a URL of Optuna; None for memory.
        nowhere: A folder that nobody else uses.

    Raises:
        ValueError: if it is neither.
    """
    if storage is None:
        return None, Workers(nowhere, complete=True)
    text = f"sqlite:///{storage}" if isinstance(storage, Path) or "://" not in storage else storage
    try:
        url = sqlalchemy.engine.make_url(text)
    except sqlalchemy.exc.ArgumentError:
        raise ValueError(f"storage is {str(storage)!r}; it must be a file or a URL such as postgresql://...") from None
    if url.get_backend_name() != "sqlite":
        return text, Workers(temporary_folder(text), complete=False)
    if not url.database:
        raise ValueError(f"storage is {str(storage)!r}; it must name the SQLite file")
    file = Path(url.database)
    if file.is_dir():
        raise ValueError(f"storage is {str(storage)!r}, a folder; it must be a file")
    return text, Workers(file.with_name(f"{file.name}.locks"), complete=True)


class _Connection(sqlite3.Connection):
    """Does not wait for the disk at every commit: Optuna makes one per decision, a second for a net of many.

    With a write-ahead log a killed process still loses nothing; a machine that loses power may lose the last trials.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute("PRAGMA journal_mode=WAL")
        self.execute("PRAGMA synchronous=NORMAL")


def connect(url: str, lock_seconds: float) -> optuna.storages.RDBStorage:
    """Optuna's storage; call it under the guard of the processes, for it may create the database."""
    parsed = sqlalchemy.engine.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        _create_file(Path(parsed.database))
        return _open(url, connect_args={"timeout": lock_seconds, "factory": _Connection})
    for attempt in range(1, _TRIES + 1):
        try:
            return _open(url)
        except sqlalchemy.exc.DBAPIError:
            if attempt == _TRIES:
                raise
            time.sleep(attempt)


def _open(url: str, **engine: object) -> optuna.storages.RDBStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # the heartbeat
        try:
            return optuna.storages.RDBStorage(
                url, engine_kwargs=engine, heartbeat_interval=_HEARTBEAT, grace_period=_GRACE
            )
        except ImportError as error:
            raise RuntimeError(f"database {shown(url)} cannot be used: {error}") from error


def _create_file(file: Path) -> None:
    """Give a new SQLite file its tables before it gets its name.

    Optuna makes tables and indices one after the other, and leaves a table that is there alone: a file whose creation
    was killed in between would never get the index that keeps studies from being created twice.
    """
    if file.exists() and file.stat().st_size:
        return
    new = file.with_name(f".{file.name}.new")
    logs = [file.with_name(f"{file.name}-{kind}") for kind in ("wal", "shm")]  # of a file that was deleted
    for leftover in (new, new.with_name(f"{new.name}-journal"), *logs):
        leftover.unlink(missing_ok=True)
    optuna.storages.RDBStorage(f"sqlite:///{new}").engine.dispose()
    os.replace(new, file)


@contextmanager
def clear_errors(url: str | None) -> Iterator[None]:
    """Turn what a database can raise into one sentence."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        reason = str(getattr(cause, "orig", None) or cause or error).strip().split("\n")[0]
        advice = "; what was stored is kept, so run the same again later" if _may_pass(cause, reason) else ""
        raise RuntimeError(f"database {shown(url)} cannot be used: {reason}{advice}") from error


def _may_pass(error: BaseException | None, reason: str) -> bool:
    """Whether the same may succeed later: a file that is locked or has no room, a server that is out of reach."""
    if isinstance(getattr(error, "orig", None), sqlite3.Error):
        return "locked" in reason or "full" in reason
    passing = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError, sqlalchemy.exc.TimeoutError)
    return isinstance(error, passing) or getattr(error, "connection_invalidated", False)


def shown(url: str | None) -> str:
    """The URL without its password."""
    return "memory" if url is None else sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
