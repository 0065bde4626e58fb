"""What ends a command besides success: errors, Ctrl-C, closed pipes."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
_GRACE_SECONDS = 0.3  # for the main thread to end by itself after Ctrl-C


def watch_for_interrupts() -> None:
    """Make Ctrl-C end the program within half a second, even while native code runs.

    Python raises KeyboardInterrupt only between bytecodes. The interpreter's C handler, though, writes to the wake-up
    socket at once, and a thread waits there.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_end_after_interrupt, args=(reader, writer), daemon=True)
    thread.start()


def _end_after_interrupt(reader: socket.socket, writer: socket.socket) -> None:
    while reader.recv(1) != bytes([signal.SIGINT]):
        pass
    time.sleep(_GRACE_SECONDS)
    writer.close()
    if "holitom_cli.video" in sys.modules:
        from holitom_cli.video import stop_workers

        stop_workers()
    os._exit(INTERRUPTED)


@contextmanager
def closed_pipe_is_fine() -> Iterator[None]:
    """A reader that has seen enough (`| head`) ends the program quietly."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered would fail again when the interpreter flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
