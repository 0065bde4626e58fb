"""The words of a clip: subtitles of its own, or those in a file beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import av

from holitom_cli.errors import VideoError
from holitom_cli.video.files import shown
from holitom_cli.video.opening import ONLY

FORMATS = "srt,ass,webvtt"  # besides those of clips
STYLE = re.compile(r"\{[^}]*\}|<[^>]*>")  # overrides of ASS, to which FFmpeg turns every format, and tags


def lines(path: str) -> list[tuple[float, float, str]]:
    """Seconds from and to which each line is shown, and its words; raises VideoError where they cannot be read."""
    formats = f"{ONLY['format_whitelist']},{FORMATS}"
    try:
        with av.open(f"file:{path}", container_options={**ONLY, "format_whitelist": formats}) as container:
            return sorted(_read(container))
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(f"The subtitles of {shown(path)} cannot be read.", "Convert them to SRT in UTF-8.") from error


def _read(container: av.container.InputContainer) -> Iterator[tuple[float, float, str]]:
    stream = next(iter(container.streams.subtitles), None)
    if stream is None:
        return
    begin = (container.start_time or 0) / av.time_base if container.streams.video else 0.0
    for packet in container.demux(stream):
        for part in packet.decode() if packet.size and packet.pts is not None else ():
            text = getattr(part, "dialogue", b"").decode(errors="replace")  # subtitles that are pictures have none
            words = " ".join(STYLE.sub("", text).split())
            if words:
                start = float((packet.pts or 0) * packet.time_base) - begin
                yield start, start + float((packet.duration or 0) * packet.time_base), words
