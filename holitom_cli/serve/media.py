"""From the URL that a client sends to a file on this machine, by the rules of this server."""

from __future__ import annotations

import binascii
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from holitom_cli.serve.files import FileStore
from holitom_cli.serve.refusals import Refused
from holitom_cli.serve.remote import Remote
from holitom_cli.serve.roots import Roots
from holitom_cli.serve.spool import in_thread, new_file, new_path, too_large, write_all

_PIECE = 4 * 2**18  # base64 characters that are decoded at a time
_LONGEST = 8192  # characters of a URL that names a clip; nginx takes as many
_EXAMPLE = "Send data:video/mp4;base64,..."
_KNOWN = ("video/", "image/", "application/octet-stream", "application/mp4", "application/ogg")


@dataclass(frozen=True, slots=True)
class MediaRules:
    """What clients may name as a clip."""

    spool: Path  # a folder of this process alone, see `private_folder`
    max_bytes: int  # of a clip that is sent or fetched
    allow_paths: tuple[Path, ...] = ()  # folders whose files file:// may name
    allow_remote: bool = False  # http:// and https:// may name public hosts
    allow_hosts: frozenset[str] = frozenset()  # and these, whatever their addresses and ports are
    fetch_seconds: float = 60.0  # that fetching one clip may take


class Media:
    """What knows URLs of clips: data:, file-ID, and where they are allowed file:// and http(s)://."""

    def __init__(self, rules: MediaRules, files: FileStore, remote: Remote | None = None) -> None:
        """Open clips by these rules; `remote` stands for what would be made of them to fetch with.

        Raises:
            UsageError: a folder that is allowed is none.
        """
        self._rules, self._files = rules, files
        self._roots = Roots(rules.allow_paths, rules.spool)
        self._remote = remote or Remote(rules.allow_hosts, rules.max_bytes, rules.fetch_seconds)

    @asynccontextmanager
    async def open(self, url: str) -> AsyncIterator[Path]:
        """A local file that is there until the context ends. What it holds is the client's: nothing has read it yet.

        Raises:
            Refused: there is none, or the rules do not allow it.
        """
        if url.startswith("file-"):
            with self._files.opened(url) as path:
                yield path
        elif is_a(url, "file"):
            _check_length(url)
            with ExitStack() as ending:
                yield await in_thread(lambda: ending.enter_context(self._roots.opened(url)))
        else:
            path = new_path(self._rules.spool)
            try:
                await self._write(url, path)
                yield path
            finally:
                path.unlink(missing_ok=True)

    async def _write(self, url: str, path: Path) -> None:
        if is_a(url, "data"):
            await in_thread(lambda: write_data(url, path, self._rules.max_bytes))
            return
        if not (is_a(url, "http") or is_a(url, "https")):
            raise Refused(400, "The clip's URL is of no kind that is known here.", _EXAMPLE, "unsupported_url")
        if not self._rules.allow_remote:
            raise Refused(
                403, "This server fetches no clips.", "Upload it, or start the server with --allow-remote.",
                "remote_not_allowed",
            )  # fmt: skip
        _check_length(url)
        await self._remote.fetch(url, path)


def is_a(url: str, scheme: str) -> bool:
    """Whether a URL has this scheme, in whatever case."""
    return url[: len(scheme) + 1].lower() == f"{scheme}:"


def _check_length(url: str) -> None:
    if len(url) > _LONGEST:
        raise Refused(400, f"The clip's URL is longer than {_LONGEST:,} characters.", _EXAMPLE, "invalid_url")


def write_data(url: str, path: Path, most_bytes: int) -> None:
    """Write what a data URL holds (RFC 2397, in base64) to a new file, a piece at a time.

    Raises:
        Refused: it is not base64, holds nothing or too much, or announces something else than pictures.
    """
    start = url.find(",") + 1
    head = url[: min(start, 256)].lower()
    if not head.endswith(";base64,"):
        raise _no_data("is not in base64")
    kind = head.removeprefix("data:").partition(";")[0]
    if kind and not kind.startswith(_KNOWN):
        raise _no_data(f"holds {kind!r}, which is no video")
    if (len(url) - start) // 4 * 3 > most_bytes + 2:  # its last two bytes may be none
        raise too_large(most_bytes)
    if start == len(url):
        raise _no_data("is empty")
    with new_file(path) as file:
        _decode(url, start, file, most_bytes)


def _decode(url: str, start: int, file: BinaryIO, most_bytes: int) -> None:
    size = 0
    for at in range(start, len(url), _PIECE):
        piece = url[at : at + _PIECE]
        try:
            block = binascii.a2b_base64(piece, strict_mode=True)
        except ValueError as error:  # binascii's, or letters beyond ASCII
            raise _no_data("is not valid base64") from error
        if len(block) != _PIECE // 4 * 3 and at + _PIECE < len(url):
            raise _no_data("is not valid base64")  # its end stands before the end
        size += len(block)
        if size > most_bytes:
            raise too_large(most_bytes)
        write_all(file, block)


def _no_data(what: str) -> Refused:
    return Refused(400, f"The data URL {what}.", _EXAMPLE, "invalid_url")
