"""A folder of pictures read as a clip that shows one a second, in the order of their names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import av
from av.video.frame import VideoFrame

from holitom_cli.errors import VideoError
from holitom_cli.types import Sampling
from holitom_cli.video.av_reader import picture_of
from holitom_cli.video.decoding import rgb
from holitom_cli.video.files import shown
from holitom_cli.video.opening import MOST_PIXELS, ONLY
from holitom_cli.video.sampling import Timeline, pick
from holitom_cli.video.worker import Picture

ENDINGS = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
# By their first bytes. FFmpeg left to guess prefers image2 for most JPEG files and for any name with "*", "?" or "%d",
# and that one, which opens what a name stands for, is not among the formats that are let in.
FORMATS = {
    b"\xff\xd8\xff": "jpeg_pipe",
    b"\x89PNG": "png_pipe",
    b"BM": "bmp_pipe",
    b"II*\0": "tiff_pipe",
    b"MM\0*": "tiff_pipe",
    b"RIFF": "webp_pipe",
}
ORIENTATION = 0x0112  # Exif 2.3, 4.6.4 A: how a picture is to be turned (degrees, clockwise) once it has been mirrored
TURNS = {2: (0, True), 3: (180, False), 4: (180, True), 5: (270, True), 6: (90, False), 7: (90, True), 8: (270, False)}


class Pictures:
    """The pictures of one folder; as `Clip` to those who ask."""

    def __init__(self, folder: str) -> None:
        self.path = folder

    def probe(self) -> dict[str, Any]:
        """The fields of VideoInfo, as plain values."""
        rotation, mirrored = orientation(self._files[0])
        size = self._first.width, self._first.height
        width, height = size if rotation % 180 == 0 else size[::-1]
        return {
            "path": self.path,
            "container": "folder",
            "codec": "pictures",
            "width": width,
            "height": height,
            "rotation": rotation,
            "duration_seconds": float(len(self._files)),
            "frame_count": len(self._files),
            "frames_per_second": 1.0,
            "size_bytes": sum(file.stat().st_size for file in self._files),
            "mirrored": mirrored,
        }

    def plan(self, sampling: Sampling) -> dict[str, Any]:
        """The pictures that a sampling picks, when they are shown, and what is to be said."""
        seconds = [float(number) for number in range(len(self._files))]
        picked = pick(sampling, Timeline(seconds, range(len(seconds)), len(seconds)))
        return {
            **picked._asdict(),
            "seconds": [seconds[index] for index in picked.indices],
            "notes": [*picked.notes, "Pictures have no times: one a second is assumed."],
            "cut_off": False,
            "ends_early": None,
            "decoder": "av",
            "decoder_reason": "reads one picture after another",
            "objection": "decord reads no pictures",
        }

    def read(self, indices: Sequence[int]) -> Iterator[Picture]:
        """Yield those of the pictures with these numbers that can be read and are turned as the first one."""
        size, turned = (self._first.width, self._first.height), orientation(self._files[0])
        for slot, index in enumerate(indices):
            frame = decoded(self._files[index])
            if frame is not None and orientation(self._files[index]) == turned:
                yield picture_of(rgb(frame, size), slot)

    @cached_property
    def _files(self) -> list[Path]:
        files = [file for file in Path(self.path).iterdir() if is_picture(file)]
        if not files:
            raise VideoError(
                f"{shown(self.path)} is a folder without pictures.",
                "Name one video file in it, or use holitom batch for all of them.",
            )
        return sorted(files, key=natural)

    @cached_property
    def _first(self) -> VideoFrame:
        frame = decoded(self._files[0])
        if frame is None:
            raise VideoError(f"{shown(self._files[0])} is no picture that can be read.", "Take it out of the folder.")
        return frame


def is_picture(file: Path) -> bool:
    """Whether a folder's file is one of its pictures; hidden ones (a Mac's "._1.jpg") are not."""
    return file.suffix.lower() in ENDINGS and not file.name.startswith(".") and file.is_file()


def natural(file: Path) -> list[tuple[int, str]]:
    """An order in which picture 9 comes before picture 10."""
    return [(int(digits or 0), text) for digits, text in re.findall(r"(\d+)|(\D+)", file.name)]


def decoded(file: Path) -> VideoFrame | None:
    """The picture in a file, None where there is none."""
    try:
        with av.open(f"file:{file}", format=format_of(file), container_options=ONLY) as container:
            container.streams.video[0].codec_context.options = {"max_pixels": str(MOST_PIXELS)}
            return next(container.decode(video=0), None)
    except (av.FFmpegError, OSError, ValueError, IndexError):
        return None


def orientation(file: Path) -> tuple[int, bool]:
    """Degrees by which a picture is to be turned clockwise, after it has been mirrored or not.

    By Pillow: av 18.1 fails to list what belongs to a frame where Exif data is part of it.
    """
    from PIL import Image  # no clip that is a file waits for it

    with warnings.catch_warnings(), suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        warnings.simplefilter("ignore")  # of many pixels, which are limited before, and of odd Exif data
        with Image.open(file) as picture:
            return TURNS.get(picture.getexif().get(ORIENTATION, 1), (0, False))
    return 0, False


def format_of(file: Path) -> str | None:
    """FFmpeg's name for a picture's format, None where its first bytes are of none of them."""
    with file.open("rb") as opened:
        head = opened.read(4)
    return next((name for mark, name in FORMATS.items() if head.startswith(mark)), None)
