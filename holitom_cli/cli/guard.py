"""What ends a command besides success: errors, Ctrl-C, closed pipes."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn, TextIO

INTERRUPTED = 130
_GRACE_SECONDS = 0.3  # for the main thread to end by itself after Ctrl-C
_SHOW_CURSOR = b"\x1b[?25h"


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
    sys.unraisablehook = _end_where_nothing_can_be_raised
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _raise_where_it_can_be)


_patient = threading.Event()  # the next Ctrl-C is left to whoever asked for it


@contextmanager
def first_interrupt(call: Callable[[], None]) -> Iterator[None]:
    """Let the first Ctrl-C call this instead of ending the program; the second one ends it at once."""

    def interrupted(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        call()

    _patient.set()
    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        _patient.clear()
        signal.signal(signal.SIGINT, before)


@contextmanager
def interrupt_stops() -> Iterator[None]:
    """Let the first Ctrl-C break off what runs inside, by KeyboardInterrupt; the second one ends the program."""

    def stop() -> None:
        deadline = time.monotonic() + _GRACE_SECONDS
        while _patient.is_set() and time.monotonic() < deadline:  # the thread that would end the program hears of it
            time.sleep(0.001)
        raise KeyboardInterrupt

    with first_interrupt(stop):
        yield


@contextmanager
def signals_are_lent() -> Iterator[None]:
    """Give a library that has an event loop of its own the wake-up socket, and take it back."""
    ours = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(ours, warn_on_full_buffer=False)


def end_at_once(code: int = INTERRUPTED) -> NoReturn:
    """Exit, as interrupted unless told otherwise, without the interpreter's tidying up.

    That takes some milliseconds, and up to a second once torch is loaded.
    """
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    _stop_workers()
    os._exit(code)


def _stop_workers() -> None:
    if decoders := sys.modules.get("holitom_cli.video.worker_link"):
        decoders.stop_workers()


def _raise_where_it_can_be(number: int, frame: FrameType | None) -> None:
    """Break off what runs, but not torch's import: its C++ would abort the process. The watching thread ends that."""
    if not getattr(getattr(sys.modules.get("torch"), "__spec__", None), "_initializing", False):
        signal.default_int_handler(number, frame)


def _end_where_nothing_can_be_raised(what: sys.UnraisableHookArgs) -> None:
    """Python prints and drops the KeyboardInterrupt that reaches it in a callback or a finaliser."""
    if isinstance(what.exc_value, KeyboardInterrupt):
        end_at_once()
    sys.__unraisablehook__(what)


def _end_after_interrupt(reader: socket.socket, writer: socket.socket) -> None:
    while not _ends_it(reader.recv(1)):
        pass
    time.sleep(_GRACE_SECONDS)
    writer.close()
    _stop_workers()
    if sys.stderr.isatty():
        os.write(sys.stderr.fileno(), _SHOW_CURSOR)  # a spinner that could not end has hidden it
    os._exit(INTERRUPTED)


def _ends_it(signal_number: bytes) -> bool:
    """Whether this is a Ctrl-C that nobody has asked for."""
    if signal_number != bytes([signal.SIGINT]):
        return False
    asked_for = _patient.is_set()
    _patient.clear()
    return not asked_for


def open_missing_streams() -> None:
    """Give a program that was started without standard streams (`>&-`) ones that go nowhere."""
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115  # open as long as the program
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115


@contextmanager
def closed_pipe_is_fine() -> Iterator[None]:
    """A reader that has seen enough (`| head`) ends the program quietly."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except (OSError, SystemExit) as end:
        if _is_closed_pipe(end) or _is_closed_pipe(end.__context__):  # rich makes an exit of it
            _discard(sys.stdout, sys.stderr)
            raise SystemExit(0) from None
        if isinstance(end, SystemExit):
            raise
        _discard(sys.stdout)  # a full disk, say; whoever wrote has told of it
        raise SystemExit(1) from None


def _is_closed_pipe(error: BaseException | None) -> bool:
    return isinstance(error, BrokenPipeError)


def _discard(*streams: TextIO) -> None:
    """Send the rest nowhere: what is still buffered would fail again when the interpreter flushes at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream.fileno())
