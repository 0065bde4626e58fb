"""Small clips whose every frame carries its own number, so that "the right frame" can be read off the pixels.

A picture is a grid of 6 x 4 dark and light blocks: 12 bits of the number, most significant first, in the upper two
rows and their complement in the lower two. A picture that is turned, torn or not ours reads as None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

COLUMNS, ROWS = 6, 4
BITS = COLUMNS * ROWS // 2
WIDTH, HEIGHT = 192, 128  # 32 pixels a block: sharp enough after any lossy codec
Picture = np.ndarray[Any, np.dtype[np.uint8]]  # (H, W, 3)


def draw(number: int, width: int = WIDTH, height: int = HEIGHT) -> Picture:
    """The picture of a frame number, (height, width, 3) uint8, in two greys."""
    bits = [number >> (BITS - 1 - bit) & 1 for bit in range(BITS)]
    cells = np.array(bits + [1 - bit for bit in bits], dtype=np.uint8).reshape(ROWS, COLUMNS)
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    grey = 30 + 190 * cells[rows][:, columns]
    return np.repeat(grey[:, :, None], 3, axis=2).astype(np.uint8)


def number_in(picture: Picture) -> int | None:
    """The number drawn in a picture, or None when the picture is not an upright whole one."""
    height, width = picture.shape[:2]
    centres = np.ix_(
        (np.arange(ROWS) * 2 + 1) * height // (2 * ROWS),
        (np.arange(COLUMNS) * 2 + 1) * width // (2 * COLUMNS),
    )
    cells = (picture[..., 1][centres] > 125).astype(int).ravel()
    bits, complement = cells[:BITS], cells[BITS:]
    return int("".join(map(str, bits)), 2) if np.array_equal(bits, 1 - complement) else None


def numbers_in(pictures: Iterable[Picture]) -> list[int | None]:
    return [number_in(picture) for picture in pictures]


def make(
    path: Path,
    frames: int = 60,
    codec: str = "libx264",
    *,
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    group: int = 12,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    ticks: Sequence[int] | None = None,
    rate: int = 25,
    rotation: int = 0,
    mirrored: bool = False,
    container_options: dict[str, str] | None = None,
    paint: Callable[[int], Picture] | None = None,
    tags: dict[str, int] | None = None,
    threads: int = 1,
    first_field: str = "",
) -> Path:
    """Encode `frames` numbered pictures; `ticks` gives each one's presentation time in milliseconds.

    With `first_field`, top or bottom, frames say that they are interlaced.
    """
    width, height = size
    paint = paint or (lambda number: draw(number, width, height))
    base = Fraction(1, rate) if ticks is None else Fraction(1, 1000)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        assert isinstance(stream, av.VideoStream)
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = width, height, pix_fmt
        context.gop_size, context.thread_count, context.time_base = group, threads, base
        for tag, value in (tags or {}).items():
            setattr(context, tag, value)
        if rotation or mirrored:
            stream.set_display_rotation(rotation, **({"hflip": True} if mirrored else {}))
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(paint(number), format="rgb24")
            picture.pts = number if ticks is None else ticks[number]
            picture.time_base = base
            whole = of_fields(picture.reformat(format=pix_fmt), first_field) if first_field else picture
            container.mux(stream.encode(whole))
        container.mux(stream.encode(None))
    return path


def of_fields(picture: av.VideoFrame, first: str) -> av.VideoFrame:
    """The picture, saying that its lines are those of two fields."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=picture.width, height=picture.height, format=picture.format, time_base=picture.time_base
    )
    graph.link_nodes(source, graph.add("setfield", {"top": "tff", "bottom": "bff"}[first]), graph.add("buffersink"))
    graph.configure()
    graph.vpush(picture)
    return graph.vpull()
