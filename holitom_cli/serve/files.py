"""Clips that clients have sent once to ask about by name, within a quota and for a time."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holitom_cli.serve import spool
from holitom_cli.serve.refusals import Refused

_LEAST_BYTES = 1024**2  # that a file counts as, so that the quota also limits how many there are
_LABEL_LETTERS = 128


@dataclass(frozen=True, slots=True)
class FileRules:
    """How much is kept, and for how long."""

    folder: Path  # of this process alone, see `private_folder`
    max_bytes: int  # of a file
    quota_bytes: int  # of all of them; each counts as 1 MiB at least
    keep_seconds: float  # from its upload


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that is kept."""

    id: str
    label: str  # its name on the client's side, which means nothing here
    size_bytes: int
    created_at: int  # Unix seconds
    expires_at: int

    def as_json(self) -> dict[str, Any]:
        """As OpenAI describes files."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.size_bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.label,
            "purpose": "user_data",
            "status": "processed",
        }


class _Held:
    """A file and those who read it."""

    def __init__(self, record: StoredFile, path: Path, charged_bytes: int, ends: float) -> None:
        self.record, self.path, self.charged_bytes, self.ends = record, path, charged_bytes, ends
        self.readers = 0
        self.removed = False


class FileStore:
    """Files by their ids. Everything is called from one event loop; a file that is being read outlives its removal."""

    def __init__(self, rules: FileRules) -> None:
        self._rules = rules
        self._held: dict[str, _Held] = {}
        self.used_bytes = 0  # of the quota, unfinished uploads and removed files that are still read included

    async def save(self, stream: AsyncIterator[bytes], label: str = "") -> StoredFile:
        """Keep what comes, and forget it when its time is over. Nothing is left of an upload that fails.

        Raises:
            Refused: it is empty or too large, or there is no room for it.
        """
        name = f"file-{secrets.token_urlsafe(24)}"  # 192 bits: who has not been told it does not find it
        path = self._rules.folder / name
        charge = _Charge(self)
        try:
            size = await spool.save(path, charge.metered(stream), self._rules.max_bytes)
            if size == 0:
                path.unlink()
                raise Refused(400, "The file is empty.", "Send a video.", "empty_file", param="file")
        except BaseException:
            self.used_bytes -= charge.bytes
            raise
        now = time.time()
        ends = now + self._rules.keep_seconds
        record = StoredFile(name, label_of(label), size, int(now), int(ends))
        self._held[name] = _Held(record, path, charge.bytes, ends)
        asyncio.get_running_loop().call_later(self._rules.keep_seconds, self._expire)
        return record

    def get(self, name: str) -> StoredFile:
        """The file of this id.

        Raises:
            Refused: there is none, or no longer.
        """
        return self._find(name).record

    def list(self) -> list[StoredFile]:
        """All files, the newest first."""
        self._expire()
        return [held.record for held in reversed(self._held.values())]

    def delete(self, name: str) -> None:
        """Remove a file; who reads it reads on.

        Raises:
            Refused: there is none, or no longer.
        """
        self._remove(self._find(name))

    @contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """The path of a file, which is there until the context ends, even if it is removed or expires meanwhile.

        Raises:
            Refused: there is none, or no longer.
        """
        held = self._find(name)
        held.readers += 1
        try:
            yield held.path
        finally:
            held.readers -= 1
            self._free(held)

    def reserve(self, count: int) -> None:
        """Take bytes of the quota.

        Raises:
            Refused: there are not as many.
        """
        self._expire()
        if self.used_bytes + count > self._rules.quota_bytes:
            raise Refused(
                507, "There is no room for more files.", "Delete some, or wait until some expire.", "quota_exceeded"
            )
        self.used_bytes += count

    def _find(self, name: str) -> _Held:
        self._expire()
        if name not in self._held:
            raise Refused(404, "There is no such file.", "It may have expired: send it again.", "file_not_found")
        return self._held[name]

    def _expire(self) -> None:
        now = time.time()
        for held in [held for held in self._held.values() if held.ends <= now]:
            self._remove(held)

    def _remove(self, held: _Held) -> None:
        del self._held[held.record.id]
        held.removed = True
        self._free(held)

    def _free(self, held: _Held) -> None:
        """Give a file's room back once it is removed and nobody reads it."""
        if held.removed and not held.readers:
            held.path.unlink(missing_ok=True)
            self.used_bytes -= held.charged_bytes


class _Charge:
    """What an upload has taken of the quota so far."""

    def __init__(self, store: FileStore) -> None:
        self._store = store
        self.bytes = 0

    async def metered(self, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Pass blocks on for which there is room."""
        arrived = 0
        self._raise_to(_LEAST_BYTES)
        async for block in stream:
            arrived += len(block)
            self._raise_to(max(arrived, _LEAST_BYTES))
            yield block

    def _raise_to(self, size: int) -> None:
        self._store.reserve(size - self.bytes)
        self.bytes = size


def label_of(name: str) -> str:
    """A client's name of a file, as one printable line without folders."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(char for char in last if char.isprintable())[:_LABEL_LETTERS] or "clip"
