"""Which frames are looked at: the one value that a decoder knows, apart from the others since it starts sooner so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from holitom_cli.errors import UsageError

DEFAULT_FRAMES = 32
MOST_FPS = 1_000_000  # more than any clip has, and far from what overflows


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which frames of a clip are looked at: so many evenly spread ones, unless it says otherwise.

    Times are seconds from the clip's first frame; negative ones count from its last frame.
    """

    num_frames: int | None = None  # evenly spread; None is 32
    fps: float | None = None  # frames a second of the clip, instead
    max_frames: int | None = None  # with fps: evenly spread ones where there would be more
    start_seconds: float | None = None  # of the range that frames are taken from
    end_seconds: float | None = None
    at_seconds: tuple[float, ...] = ()  # the frames shown at these times, instead
    keyframes: bool = False  # the key frames nearest to evenly spread ones, instead

    def __post_init__(self) -> None:
        _check_sampling(self)

    @property
    def mode(self) -> Literal["uniform", "fps", "at", "keyframes"]:
        if self.at_seconds:
            return "at"
        if self.fps is not None:
            return "fps"
        return "keyframes" if self.keyframes else "uniform"

    @property
    def count(self) -> int:
        """How many frames are asked for, where a number is."""
        return DEFAULT_FRAMES if self.num_frames is None else self.num_frames

    @property
    def has_range(self) -> bool:
        return self.start_seconds is not None or self.end_seconds is not None


def _check_sampling(sampling: Sampling) -> None:
    """Raise UsageError for numbers that mean no frames, and for wishes that exclude each other."""
    for name, number in (("num-frames", sampling.num_frames), ("max-frames", sampling.max_frames)):
        if number is not None and number < 1:
            raise UsageError(f"{number} frames were asked for.", f"Use --{name} 1 or more.")
    if sampling.fps is not None and not 0 < sampling.fps <= MOST_FPS:
        hint = f"Use --fps with a number above 0, at most {MOST_FPS:,}."
        raise UsageError(f"{sampling.fps:g} frames a second cannot be taken.", hint)
    for bound in (sampling.start_seconds, sampling.end_seconds, *sampling.at_seconds):
        if bound is not None and not math.isfinite(bound):
            raise UsageError(f"{bound} is no time in a clip.", "Give seconds, or minutes as in 1:30.")
    start, end = sampling.start_seconds, sampling.end_seconds
    if start is not None and end is not None and start >= end and (start < 0) == (end < 0):
        raise UsageError(f"The range from {start:g} s to {end:g} s is empty.", "Give a --start before the --end.")
    ways = [way for way, asked in _ways(sampling).items() if asked]
    if len(ways) > 1:
        raise UsageError(f"{' and '.join(ways)} exclude each other.", "Choose one way of sampling.")
    if sampling.max_frames is not None and sampling.fps is None:
        raise UsageError("--max-frames limits what --fps gives.", "Use --num-frames for a number of frames.")
    if sampling.at_seconds and sampling.has_range:
        raise UsageError("--frames-at names the frames, so a range has no effect.", "Leave --start and --end out.")


def _ways(sampling: Sampling) -> dict[str, bool]:
    return {
        "--frames-at": bool(sampling.at_seconds),
        "--fps": sampling.fps is not None,
        "--sampling keyframes": sampling.keyframes,
        "--num-frames": sampling.num_frames is not None and not sampling.keyframes,
    }
