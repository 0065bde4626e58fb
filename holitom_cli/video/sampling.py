"""Which frames of a clip are looked at."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from holitom_cli.sampling import Sampling

if TYPE_CHECKING:
    from holitom_cli.types import FloatArray, VideoInfo

WIDE_GAP_SECONDS = 10.0


class Timeline(NamedTuple):
    """What is known of a clip's frames before one is decoded."""

    seconds: Sequence[float]  # when each frame is shown, from the first frame on
    keys: Sequence[int]  # the numbers of key frames, ascending
    total: int  # frames, with those at the end that the file names and no longer holds


class Picked(NamedTuple):
    """The frames to read, and what has to be said of them."""

    indices: list[int]  # ascending, none twice
    notes: list[str]  # where a wish could not be met as it was
    moved_seconds: float = 0.0  # the furthest that a frame is from where it was asked for, with key frames alone


def pick(sampling: Sampling, clip: Timeline) -> Picked:
    """The frames that this sampling means in this clip; what lies outside the clip is moved to its nearest frame."""
    if sampling.mode == "at":
        return _at(sampling.at_seconds, clip)
    first, last, notes = _range(sampling, clip)
    if sampling.mode == "fps":
        indices = _steady(sampling, clip, first, last)
        most = sampling.max_frames or len(indices)
        if len(indices) > most:
            notes.append(f"{len(indices):,} frames ({sampling.fps:g} a second) are too many: {most} are spread evenly.")
            indices = [indices[place] for place in uniform_indices(len(indices), most)]
        return Picked(indices, notes)
    indices = [first + place for place in uniform_indices(last - first + 1, sampling.count)]
    if len(indices) < sampling.count:
        where = "The range has" if sampling.has_range else "The clip has"
        notes.append(f"{where} only {len(indices)} of the {sampling.count} frames that were asked for.")
    return _to_keys(indices, notes, clip, first, last) if sampling.mode == "keyframes" else Picked(indices, notes)


def most_frames(sampling: Sampling, info: VideoInfo) -> int:
    """How many frames this sampling can give of a clip, from what its container says."""
    most = info.frame_count if info.frame_count > 0 else sampling.count
    if sampling.mode == "at":
        return min(len(set(sampling.at_seconds)), most)
    if sampling.mode != "fps":
        return min(sampling.count, most)
    length = info.duration_seconds
    start, end = (_from_end(bound, length) for bound in (sampling.start_seconds or 0.0, sampling.end_seconds))
    end = length if end is None else min(end, length)
    steady = math.floor(max(0.0, end - max(0.0, start or 0.0) + 1e-9) * (sampling.fps or 0)) + 1
    return min(most, steady, sampling.max_frames or most)


def uniform_indices(total: int, count: int) -> list[int]:
    """Frame numbers, min(count, total) of them, evenly spread, both ends included and rounded down.

    Source: the uniform sampling of LLaVA-OneVision's evaluation, `np.linspace(0, total - 1, count, dtype=int)`; these
    are its steps, without numpy, which no worker waits for.
    """
    count = min(count, total)
    if count < 2:
        return [0] * count
    step = (total - 1) / (count - 1)
    return [*(math.floor(place * step) for place in range(count - 1)), total - 1]


def spacing_warning(seconds: FloatArray) -> str | None:
    """A sentence when two consecutive frames (F,) are so far apart that an event can fall between them."""
    import numpy as np

    widest = float(np.diff(seconds).max(initial=0.0))
    if widest <= WIDE_GAP_SECONDS:
        return None
    return f"Frames are {widest:.1f} s apart, so short events may be missed; raise --num-frames."


def _from_end(bound: float | None, length: float) -> float | None:
    return bound + length if bound is not None and bound < 0 else bound


def _bounds(sampling: Sampling, clip: Timeline) -> tuple[float | None, float | None]:
    """Start and end of the range in seconds from the first frame on; they may lie outside the clip."""
    length = clip.seconds[-1]
    return _from_end(sampling.start_seconds, length), _from_end(sampling.end_seconds, length)


