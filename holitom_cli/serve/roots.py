"""file:// URLs: regular files below folders that the server was told of, and nothing else."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from holitom_cli.errors import UsageError
from holitom_cli.serve.refusals import Refused
from holitom_cli.serve.spool import new_path

_EXAMPLE = "Send file:///FOLDER/clip.mp4."
_OPEN_FLAGS = ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY")  # a FIFO opens at once, and is refused then


class Roots:
    """Folders whose files clients may name."""

    def __init__(self, folders: Sequence[Path], spool: Path) -> None:
        """Serve what lies below `folders`; links to open files are made in `spool`.

        Raises:
            UsageError: one of them is no folder, or this system cannot guard any.
        """
        if folders and os.open not in os.supports_dir_fd:
            raise UsageError("This system cannot guard folders for clients.", "Leave --allow-path out.")
        for folder in folders:
            if not folder.is_dir():
                raise UsageError(f"--allow-path {folder} is not a folder.", "Name one that exists.")
        # As they are called, and as they are: a client may use either.
        self._folders = [(os.path.abspath(folder), os.path.realpath(folder)) for folder in folders]  # noqa: PTH100
        self._spool = spool

    @contextmanager
    def opened(self, url: str) -> Iterator[Path]:
        """The path of the file that a URL names. Whatever becomes of the names on the way to it, it is this file.

        Raises:
            Refused: it is not below the folders, not there or no regular file.
        """
        with ExitStack() as ending:
            descriptor, path = self._open(path_of(url))
            ending.callback(os.close, descriptor)
            held = Path(f"/proc/{os.getpid()}/fd/{descriptor}")
            if held.exists():  # elsewhere than on Linux the name is all there is
                link = new_path(self._spool, Path(path).suffix)  # some formats are guessed by the ending of the name
                link.symlink_to(held)
                ending.callback(link.unlink)
                path = str(link)
            yield Path(path)

    def _open(self, wanted: str) -> tuple[int, str]:
        """An open descriptor of a file, and its real path."""
        for named, real in self._folders:
            # By its name first: nobody is to learn what exists elsewhere.
            if not (_below(wanted, named) or _below(wanted, real)):
                continue
            path = os.path.realpath(wanted)
            if not _below(path, real):
                break  # a link leads out of the folder
            try:
                return _open_below(real, os.path.relpath(path, real)), path
            except OSError as error:
                raise _not_readable() from error
        raise Refused(
            403,
            "That file is not in a folder that this server reads clips from.",
            "Upload it to /v1/files, or start the server with --allow-path FOLDER.",
            "path_not_allowed",
        )


def path_of(url: str) -> str:
    """The absolute path, without "..", that a file:// URL names (RFC 8089).

    Raises:
        Refused: it names another machine, or no path.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise _no_path("cannot be read") from error
    if parts.netloc.lower() not in ("", "localhost"):
        raise _no_path("names another machine")
    if parts.query or parts.fragment:
        raise _no_path("has a ? or # in it; write %3F or %23")
    raw = unquote_to_bytes(parts.path)  # once: what is encoded twice is a name with a percent sign in it
    if b"\0" in raw or not raw.startswith(b"/"):
        raise _no_path("has no absolute path")
    return os.path.normpath(b"/" + raw.lstrip(b"/")).decode("utf-8", "surrogateescape")


def _below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def _open_below(folder: str, relative: str) -> int:
    """A descriptor of a regular file; no step from the folder to it is a link, whoever changes names meanwhile.

    Raises:
        OSError: there is no such file.
    """
    *folders, name = Path(relative).parts
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with ExitStack() as ending:
        ending.callback(lambda: os.close(at))
        for step in folders:
            inner = os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = inner
        if not stat.S_ISREG(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
            raise OSError("not a regular file")  # not opened: that alone makes some devices do something
        descriptor = os.open(name, os.O_RDONLY | sum(getattr(os, flag) for flag in _OPEN_FLAGS), dir_fd=at)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # changed since
        os.close(descriptor)
        raise OSError("not a regular file")
    return descriptor


def _not_readable() -> Refused:
    return Refused(
        404, "There is no such file, or it cannot be read.", "Check its name and its permissions.", "file_not_found"
    )


def _no_path(what: str) -> Refused:
    return Refused(400, f"The file:// URL {what}.", _EXAMPLE, "invalid_url")
