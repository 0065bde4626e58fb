"""Pictures read as a clip: one by itself, or those of a folder, one a second in the order of their names."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.video.frame import VideoFrame

from holitom_cli.errors import VideoError
from holitom_cli.sampling import Sampling
from holitom_cli.video.av_reader import picture_of
from holitom_cli.video.decoding import rgb
from holitom_cli.video.files import shown
from holitom_cli.video.opening import MOST_PIXELS, ONLY, check_size
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
MULTIPLE, JPEG_HEAD_BYTES = b"MPF\0", 1 << 17
FOLDER_NOTE = "Pictures have no times: one a second is assumed."
PROBE_BYTES = 1 << 20  # of which FFmpeg judges formats (PROBE_BUF_MAX)
ALONE_NOTE = "The file is a picture: there is one frame."
ORIENTATION = 0x0112  # Exif 2.3, 4.6.4 A: how a picture is to be turned (degrees, clockwise) once it has been mirrored
TURNS = {2: (0, True), 3: (180, False), 4: (180, True), 5: (270, True), 6: (90, False), 7: (90, True), 8: (270, False)}


class Pictures:
    """One picture, or those of a folder; as `Clip` to those who ask."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._alone = not Path(path).is_dir()

    def probe(self) -> dict[str, Any]:
        """The fields of VideoInfo, as plain values."""
        width, height = self._size
        rotation, mirrored = orientation(self._files[0])
        return {
            "path": self.path,
            "container": "picture" if self._alone else "folder",
            "codec": (format_of(self._files[0]) or "").removesuffix("_pipe") if self._alone else "pictures",
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
            "notes": [*picked.notes, ALONE_NOTE if self._alone else FOLDER_NOTE],
            "cut_off": False,
            "ends_early": None,
            "decoder": "av",
            "decoder_reason": "reads one picture after another",
            "objection": "decord reads no pictures",
        }

    def read(self, indices: Sequence[int]) -> Iterator[Picture]:
        """Yield those of the pictures with these numbers that can be read, each turned as it says itself."""
        for slot, index in enumerate(indices):
            frame, turned = decoded(self._files[index]), orientation(self._files[index])
            if frame is not None:
                yield picture_of(rgb(frame, sides(self._size, turned[0])), slot, turned)

    @cached_property
    def _size(self) -> tuple[int, int]:
        """Width and height of the first picture once it is upright; the others are scaled to it."""
        return sides((self._first.width, self._first.height), orientation(self._files[0])[0])

    @cached_property
    def _files(self) -> list[Path]:
        if self._alone:
            return [Path(self.path)]
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
            check_announced_size(self._files[0])
            hint = "The file seems damaged: copy it again." if self._alone else "Take it out of the folder."
            raise VideoError(f"{shown(self._files[0])} is no picture that can be read.", hint)
        return frame


def sides(size: tuple[int, int], rotation: int) -> tuple[int, int]:
    """Width and height of a picture that is turned by so many degrees."""
    return size if rotation % 180 == 0 else size[::-1]


def is_still(path: str) -> bool:
    """Whether a file is one picture, which does not move, whatever its name says.

    FFmpeg tells them from animated PNG and from motion JPEG. Cameras put a preview, a depth map or the other eye's
    view behind a JPEG picture, and say so (CIPA DC-007, 5.2.1: the mark of the multi-picture format).
    """
    if format_of(Path(path)) is None:
        return False
    with Path(path).open("rb") as file:
        head = file.read(PROBE_BYTES)
    with suppress(av.FFmpegError, ValueError), av.open(io.BytesIO(head), container_options=ONLY) as container:
        kind = container.format.name  # judged without a file's name
        return kind.endswith("_pipe") or (kind == "mjpeg" and MULTIPLE in head[:JPEG_HEAD_BYTES])
    return True  # damaged, or with something else behind it: phones put a film there


def is_picture(file: Path) -> bool:
    """Whether a folder's file is one of its pictures; hidden ones (a Mac's "._1.jpg") are not."""
    return file.suffix.lower() in ENDINGS and not file.name.startswith(".") and file.is_file()


def natural(file: Path) -> list[tuple[int, str]]:
    """An order in which picture 9 comes before picture 10."""
    return [(int(digits or 0), text) for digits, text in re.findall(r"(\d+)|(\D+)", file.name)]


def decoded(file: Path) -> VideoFrame | None:
    """The picture in a file, None where there is none."""
    try:
        with _opened(file) as container:
            container.streams.video[0].codec_context.options = {"max_pixels": str(MOST_PIXELS)}
            return next(container.decode(video=0), None)
    except (av.FFmpegError, OSError, ValueError, IndexError):
        return None


def check_announced_size(file: Path) -> None:
    """Raise VideoError for a picture that says that it is too large."""
    with suppress(av.FFmpegError, OSError, ValueError, IndexError), _opened(file) as container:
        context = container.streams.video[0].codec_context
        check_size(str(file), context.width, context.height)


def _opened(file: Path) -> InputContainer:
    return av.open(f"file:{file}", format=format_of(file), container_options=ONLY)


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
        head = opened.read(12)
    if head.startswith(b"RIFF") and not head.endswith(b"WEBP"):
        return None  # sound, or AVI
    return next((name for mark, name in FORMATS.items() if head.startswith(mark)), None)
