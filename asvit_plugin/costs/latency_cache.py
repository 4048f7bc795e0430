"""Latencies that were measured on this machine, in one file."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..atomic import write_atomically
from .cache_files import cache_file, locked
from .latency_record import Latency, LatencyKey

FORMAT = 2  # of the file; to be raised when what is in it changes
_READABLE = (1, FORMAT)  # all of format 1 were forward passes, and their turns were not kept


class LatencyCache:
    """A file of latencies by their keys; several processes may write it.

    The versions of torch and of the runtime are part of a key, so that what was measured with others is not found.

    Args:
        path: The file; None for ``asvit_plugin/latency.json`` in the user's cache folder.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path else cache_file("latency.json")

    def get(self, key: LatencyKey) -> Latency | None:
        """What was measured for a key, if anything.

        Raises:
            ValueError: The file cannot be read, or is of another format.
        """
        entry = self._entries().get(key.text)
        return None if entry is None else self._latency(entry)

    def latencies(self) -> list[Latency]:
        """All that is in the file, also of other versions.

        Raises:
            ValueError: The file cannot be read, or is of another format.
        """
        return [self._latency(entry) for entry in self._entries().values()]

    def put(self, *latencies: Latency) -> None:
        """Add latencies, in the place of earlier ones of their keys.

        Raises:
            ValueError: The file that is there cannot be read, or is of another format; it stays as it is.
        """
        with locked(self.path):
            entries = {**self._entries(), **{each.key.text: asdict(each) for each in latencies}}
            text = json.dumps({"format": FORMAT, "latencies": list(entries.values())}, indent=1) + "\n"
            write_atomically(self.path, lambda file: file.write(text.encode()))

    def _entries(self) -> dict[str, dict[str, Any]]:
        try:
            table = json.loads(self.path.read_text())
            version = table["format"]
            entries = (
                {self._latency(entry).key.text: entry for entry in table["latencies"]} if version in _READABLE else {}
            )
        except FileNotFoundError:
            return {}
        except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"the latency cache {self.path} cannot be read ({reason}); delete it") from error
        if version not in _READABLE:
            able = " and ".join(map(str, _READABLE))
            raise ValueError(f"the latency cache {self.path} has format {version!r}, and this version reads {able}")
        return entries

    @staticmethod
    def _latency(entry: dict[str, Any]) -> Latency:
        key = LatencyKey(**_with_tuples(entry["key"]))
        return Latency(**{**_with_tuples(entry), "key": key})


def _with_tuples(record: dict[str, Any]) -> dict[str, Any]:
    """A record as it was before JSON made lists of its tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
