"""Where a user's servers are found by the same user's `ask`: sockets that nobody else can open."""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_ENDING = ".sock"
_UNFINISHED = ".new"
_WAITING_CONNECTIONS = 16
_XUCRED = struct.Struct("=2I")  # cr_version and cr_uid, with which struct xucred of macOS and the BSDs begins
_UCRED = struct.Struct("=3i")  # pid, uid and gid of Linux's struct ucred

OFFERED = sys.platform != "win32" and hasattr(socket, "AF_UNIX")


class UnsafeError(Exception):
    """A socket that others could open, or that is another user's; the text is a clause that says why."""


@contextmanager
def listening(folder: Path) -> Iterator[socket.socket]:
    """A socket (mode 0600) in a folder of this user alone (mode 0700); each server has one of its own.

    Sockets of servers that were killed are removed first, and this one in the end.

    Raises:
        UnsafeError: others can enter the folder.
        OSError: it cannot be made there, for a path that is too long, say.
    """
    _make(folder)
    path = folder / f"{os.getpid()}-{os.urandom(4).hex()}{_ENDING}"
    unfinished = path.with_suffix(_UNFINISHED)
    for other in (*found(folder), *folder.glob(f"*{_UNFINISHED}")):
        _remove_if_dead(other)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(str(unfinished))
            unfinished.chmod(0o600)
            listener.listen(_WAITING_CONNECTIONS)
            unfinished.rename(path)  # it never stands there without somebody who listens
            yield listener
        finally:
            for name in (unfinished, path):
                name.unlink(missing_ok=True)


def found(folder: Path) -> list[Path]:
    """Sockets of this user's servers, some of which may have been killed; none where there is no such folder."""
    return sorted(folder.glob(f"*{_ENDING}"))


def connect(path: Path, timeout_seconds: float) -> socket.socket:
    """A connection to a server of this user.

    Raises:
        UnsafeError: the folder or the server is not this user's alone.
        OSError: nobody listens there.
    """
    _check(path.parent)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_seconds)
        connection.connect(str(path))
        check_peer(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def check_peer(connection: socket.socket) -> None:
    """Refuse who is at the other end, where it is not this user.

    Raises:
        UnsafeError: it is another one.
    """
    other = peer_uid(connection)
    if other is not None and other != os.getuid():
        raise UnsafeError(f"the other end belongs to user {other}")


def peer_uid(connection: socket.socket) -> int | None:
    """The user id of the process at the other end; None where the system does not tell.

    Source: unix(7) on Linux, unix(4) on macOS and FreeBSD.
    """
    if hasattr(socket, "SO_PEERCRED"):
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return int(_UCRED.unpack(credentials)[1])
    if (option := getattr(socket, "LOCAL_PEERCRED", None)) is not None:
        return int(_XUCRED.unpack(connection.getsockopt(0, option, 128)[: _XUCRED.size])[1])
    return None


def _make(folder: Path) -> None:
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    _check(folder)


def _check(folder: Path) -> None:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise UnsafeError(f"{folder} is not a folder")
    if status.st_uid != os.getuid():
        raise UnsafeError(f"{folder} belongs to user {status.st_uid}")
    if status.st_mode & 0o077:
        raise UnsafeError(f"others can enter {folder}")


def _remove_if_dead(path: Path) -> None:
    """Remove a socket that nobody listens at."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.settimeout(0.5)
        try:
            trial.connect(str(path))
        except ConnectionRefusedError:
            if path.suffix == _ENDING or _is_old(path):
                path.unlink(missing_ok=True)
        except OSError:
            pass  # gone meanwhile, or too busy to say


def _is_old(path: Path) -> bool:
    """Whether a socket is not one that another server is just about to listen at."""
    with suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime > 60
    return False
