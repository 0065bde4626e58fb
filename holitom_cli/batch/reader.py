"""Clips are read ahead of the model: workers decode the next ones while it works on those that are there."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from holitom_cli.batch.ledger import Claim
from holitom_cli.batch.questions import Asked, Job
from holitom_cli.video.plan import cores

if TYPE_CHECKING:
    from holitom_cli.errors import HolitomError
    from holitom_cli.types import Frames, VisualTokens

_MOST_READERS = 8  # a decoder uses several cores by itself
_MOST_AHEAD_BYTES = 4 * 1024**3
_IDLE_SECONDS = 0.01  # between looks for a job
_POLL_SECONDS = 0.1  # so that Ctrl-C is seen soon


@dataclass(slots=True)
class Fetched:
    """What a reader made of a job: frames, or tokens of an earlier run, or an error, or jobs about its stretches."""

    job: Job
    asked: list[tuple[str, Asked, Claim]] = field(default_factory=list)  # key, question, whether it is open
    frames: Frames | None = None
    known: tuple[Frames, VisualTokens] | None = None
    cache_key: str = ""
    words: list[tuple[float, float, str]] = field(default_factory=list)  # subtitles: seconds from and to, text
    note: str = ""  # what has to be said of them
    error: HolitomError | None = None
    parts: list[Job] = field(default_factory=list)
    seconds: float = 0.0  # that reading took, so far

    @property
    def held_bytes(self) -> int:
        return self.frames.pixels.nbytes if self.frames else 0


def reader_count(processes: int = 1) -> int:
    """How many clips each of several processes reads at a time, by the cores that they may use."""
    return min(_MOST_READERS, cores() // (2 * processes) + 1)


def ahead_bytes(processes: int) -> int:
    """How many bytes of pictures may wait in each of several processes: together a quarter of the free memory."""
    import psutil  # type: ignore[import-untyped,unused-ignore]

    return int(min(_MOST_AHEAD_BYTES, psutil.virtual_memory().available // (4 * processes)))


class ReadAhead:
    """Jobs in, what was read of them out, as soon as it is there: a slow clip holds nobody up."""

    def __init__(self, jobs: Iterable[Job], fetch: Callable[[Job], Fetched], readers: int, budget_bytes: int) -> None:
        """Call `fetch` of each job in `readers` threads, as long as what waits is below the budget."""
        self.expects_more = False  # jobs that are added later
        self._todo = deque(jobs)
        self._fetch, self._readers, self._budget_bytes = fetch, readers, budget_bytes
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="reader")
        self._pending: list[Future[Fetched]] = []
        self.waited_seconds = 0.0

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left, neither waiting nor being read, nor to come."""
        return not (self._pending or self._todo or self.expects_more)

    def add(self, job: Job) -> None:
        """One job more."""
        self._todo.append(job)

    def next(self, *, patient: bool) -> Fetched | None:
        """What has been read; None where nothing is there yet, or where there is nothing any more.

        With `patient` it waits for a while.
        """
        self._submit()
        if not self._pending:
            if patient and self.expects_more:
                time.sleep(_IDLE_SECONDS)
            return None
        began = time.perf_counter()
        wait(self._pending, timeout=_POLL_SECONDS if patient else 0, return_when=FIRST_COMPLETED)
        self.waited_seconds += time.perf_counter() - began
        ready = next((future for future in self._pending if future.done()), None)
        if ready is None:
            return None
        self._pending.remove(ready)
        fetched = ready.result()
        self._todo.extendleft(reversed(fetched.parts))
        self._submit()
        return fetched

    def close(self) -> None:
        """Give up what is being read."""
        from holitom_cli.video import stop_workers

        self._todo.clear()
        for future in self._pending:
            future.cancel()
        while self._pending:  # a reader that was between two workers has another one by now
            stop_workers()
            self._pending = [future for future in self._pending if not future.done()]
            wait(self._pending, timeout=_POLL_SECONDS)
        self._pool.shutdown()

    def _submit(self) -> None:
        """Keep every reader busy, with clips in reserve, while there is room for what they bring."""
        while self._todo and len(self._pending) < 3 * self._readers and self._held_bytes() < self._budget_bytes:
            self._pending.append(self._pool.submit(self._timed, self._todo.popleft()))

    def _held_bytes(self) -> int:
        """Bytes that wait, and as many as those on average for each clip that is still being read."""
        held = [future.result().held_bytes for future in self._pending if future.done()]
        mean = sum(held) / len(held) if held else 0
        return int(sum(held) + mean * (len(self._pending) - len(held)))

    def _timed(self, job: Job) -> Fetched:
        began = time.perf_counter()
        fetched = self._fetch(job)
        return replace(fetched, seconds=fetched.seconds + time.perf_counter() - began)
