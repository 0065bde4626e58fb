"""Memory that a worker writes pictures into and its parent reads: it has no file, so nothing is left behind."""

from __future__ import annotations

import contextlib
import mmap
import os

from holitom_cli.errors import VideoError, reason

TYPE_CHECKING = False  # see holitom_cli/__init__.py
if TYPE_CHECKING:
    from typing import Any


class Arena:
    """One process's view of the shared memory; the other one is made from `handle`."""

    def __init__(self, handle: str | None = None) -> None:
        self.handle = handle or self._make()
        self._view: mmap.mmap | None = None

    @property
    def inherited(self) -> dict[str, Any]:
        """What subprocess.Popen has to be told, so that the child can open the handle."""
        return {} if os.name == "nt" else {"pass_fds": (int(self.handle),)}

    def grow(self, size: int) -> None:
        """Make room for `size` bytes; raises VideoError where a limit forbids. Pages take memory when written to."""
        if os.name != "nt" and os.fstat(int(self.handle)).st_size < size:
            try:
                os.ftruncate(int(self.handle), size)
            except OSError as error:
                raise VideoError(
                    f"There is no shared memory for frames: {reason(error).lower()}.", "See the limits: ulimit -a"
                ) from error

    def view(self, size: int) -> mmap.mmap:
        """At least `size` bytes of it."""
        if self._view is None or len(self._view) < size:
            named = os.name == "nt"  # there a mapping has a name, and as many bytes as at first
            self._view = mmap.mmap(-1, size, f"{self.handle}-{size}") if named else mmap.mmap(int(self.handle), size)  # type: ignore[arg-type,unused-ignore]
        return self._view

    def empty(self) -> None:
        """Give its memory back. Whoever reads from a view before it grows again is ended by the system."""
        self._forget()
        if os.name != "nt":
            os.ftruncate(int(self.handle), 0)

    def close(self) -> None:
        """Let go of it for good."""
        self._forget()
        if os.name != "nt":
            os.close(int(self.handle))

    def _forget(self) -> None:
        if self._view is not None:
            with contextlib.suppress(BufferError):  # somebody still reads; it goes with the last one who does
                self._view.close()
        self._view = None

    @staticmethod
    def _make() -> str:
        if os.name == "nt":
            return f"holitom-{os.getpid()}-{os.urandom(8).hex()}"
        if hasattr(os, "memfd_create"):  # Linux: unlike /dev/shm, no container makes it small
            return str(os.memfd_create("holitom"))
        import tempfile  # the first clip does not wait for what its system does not need

        with tempfile.TemporaryFile() as file:
            return str(os.dup(file.fileno()))
