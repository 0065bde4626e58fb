"""A file opened with PyAV: its moving pictures, their packets, the frames that decoding brings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from holitom_cli.errors import VideoError
from holitom_cli.video.files import shown

NOT_VIDEOS = {"image2", "tty"}  # demuxers that make a "video" of a picture or a text


@contextmanager
def opened(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its first stream of moving pictures; raises VideoError when there is none.

    "file:" and the whitelist keep a path from ever being taken for, or leading to, a network address.
    """
    try:
        container = av.open(f"file:{path}", container_options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(
            f"{shown(path)} is not a video that can be read.",
            "It may be cut off, damaged or another kind of file: try to play it or copy it again.",
        ) from error
    with container:
        yield container, moving_pictures(path, container)


def moving_pictures(path: str, container: InputContainer) -> VideoStream:
    """The first video stream that is no cover picture."""
    kind = container.format.name
    if kind in NOT_VIDEOS or kind.endswith("_pipe"):
        what = f"is not a video but a {kind.removesuffix('_pipe')} file"
        raise VideoError(f"{shown(path)} {what}.", "Give a file with a video stream.")
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise VideoError(
                    f"{shown(path)} is in a format that this FFmpeg cannot decode.", "Convert it to H.264."
                )
            stream.thread_type = "AUTO"
            return stream
    what = "has sound but no moving pictures" if container.streams.audio else "holds no video"
    raise VideoError(f"{shown(path)} {what}.", "Give a file with a video stream.")


def packets_of(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet[VideoStream]]:
    """The stream's packets until the file ends, or ends being readable."""
    try:
        for packet in container.demux(stream):
            if packet.size:  # the last one is empty and only flushes
                yield packet
    except av.FFmpegError:
        return


def frames_of(packets: Iterable[av.Packet[VideoStream]], stream: VideoStream) -> Iterator[VideoFrame]:
    """Decoded frames, without those that follow a rejected packet up to the next key frame.

    They would be drawn from what the decoder puts in the lost frame's place: a neighbour, as a rule.
    """
    doubtful = False
    for packet in chain(packets, (None,)):  # None flushes
        try:
            for frame in stream.decode(packet):
                doubtful = doubtful and not frame.key_frame
                if not doubtful:
                    yield frame
        except av.FFmpegError:
            doubtful = True