def _shown_at(clip: Timeline, seconds: float) -> int:
    """The number of the frame that is on the screen at a time."""
    return max(0, bisect_right(clip.seconds, seconds + 1e-9) - 1)  # times are sums of rounded numbers


def _range(sampling: Sampling, clip: Timeline) -> tuple[int, int, list[str]]:
    """First and last frame of the range, and what had to be changed about it."""
    if not sampling.has_range:
        return 0, clip.total - 1, []
    length, notes = clip.seconds[-1], []
    start, end = _bounds(sampling, clip)
    for name, bound in (("starts", start), ("ends", end)):
        if bound is not None and not 0 <= bound <= length:
            notes.append(f"The range {name} at {bound:.1f} s, but the clip's frames are from 0.0 to {length:.1f} s.")
    if start is not None and end is not None and end < start:  # known only now: one of them is from the end
        notes.append(f"The range is empty in this clip: it starts at {start:.1f} s and ends at {end:.1f} s.")
    first = 0 if start is None else _shown_at(clip, start)  # it may have been on the screen for a while
    last = clip.total - 1 if end is None else _shown_at(clip, end)
    return min(first, last), last, notes


def _at(wanted: Sequence[float], clip: Timeline) -> Picked:
    length = clip.seconds[-1]
    times = [_from_end(seconds, length) or 0.0 for seconds in wanted]
    notes = [
        f"There is no frame at {seconds:.1f} s: the clip's are from 0.0 to {length:.1f} s, the nearest is taken."
        for seconds in times
        if not 0 <= seconds <= length
    ]
    indices = sorted({_shown_at(clip, seconds) for seconds in times})
    if len(indices) < len(wanted):
        notes.append(f"{len(wanted)} times name {len(indices)} different frames.")
    return Picked(indices, notes)


def _steady(sampling: Sampling, clip: Timeline, first: int, last: int) -> list[int]:
    """The frames shown at a steady rate from one to another: as many steps as frames, whatever the rate.

    Instants count from the start of the range, which may be within the first frame, to its end within the last.
    """
    shown, rate, length = clip.seconds[first : last + 1], sampling.fps or 1.0, clip.seconds[-1]
    start, stop = _bounds(sampling, clip)
    begin = max(shown[0], min(start or 0.0, length))
    end = max(shown[-1], min(stop or 0.0, length))

    def holds_instant(since: float, until: float) -> bool:
        step = max(0, math.ceil((since - begin - 1e-9) * rate))
        return begin + step / rate < until - 1e-9

    frames = zip(shown, [*shown[1:], end + 2e-9], strict=True)  # the last one only where an instant meets it
    return [first + place for place, (since, until) in enumerate(frames) if holds_instant(since, until)]


def _to_keys(indices: list[int], notes: list[str], clip: Timeline, first: int, last: int) -> Picked:
    """Each frame's nearest key frame in time, in the range where it has one."""
    keys = [key for key in clip.keys if first <= key <= last] or list(clip.keys)
    known = [min(index, len(clip.seconds) - 1) for index in indices]
    if not keys:
        return Picked(indices, [*notes, "The clip names no key frame, so frames are where they were asked for."])
    times = [clip.seconds[key] for key in keys]
    moved: dict[int, float] = {}
    for index in known:
        wanted = clip.seconds[index]
        place = bisect_left(times, wanted)
        near = min(keys[max(0, place - 1) : place + 1], key=lambda key: abs(clip.seconds[key] - wanted))
        moved[near] = max(moved.get(near, 0.0), abs(clip.seconds[near] - wanted))
    furthest = max(moved.values())
    notes.append(f"Key frames alone: {len(moved)} of them, up to {furthest:.1f} s from where frames were asked for.")
    return Picked(sorted(moved), notes, furthest)
