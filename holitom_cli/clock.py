"""Stage times: CUDA events on a GPU, the host's clock elsewhere, and one wait for the device at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Clock:
    """Times named stages on one device without making the host wait for it.

    A stage may run several times; its times add up.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, Any, Any]] = []

    def branch(self) -> Clock:
        """A clock that knows the stages so far, for one of several ways on."""
        other = Clock(self._device)
        other._marks = list(self._marks)
        return other

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what runs inside, on the device's own clock."""
        start = self._now()
        yield
        self._marks.append((name, start, self._now()))

    def milliseconds(self) -> dict[str, float]:
        """Time by stage in ms, in order of first use. Waits for the device once."""
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)
        times: dict[str, float] = {}
        for name, start, end in self._marks:
            elapsed = start.elapsed_time(end) if self._device.type == "cuda" else (end - start) * 1000
            times[name] = times.get(name, 0.0) + elapsed
        return times

    def _now(self) -> Any:
        if self._device.type == "cuda":
            import torch

            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            return event
        if self._device.type == "mps":
            import torch

            torch.mps.synchronize()
        return time.perf_counter()


class Stopwatch:
    """Seconds of the host's clock by what they went into; what is measured inside of something else counts twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    @property
    def total_seconds(self) -> float:
        """Since it was made."""
        return time.perf_counter() - self._began

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time of what runs inside, also where it fails."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
