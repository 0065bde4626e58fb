"""Where clips of clients lie while they are needed: a folder of this process alone, and files of limited size."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from holitom_cli.serve.refusals import Refused

T = TypeVar("T")

_PREFIX = "holitom-serve-"
_LOCK = "lock"
_FULL = {errno.ENOSPC, errno.EDQUOT}


# --- the folder ------------------------------------------------------------------------------------


@contextmanager
def private_folder(parent: Path | None = None) -> Iterator[Path]:
    """A folder that only this user can enter, removed in the end; it begins with removing what killed servers left.

    `parent` is where it is made, by default where the system keeps temporary files.
    """
    parent = parent or Path(tempfile.gettempdir())
    if sys.platform != "win32":  # there, no file is locked in a way that its owner could ask about
        remove_leftovers(parent)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))  # mode 0700
    with ExitStack() as ending:
        ending.callback(shutil.rmtree, folder, ignore_errors=True)
        if sys.platform == "win32":
            yield folder
            return
        lock = ending.enter_context((folder / f"{_LOCK}.new").open("wb"))
        _lock(lock)
        (folder / f"{_LOCK}.new").rename(folder / _LOCK)  # it never stands there without being locked by the living
        yield folder


def remove_leftovers(parent: Path) -> None:
    """Remove folders of servers that were killed: those whose lock nobody holds any more."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / _LOCK).open("rb") as lock:
                _lock(lock)
                shutil.rmtree(folder, ignore_errors=True)


def _lock(file: BinaryIO) -> None:
    """Lock a file for as long as it is open; raises OSError where another process has it."""
    import fcntl

    fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def new_path(folder: Path, suffix: str = "") -> Path:
    """The path of a file that is not there yet, and that nobody can guess."""
    return folder / f"clip-{secrets.token_hex(16)}{suffix}"


# --- its files -------------------------------------------------------------------------------------


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A new file (mode 0600) to be written; it is removed again where that fails.

    Raises:
        Refused: the disk is full.
    """
    try:
        with open(path, "xb", buffering=0, opener=partial(os.open, mode=0o600)) as file:
            try:
                yield file
            except BaseException:
                path.unlink(missing_ok=True)
                raise
    except OSError as error:
        if error.errno in _FULL:
            raise Refused(507, "The disk of this server is full.", "Try again later.", "disk_full") from error
        raise


def write_all(file: BinaryIO, block: bytes) -> None:
    """Write a block; an unbuffered file may take less than it is offered."""
    rest = memoryview(block)
    while rest:
        rest = rest[file.write(rest) :]


async def save(path: Path, blocks: AsyncIterator[bytes], most_bytes: int) -> int:
    """Write blocks to a new file as they come; returns its size in bytes. Nothing is left where that fails.

    Raises:
        Refused: there are too many bytes, or the disk is full.
    """
    size = 0
    with new_file(path) as file:
        async for block in blocks:
            size += len(block)
            if size > most_bytes:
                raise too_large(most_bytes)
            await in_thread(partial(write_all, file, block))
    return size


def too_large(most_bytes: int) -> Refused:
    """What is said of clips with more bytes than are taken."""
    return Refused(413, f"The clip has more than {most_bytes:,} bytes.", "Send a smaller one.", "clip_too_large")


async def in_thread(work: Callable[[], T]) -> T:
    """Run what waits for a disk beside the event loop. Where nobody waits any more, it still ends before this does.

    A file must not be closed under a thread that writes to it: the number of its descriptor may be another file's.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # has been seen
        raise
