"""The parent's end of a worker: a child process that does native work and can be killed at any moment.

Native decoders crash, and some of their calls never return and cannot be interrupted (decord's issues 373 and
375), so none of them runs in the caller's process. `multiprocessing` is not used: its spawn runs the caller's main
module again.

Protocol: requests are JSON lines on the child's stdin, replies are JSON lines on its stdout. A request has one reply,
or several with a picture each and one that says "done". Pictures lie in shared memory, divided into cells of equal
size; the child fills free cells and the parent frees them again.
"""

from __future__ import annotations

import atexit
import contextlib
import subprocess
import sys
import threading
import time
from contextvars import ContextVar

from holitom_cli.video.arena import Arena

TYPE_CHECKING = False  # see holitom_cli/__init__.py
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from holitom_cli.video.pipes import Message

BOOTSTRAP = (
    "import gc, json, sys; gc.disable(); sys.path[:] = json.loads(sys.stdin.buffer.readline()); "
    "from holitom_cli.video.worker import main; main(sys.argv[1])"
)
CHILD_OPTIONS = ["-P", "-S"]  # sys.path is handed over: no folder of clips may slip modules in, no need for site
POLL_SECONDS = 0.1  # on Windows a wait for a queue cannot be interrupted by Ctrl-C, so no wait is long
REAP_SECONDS = 1.0  # a killed process that the kernel holds in a disk wait is left to be reaped later
MOST_JOBS = 100  # then a worker is replaced, so that what a native library leaks stays small

_live: set[Worker] = set()
_idle: list[Worker] = []
_unwanted: ContextVar[threading.Event | None] = ContextVar("_unwanted", default=None)


class WorkerError(Exception):
    """A worker did not do what it was asked; the text completes the sentence "decord ..."."""


class WorkerTimeoutError(WorkerError):
    """The deadline passed."""


class WorkerStoppedError(WorkerError):
    """`stop_workers` ended it, or nobody wants what it does any more."""


class RefusedError(WorkerError):
    """The worker answered that the file cannot be used: one sentence and a hint for the user."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def stop_workers() -> None:
    """Kill every live worker at once; reads in progress end with an error. Safe from any thread."""
    for worker in list(_live):
        worker.stopped = True
        worker.kill()


@contextlib.contextmanager
def unless(unwanted: threading.Event) -> Iterator[None]:
    """Let all that this thread reads inside end with an error soon after the event is set, even if a decoder hangs."""
    before = _unwanted.set(unwanted)
    try:
        yield
    finally:
        _unwanted.reset(before)


def limit_memory(most_bytes: int) -> None:
    """Let no worker have more memory of its own than this, for clips of strangers: tables that a file of a few bytes
    announces take gigabytes. Where the system cannot limit another process (all but Linux) this has no effect.
    """
    Worker.most_bytes = most_bytes
    for worker in list(_live):
        worker.limit()


def warm_up() -> None:
    """Start a worker for the first clip, so that its start-up overlaps with other work."""
    if not _idle:
        _idle.append(Worker())


@contextlib.contextmanager
def lent() -> Iterator[Worker]:
    """A worker that is kept for the next clip if it has finished all that it was asked; else it is ended."""
    worker = _take() or Worker()
    try:
        yield worker
    finally:
        if worker.in_step and worker.jobs < MOST_JOBS:
            worker.arena.empty()
            _idle.append(worker)
        else:
            worker.close()


def _take() -> Worker | None:
    """An idle worker that is still there."""
    with contextlib.suppress(IndexError):
        while True:
            worker = _idle.pop()
            if worker.in_step and not worker.ended:
                return worker
            worker.close()
    return None


@atexit.register
def close_idle() -> None:
    """End the workers that wait for a clip."""
    while _idle:
        _idle.pop().close()


class Worker:
    """One child process. Use as a context manager: on leaving, however, it is killed and reaped."""

    most_bytes: int | None = None  # see limit_memory

    def __init__(self) -> None:
        self.stopped = False
        self.in_step = True  # every request has been answered in full
        self.jobs = 0
        self.arena = Arena()
        self._process = subprocess.Popen(
            [sys.executable, *CHILD_OPTIONS, "-c", BOOTSTRAP, self.arena.handle],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # the terminal's Ctrl-C is for the parent, which kills the child
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            **self.arena.inherited,
        )
        _live.add(self)
        self.limit()
        try:
            from holitom_cli.video.pipes import Pipes  # imported while the child starts

            self._pipes = Pipes(self._process)
            self._pipes.write(sys.path)
        except BaseException:  # Ctrl-C, or no memory
            self._give_up()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def limit(self) -> None:
        """Hold the child to `most_bytes`; libraries that are loaded, and shared memory, do not count."""
        with contextlib.suppress(ImportError, AttributeError, ProcessLookupError):
            import resource

            if self.most_bytes is not None:
                resource.prlimit(self._process.pid, resource.RLIMIT_DATA, (self.most_bytes, self.most_bytes))

    def send(self, request: Message) -> None:
        """Queue a request. A dead child is reported by the receive that follows."""
        self.in_step = False
        self.jobs += 1
        self._pipes.write(request)

    def free(self, cell: int) -> None:
        """Let the child overwrite a cell of the arena."""
        self._pipes.write({"free": cell})

    def receive(self, deadline: float) -> Message:
        """The next reply; WorkerError when the child refuses, dies or is late by time.monotonic()."""
        unwanted = _unwanted.get()
        while True:
            if unwanted and unwanted.is_set():
                raise WorkerStoppedError("was stopped")
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise WorkerTimeoutError("did not finish in time")
            with contextlib.suppress(TimeoutError):
                reply = self._pipes.read(min(remaining, POLL_SECONDS))
                break
        if self.stopped:
            raise WorkerStoppedError("was stopped")
        if reply is None:
            raise WorkerError(f"ended unexpectedly ({self._last_words()})")
        if "failed" in reply:
            raise WorkerError(f"failed ({reply['failed']})")
        self.in_step = "cell" not in reply
        if "refused" in reply:
            raise RefusedError(reply["refused"], reply["hint"])
        return reply

    def ask(self, request: Message, deadline: float) -> Message:
        """Send a request that has one reply."""
        self.send(request)
        return self.receive(deadline)

    def complaints(self) -> list[str]:
        """End the child and return the last lines that it wrote to stderr."""
        self.close()
        return list(self._pipes.complaints)

    def kill(self) -> None:
        """End the child without waiting for it; it will not be lent again."""
        self.in_step = False
        with contextlib.suppress(OSError):
            self._process.kill()

    def close(self) -> None:
        """Kill and reap the child, end both threads and close the pipes. May be called twice."""
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(REAP_SECONDS)
        if self._process.poll() is not None:
            self._pipes.close()
        self._forget()

    def _give_up(self) -> None:
        """End a child that nobody can talk to yet."""
        with self._process:  # closes its pipes and reaps it
            self.kill()
        self._forget()

    def _forget(self) -> None:
        if self in _live:
            _live.discard(self)
            self.arena.close()

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(REAP_SECONDS)
        status = f"exit status {self._process.returncode}"
        return f"{status}: {self._pipes.complaints[-1]}" if self._pipes.complaints else status
