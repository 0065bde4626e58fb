"""Which rows an output file has, and who writes it."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from io import FileIO
from pathlib import Path
from typing import Any

from holitom_cli.batch.manifest import rows_in
from holitom_cli.errors import BatchError

_LOCKED_BYTE = 2**62  # where no row will ever be: Windows locks bytes, and nobody could read a locked one


class Claim(StrEnum):
    """What there is to do about a row."""

    OPEN = "open"  # the caller makes it
    ANSWERED = "answered"  # before
    FAILED = "failed"  # before
    TAKEN = "taken"  # somebody is making it now


class Ledger:
    """The state of every row by key; safe from several threads.

    A failure belongs to a path, too: equal broken files are rows of their own.
    """

    def __init__(self, output: Path | None = None, *, retry_failed: bool = False, force: bool = False) -> None:
        """What `output` has; with `retry_failed` or `force` failures, or all rows, count as open."""
        self._answered: set[str] = set()
        self._failed: defaultdict[str, set[str]] = defaultdict(set)
        self._taken: set[str] = set()
        self._lock = threading.Lock()
        self.model: tuple[str, str | None] | None = None  # id and revision of the last row's
        for row in rows_in(output) if output and not force else ():
            if "answer" in row:
                self._answered.add(row["key"])
                self.model = (row["model"]["id"], row["model"]["revision"]) if "model" in row else None
            elif not retry_failed:
                self._failed[row["key"]].add(_path(row))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_lock": None}  # for other machines; locks stay where they are

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def claim(self, key: str, clip: Path) -> Claim:
        """Take a row that nobody has made or is making."""
        with self._lock:
            state = self._state(key, clip)
            if state is Claim.OPEN:
                self._taken.add(key)
            return state

    def settle(self, key: str, *, answered: bool) -> None:
        """A row that was claimed has been made."""
        with self._lock:
            self._taken.discard(key)
            if answered:
                self._answered.add(key)

    def peek(self, key: str, clip: Path) -> Claim:
        """What a claim would say, without taking the row."""
        with self._lock:
            return self._state(key, clip)

    def _state(self, key: str, clip: Path) -> Claim:
        if key in self._answered:
            return Claim.ANSWERED
        if str(clip.absolute()) in self._failed.get(key, ()):
            return Claim.FAILED
        return Claim.TAKEN if key in self._taken else Claim.OPEN


def last_rows(output: Path) -> list[dict[str, Any]]:
    """The rows that count, in the file's order: where a clip's key is there several times, the last one.

    An answer takes the place of failures under other names of the same clip, too.
    """
    last: dict[tuple[str, str], dict[str, Any]] = {}
    answered: dict[str, tuple[str, str]] = {}
    for row in rows_in(output):
        place = (row["key"], "" if "answer" in row else _path(row))
        if "answer" in row:
            answered[row["key"]] = place
        last.pop(place, None)
        last[place] = row
    return [row for place, row in last.items() if answered.get(place[0], place) == place]


def _path(row: dict[str, Any]) -> str:
    return str((row.get("video") or {}).get("path"))


@contextmanager
def only_writer(file: FileIO, output: Path) -> Iterator[None]:
    """Hold the file's lock, which the system lets go of when this process ends, however it does.

    Raises:
        BatchError: another process holds it.
    """
    try:
        _lock(file)
    except OSError as error:
        raise BatchError(
            f"Another run is writing to {output}.", "Wait for it to end, or choose another --output."
        ) from error
    yield


def _lock(file: FileIO) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(_LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        file.seek(0, os.SEEK_END)
        return
    fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
