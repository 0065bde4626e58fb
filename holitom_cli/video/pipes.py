"""A child's pipes as messages. What they need is imported while the child starts, so they stand by themselves."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import threading
from collections import deque
from typing import Any

Message = dict[str, Any]


class Pipes:
    """JSON lines to the child's stdin and from its stdout, and the last lines that it wrote to stderr."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        self.complaints: deque[str] = deque(maxlen=20)
        self._stdin, self._stdout, self._stderr = process.stdin, process.stdout, process.stderr
        self._replies: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._pump, self._listen)]
        for thread in self._threads:
            thread.start()

    def write(self, message: Message | list[str]) -> None:
        """Send a line. That the child is dead is seen by whoever waits for a reply."""
        with contextlib.suppress(OSError):
            self._stdin.write(json.dumps(message).encode() + b"\n")
            self._stdin.flush()

    def read(self, seconds: float) -> Message | None:
        """The next reply, None where the child has ended; TimeoutError where there is none within so many seconds."""
        try:
            return self._replies.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None

    def close(self) -> None:
        """End both threads and close the pipes of a child that has ended. May be called twice."""
        for thread in self._threads:
            thread.join()
        for pipe in (self._stdin, self._stdout, self._stderr):
            with contextlib.suppress(OSError):
                pipe.close()

    def _pump(self) -> None:
        with contextlib.suppress(ValueError):  # half a line: the child died while writing
            for line in self._stdout:
                self._replies.put(json.loads(line))
        self._replies.put(None)

    def _listen(self) -> None:
        for line in self._stderr:
            self.complaints.append(line.decode(errors="replace").strip())
