"""A folder of pictures read as a clip that shows one a second, in the order of their names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import av
from av.video.frame import VideoFrame

from holitom_cli.errors import VideoError
from holitom_cli.types import Sampling
from holitom_cli.video.av_reader import orientation, picture_of
from holitom_cli.video.decoding import rgb
from holitom_cli.video.files import shown
from holitom_cli.video.opening import MOST_PIXELS, ONLY
from holitom_cli.video.sampling import Timeline, pick
from holitom_cli.video.worker import Picture

ENDINGS = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


class Pictures:
    """The pictures of one folder; as `Clip` to those who ask."""

    def __init__(self, folder: str) -> None:
        self.path = folder

    def probe(self) -> dict[str, Any]:
        """The fields of VideoInfo, as plain values."""
        rotation, mirrored = orientation(self._first)
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
        size, turned = (self._first.width, self._first.height), orientation(self._first)
        for slot, index in enumerate(indices):
            frame = decoded(self._files[index])
            if frame is not None and orientation(frame) == turned:
                yield picture_of(rgb(frame, size), slot)

    @cached_property
    def _files(self) -> list[Path]:
        files = [file for file in Path(self.path).iterdir() if file.suffix.lower() in ENDINGS and file.is_file()]
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


def natural(file: Path) -> list[tuple[int, str]]:
    """An order in which picture 9 comes before picture 10."""
    return [(int(digits or 0), text) for digits, text in re.findall(r"(\d+)|(\D+)", file.name)]


def decoded(file: Path) -> VideoFrame | None:
    """The picture in a file, None where there is none."""
    try:
        with av.open(f"file:{file}", container_options=ONLY) as container:
            container.streams.video[0].codec_context.options = {"max_pixels": str(MOST_PIXELS)}
            return next(container.decode(video=0), None)
    except (av.FFmpegError, ValueError, IndexError):
        return None
