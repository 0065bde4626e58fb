"""Animated WebP, through Pillow: its own decoder is the only one here that puts the parts of such pictures together.

The file's chunks tell when each frame is shown and how large the canvas is, before anything is decoded. Layout: RFC
9649, section 2.7.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from holitom_cli.errors import VideoError
from holitom_cli.sampling import Sampling
from holitom_cli.video.files import shown
from holitom_cli.video.opening import check_size
from holitom_cli.video.sampling import Timeline, pick
from holitom_cli.video.worker import Picture

if TYPE_CHECKING:
    from PIL.Image import Image

HEAD_BYTES = 30  # RIFF, size, WEBP, and the whole VP8X chunk
ANIMATED, ALPHA = 0x02, 0x10  # of the flags in VP8X
DURATION_AT = 12  # in a frame's chunk, three bytes of milliseconds
WHITE = (255, 255, 255)  # behind what is transparent, as in a GIF


class Contents(NamedTuple):
    """What the chunks of a file say."""

    width: int
    height: int
    durations_ms: list[int]  # of every whole frame
    whole_bytes: int  # up to the end of the last whole chunk
    cut_off: bool


class Animation:
    """An animated WebP; as `Clip` to those who ask."""

    def __init__(self, path: str) -> None:
        self.path = path

    def probe(self) -> dict[str, Any]:
        """The fields of VideoInfo, as plain values."""
        contents = self._contents
        count, seconds = len(contents.durations_ms), sum(contents.durations_ms) / 1000
        return {
            "path": self.path,
            "container": "webp",
            "codec": "webp",
            "width": contents.width,
            "height": contents.height,
            "rotation": 0,
            "duration_seconds": seconds,
            "frame_count": count,
            "frames_per_second": count / seconds if seconds else 0.0,
            "size_bytes": Path(self.path).stat().st_size,
        }

    def plan(self, sampling: Sampling) -> dict[str, Any]:
        """The frames that a sampling picks, when they are shown, and what is to be said."""
        durations, cut_off = self._contents.durations_ms, self._contents.cut_off
        seconds = [start / 1000 for start in accumulate(durations[:-1], initial=0)]
        picked = pick(sampling, Timeline(seconds, [], len(seconds)))  # decoding starts at the first frame always
        return {
            **picked._asdict(),
            "seconds": [seconds[index] for index in picked.indices],
            "cut_off": cut_off,
            "ends_early": "The file ends inside a frame; it seems cut off." if cut_off else None,
            "decoder": "pillow",
            "decoder_reason": "the only one that reads animated WebP",
            "objection": "decord reads no WebP",
        }

    def read(self, indices: Sequence[int]) -> Iterator[Picture]:
        """Yield those of the frames with these ascending numbers that can be read."""
        contents = self._contents
        with _image(_whole(self.path, contents.whole_bytes)) as image:
            if getattr(image, "n_frames", 1) != len(contents.durations_ms):
                raise ValueError("it counts other frames than the file's chunks do")
            for slot, index in enumerate(indices):
                try:
                    image.seek(index)
                    rgb = _on_white(image)
                except (EOFError, OSError):  # a damaged frame: those behind it are drawn over it
                    return
                yield Picture(slot, rgb, contents.height, contents.width, contents.width * 3)

    @cached_property
    def _contents(self) -> Contents:
        with Path(self.path).open("rb") as file:
            contents = contents_of(file, Path(self.path).stat().st_size)
        check_size(self.path, contents.width, contents.height)
        if not contents.durations_ms:
            raise VideoError(f"{shown(self.path)} holds no whole frame.", "The file seems cut off: copy it again.")
        return contents


def is_animation(path: str) -> bool:
    """Whether a file is a WebP that moves, whatever its name says."""
    with Path(path).open("rb") as file:
        head = file.read(HEAD_BYTES)
    return len(head) == HEAD_BYTES and head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and bool(head[20] & ANIMATED)


def contents_of(file: BinaryIO, size: int) -> Contents:
    """Walk over the chunks of an animated WebP of so many bytes; none of the pictures is read."""
    head = file.read(HEAD_BYTES)
    width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
    durations: list[int] = []
    place = 12
    end = min(size, 8 + int.from_bytes(head[4:8], "little"))
    while place + 8 <= end:
        file.seek(place)
        chunk = file.read(8 + DURATION_AT + 3)
        after = place + 8 + int.from_bytes(chunk[4:8], "little")
        if after > end:
            return Contents(width, height, durations, place, cut_off=True)
        if chunk[:4] == b"ANMF":
            durations.append(int.from_bytes(chunk[8 + DURATION_AT :], "little"))
        place = after + after % 2  # chunks begin at even places
    whole = min(place, end)
    return Contents(width, height, durations, whole, cut_off=end < 8 + int.from_bytes(head[4:8], "little"))


def _whole(path: str, size: int) -> io.BytesIO:
    """The file up to the end of its last whole chunk; its header says no more.

    It does say that pictures may be transparent: places that no frame covers are, also where it was not said.
    """
    with Path(path).open("rb") as file:
        content = bytearray(file.read(size))
    content[4:8] = (len(content) - 8).to_bytes(4, "little")
    content[20] |= ALPHA
    return io.BytesIO(content)


def _image(file: io.BytesIO) -> Image:
    from PIL import Image, features

    if not features.check("webp"):
        raise VideoError("This Pillow cannot read WebP.", "Install one that can: pip install --force-reinstall pillow")
    return Image.open(file, formats=["WEBP"])


def _on_white(image: Image) -> bytes:
    from PIL import Image

    paper = Image.new("RGB", image.size, WHITE)
    paper.paste(image, mask=image.getchannel("A"))
    return paper.tobytes()
