"""The parent's end of a worker: a child process that does native work and can be killed at any moment.

Native decoders crash, and some of their calls never return and cannot be interrupted (decord's issues 373 and
375), so none of them runs in the caller's process. `multiprocessing` is not used: its spawn runs the caller's main
module again.

Protocol: requests are JSON lines on the child's stdin. Replies are JSON lines on its stdout, each followed by as
many raw bytes as its "size" says.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from typing import Any, Self

BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.buffer.readline()); "
    "from holitom_cli.video.worker import main; main()"
)
CHILD_OPTIONS = ["-P", "-S"]  # sys.path is handed over: no folder of clips may slip modules in, no need for site
POLL_SECONDS = 0.1  # on Windows a wait for a queue cannot be interrupted by Ctrl-C, so no wait is long
REAP_SECONDS = 1.0  # a killed process that the kernel holds in a disk wait is left to be reaped later
QUEUED_REPLIES = 2  # decoding runs this far ahead of copying

Message = dict[str, Any]
Reply = tuple[Message, bytearray]

_live: set[Worker] = set()


class WorkerError(Exception):
    """A worker did not do what it was asked; the text completes the sentence "decord ..."."""


class WorkerTimeoutError(WorkerError):
    """The deadline passed."""


class WorkerStoppedError(WorkerError):
    """`stop_workers` ended it."""


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


class Worker:
    """One child process. Use as a context manager: on leaving, however, it is killed and reaped."""

    def __init__(self) -> None:
        self.stopped = False
        self._replies: queue.Queue[Reply | None] = queue.Queue(QUEUED_REPLIES)
        self._complaints: deque[str] = deque(maxlen=20)
        self._process = subprocess.Popen(
            [sys.executable, *CHILD_OPTIONS, "-c", BOOTSTRAP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # the terminal's Ctrl-C is for the parent, which kills the child
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        _live.add(self)
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._pump, self._listen)]
        for thread in self._threads:
            thread.start()
        self.send(sys.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, request: Message | list[str]) -> None:
        """Queue a request. A dead child is reported by the receive that follows."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self, deadline: float) -> Reply:
        """The next reply; WorkerError when the child refuses, dies or is late by time.monotonic()."""
        while True:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise WorkerTimeoutError("did not finish in time")
            with contextlib.suppress(queue.Empty):
                reply = self._replies.get(timeout=min(remaining, POLL_SECONDS))
                break
        if self.stopped:
            raise WorkerStoppedError("was stopped")
        if reply is None:
            raise WorkerError(f"ended unexpectedly ({self._last_words()})")
        if "refused" in reply[0]:
            raise RefusedError(reply[0]["refused"], reply[0]["hint"])
        if "failed" in reply[0]:
            raise WorkerError(f"failed ({reply[0]['failed']})")
        return reply

    def ask(self, request: Message, deadline: float) -> Message:
        """Send a request that has one reply without payload."""
        self.send(request)
        return self.receive(deadline)[0]

    def complaints(self) -> list[str]:
        """End the child and return the last lines that it wrote to stderr."""
        self.close()
        return list(self._complaints)

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._process.kill()

    def close(self) -> None:
        """Kill and reap the child, end both threads and close the pipes. May be called twice."""
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(REAP_SECONDS)
        while any(thread.is_alive() for thread in self._threads) and self._process.poll() is not None:
            with contextlib.suppress(queue.Empty):  # a pump that waits for room in the queue must get on
                self._replies.get(timeout=0.005)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None and self._process.poll() is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        _live.discard(self)

    def _pump(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # half a line: the child died while writing
            while line := self._process.stdout.readline():
                message: Message = json.loads(line)
                payload = bytearray(message.get("size", 0))
                if self._process.stdout.readinto(payload) < len(payload):  # type: ignore[attr-defined]
                    break
                self._replies.put((message, payload))
        self._replies.put(None)

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._complaints.append(line.decode(errors="replace").strip())

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(REAP_SECONDS)
        status = f"exit status {self._process.returncode}"
        return f"{status}: {self._complaints[-1]}" if self._complaints else status
