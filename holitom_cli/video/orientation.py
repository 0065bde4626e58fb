"""How a decoded frame is to be turned."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from av.filter import Graph
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame

KINDS = 64  # numbers that FFmpeg gives what may belong to a frame; it has come to 32 (8.1)


def orientation(frame: VideoFrame) -> tuple[int, bool]:
    """How to make a stored picture upright: the clockwise turn in degrees, and whether to flip it left to right before.

    A display matrix starts with a, b, _, c, d, ... and shows (x, y) at (a x + c y, b x + d y), y pointing down
    (ISO/IEC 14496-12, 6.2.2). A flip before it changes the signs of a and b.
    """
    matrix: Any = _listable(frame).side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0, False
    a, b, _, c, d = memoryview(bytes(matrix)).cast("i")[:5]
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    return round(math.degrees(math.atan2(b, a)) / 90) % 4 * 90, mirrored


def _listable(frame: VideoFrame) -> VideoFrame:
    """The frame without what av 18.1 has no name for, as it fails to list what belongs to a frame that has such.

    Exif data of a JPEG picture is one, what belongs to stereo video another.
    """
    try:
        len(frame.side_data)
    except ValueError:
        known: set[Any] = {kind.value for kind in Type}
        graph = Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
        )
        unknown = [number for number in range(KINDS) if number not in known]
        without = [graph.add("sidedata", f"mode=delete:type={number}") for number in unknown]
        graph.link_nodes(source, *without, graph.add("buffersink"))
        graph.configure()
        graph.vpush(frame)
        return graph.vpull()
    return frame
