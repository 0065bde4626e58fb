"""Interlaced video: the lines of a frame are two fields, a moment apart, which show moving edges as combs.

libavfilter's bwdif makes one picture of them, and looks at the frames before and after to leave alone what stands
still. It is used only on frames that say that they are interlaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

from av.filter import Graph

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

WITH_NEIGHBOURS = ("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
_TICK = Fraction(1, 1000)  # frames keep their own times: the filter only needs some unit
ALONE = ("estdif", "mode=frame:parity=auto:deint=interlaced")  # of a frame by itself, bwdif would leave the combs
Surrounded = tuple["VideoFrame | None", "VideoFrame", "VideoFrame | None"]  # a frame, those before and after it


def is_woven(frame: VideoFrame, stream: VideoStream) -> bool:
    """Whether a frame has the lines of two fields. In HEVC one that says so is a single field: H.265, table D.2."""
    return frame.interlaced_frame and stream.codec_context.codec.canonical_name != "hevc"


def surrounded(frames: Iterator[VideoFrame], stream: VideoStream) -> Iterator[Surrounded]:
    """Each frame between the ones before and after it; those are None where they are not there or not needed."""
    before, frame = None, next(frames, None)
    while frame is not None:
        after = next(frames, None) if is_woven(frame, stream) else None
        yield before, frame, after
        before, frame = frame, after or next(frames, None)


def shown_of(near: Surrounded, stream: VideoStream) -> tuple[VideoFrame, bool]:
    """The picture of the frame in the middle, and whether it had to be made of two fields."""
    woven = is_woven(near[1], stream)
    return (_deinterlaced(*near) if woven else near[1]), woven


def _deinterlaced(before: VideoFrame | None, frame: VideoFrame, after: VideoFrame | None) -> VideoFrame:
    """The fields of a frame as one picture, at the time of its first field."""
    graph, near = Graph(), _around(before, frame, after)
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=_TICK)
    graph.link_nodes(source, graph.add(*(WITH_NEIGHBOURS if len(near) > 1 else ALONE)), graph.add("buffersink"))
    graph.configure()
    for other in (*near, None):  # None flushes
        graph.vpush(other)
    return [graph.vpull() for _ in near][len(near) // 2]


def _around(before: VideoFrame | None, frame: VideoFrame, after: VideoFrame | None) -> list[VideoFrame]:
    """The frame between its neighbours, one of them twice where the other is missing; by itself where both are."""
    kind = (frame.width, frame.height, frame.format.name)
    sound = [
        other if other and (other.width, other.height, other.format.name) == kind and not other.is_corrupt else None
        for other in (before, after)
    ]
    first, last = sound[0] or sound[1], sound[1] or sound[0]
    return [first, frame, last] if first and last else [frame]
