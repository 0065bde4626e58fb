"""HEIC pictures, as phones write them: HEVC pictures as the tiles of a larger one, or one by itself.

Boxes: ISO/IEC 14496-12 and 23008-12.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from struct import pack

import av
import numpy as np

from tests import clips


def make(path: Path, picture: clips.Picture, tiles_a_side: int) -> Path:
    """A picture (H, W, 3) of so many times so many tiles; with 1 it is stored whole."""
    height, width = (length // tiles_a_side for length in picture.shape[:2])
    places = [(row * height, column * width) for row in range(tiles_a_side) for column in range(tiles_a_side)]
    coded = [_hevc(picture[top : top + height, left : left + width]) for top, left in places]
    brands = _box(b"ftyp", b"heic", bytes(4), b"mif1heic")
    settings, data = coded[0][0], [packet for _, packet in coded]
    start = len(brands) + len(_meta(settings, data, picture.shape, tiles_a_side, 0)) + 8
    meta = _meta(settings, data, picture.shape, tiles_a_side, start)
    path.write_bytes(brands + meta + _box(b"mdat", *data))
    return path


def _hevc(picture: clips.Picture) -> tuple[bytes, bytes]:
    """The decoder's configuration and the one packet of a picture."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx265", rate=1, options={"x265-params": "log-level=none"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        (packet,) = (*stream.encode(frame), *stream.encode(None))
        packet.pts = packet.dts = 0  # of a single picture x265 says anything, and most of it no file can hold
        container.mux(packet)
    with av.open(io.BytesIO(file.getvalue()), "r") as container:
        packets = b"".join(bytes(packet) for packet in container.demux(video=0) if packet.size)
        return container.streams.video[0].codec_context.extradata or b"", packets


def _meta(settings: bytes, data: Sequence[bytes], shape: Sequence[int], tiles_a_side: int, start: int) -> bytes:
    """What the items are, where they stand from `start` on, and how they make a picture."""
    height, width = shape[:2]
    tiles = range(1, len(data) + 1)
    grid = len(data) + 1 if len(data) > 1 else None
    kinds = [_full(b"infe", 2, pack(">HH4sB", tile, 0, b"hvc1", 0)) for tile in tiles]
    places = [
        pack(">4H2I", tile, 0, 0, 1, start + sum(map(len, data[: tile - 1])), len(data[tile - 1])) for tile in tiles
    ]
    belongs = [pack(">HBBB", tile, 2, 0x81, 2) for tile in tiles]
    if grid:
        kinds.append(_full(b"infe", 2, pack(">HH4sB", grid, 0, b"grid", 0)))
        places.append(pack(">4H2I", grid, 1, 0, 1, 0, 8))
        belongs.append(pack(">HBB", grid, 1, 3))
    sizes = [(width // tiles_a_side, height // tiles_a_side), (width, height)]
    properties = _box(b"ipco", _box(b"hvcC", settings), *(_full(b"ispe", 0, pack(">II", *size)) for size in sizes))
    return _full(
        b"meta",
        0,
        _full(b"hdlr", 0, bytes(4), b"pict", bytes(13)),
        _full(b"pitm", 0, pack(">H", grid or 1)),
        _full(b"iinf", 0, pack(">H", len(kinds)), *kinds),
        _full(b"iloc", 1, b"\x44\0", pack(">H", len(places)), *places),
        _full(b"iref", 0, _box(b"dimg", pack(f">{2 + len(data)}H", grid, len(data), *tiles))) if grid else b"",
        _box(b"iprp", properties, _full(b"ipma", 0, pack(">I", len(belongs)), *belongs)),
        _box(b"idat", pack(">4B2H", 0, 0, tiles_a_side - 1, tiles_a_side - 1, width, height)) if grid else b"",
    )


def _box(name: bytes, *content: bytes) -> bytes:
    whole = b"".join(content)
    return pack(">I4s", 8 + len(whole), name) + whole


def _full(name: bytes, version: int, *content: bytes) -> bytes:
    return _box(name, pack(">B3x", version), *content)
