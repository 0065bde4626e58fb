"""JPEG pictures that say in Exif data how they are to be turned, and clips made of such."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tests import clips

ORIENTATION = 0x0112
# what a camera does to the upright picture before it stores it with this number (Exif 2.3, 4.6.4 A)
STORED = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: np.rot90(p, 2),
    4: lambda p: p[::-1],
    5: lambda p: np.rot90(p, 1)[::-1],
    6: lambda p: np.rot90(p, 1),
    7: lambda p: np.rot90(p, 3)[::-1],
    8: lambda p: np.rot90(p, 3),
}


def jpeg(number: int, orientation: int, size: tuple[int, int] = (clips.WIDTH, clips.HEIGHT)) -> bytes:
    """A JPEG file that shows this number upright to whoever turns it."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = orientation
    stored = np.ascontiguousarray(STORED[orientation](clips.draw(number, *size)))
    Image.fromarray(stored).save(file, "JPEG", exif=exif, quality=90)
    return file.getvalue()


def motion_jpeg(path: Path, orientation: int, numbers: Sequence[int]) -> Path:
    """A clip whose packets are such files."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        assert isinstance(stream, av.VideoStream)
        with Image.open(io.BytesIO(jpeg(0, orientation))) as stored:
            stream.width, stream.height = stored.size
        stream.pix_fmt = "yuvj420p"
        for place, number in enumerate(numbers):
            packet = av.Packet(jpeg(number, orientation))
            packet.pts = packet.dts = place
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 10), stream, True
            container.mux(packet)
    return path
