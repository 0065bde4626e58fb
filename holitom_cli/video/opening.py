"""A file opened with PyAV: its moving pictures, their packets, the frames that decoding brings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from holitom_cli.errors import VideoError
from holitom_cli.video.files import shown

# FFmpeg's demuxers that read nothing but the file they are given. Others (hls, dash, concat, image2, sdp, ...) open
# what a file names. The second line is there to say what a file is instead of a video.
FORMATS = (
    "mov,matroska,avi,flv,mpegts,mpeg,mpegvideo,asf,ogg,gif,mxf,nut,rm,ivf,dv,wtv,h264,hevc,av1,obu,m4v,mjpeg,vc1,apng,"
    "yuv4mpegpipe,wav,mp3,flac,aac,png_pipe,jpeg_pipe,webp_pipe,webp,bmp_pipe,tiff_pipe"
)
ONLY = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<MPD", b"<SmoothStreamingMedia", b"[playlist]")
HEAD_BYTES = 1024
MOST_PIXELS = (
    100_000_000  # of a picture; the largest cameras have 80 million, and a file of nothing can claim 4 billion
)


@contextmanager
def opened(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its first stream of moving pictures; raises VideoError when there is none.

    "file:" and the whitelists keep a path from ever being taken for, or leading to, a network address or another file.
    """
    try:
        container = av.open(f"file:{path}", container_options=ONLY, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        if is_playlist(path):
            raise VideoError(
                f"{shown(path)} is a playlist: it points at other files, and those are not read.",
                "Give the video file itself.",
            ) from error
        raise VideoError(
            f"{shown(path)} is not a video that can be read.",
            "It may be cut off, damaged or another kind of file: try to play it or copy it again.",
        ) from error
    with container:
        yield container, moving_pictures(path, container)


def moving_pictures(path: str, container: InputContainer) -> VideoStream:
    """The first video stream that is no cover picture, nor a single one where another has more."""
    # An animated AVIF has a still picture before its frames; parts of something stand behind what is whole.
    order = sorted(container.streams.video, key=lambda stream: (is_part(stream), stream.frames == 1))
    for stream in order:
        if not stream.disposition & Disposition.attached_pic:
            if is_part(stream):
                raise VideoError(
                    f"{shown(path)} is a picture in tiles, and those are not put together here.",
                    "Save it as JPEG or PNG.",
                )
            if stream.codec_context is None:
                raise VideoError(
                    f"{shown(path)} is in a format that this FFmpeg cannot decode.", "Convert it to H.264."
                )
            check_size(path, stream.codec_context.width, stream.codec_context.height)
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}  # where frames are larger than announced
            return stream
    what = "has sound but no moving pictures" if container.streams.audio else "holds no video"
    raise VideoError(f"{shown(path)} {what}.", "Give a file with a video stream.")


def is_part(stream: VideoStream) -> bool:
    """Whether a stream shows nothing by itself: a tile of a HEIC picture (ISO/IEC 23008-12, 6.6.2.3), for one."""
    return bool(stream.disposition & Disposition.dependent)


def check_size(path: str, width: int, height: int) -> None:
    """Raise VideoError for pictures that would take more memory than a clip can be worth."""
    if width * height > MOST_PIXELS:
        raise VideoError(
            f"{shown(path)} has pictures of {width:,} x {height:,} pixels; {MOST_PIXELS // 10**6} million is the most.",
            "Make them smaller: ffmpeg -i IN -vf scale=1280:-2 OUT.mp4",
        )


def is_playlist(path: str) -> bool:
    """Whether a file that cannot be opened is a list of other files, as far as its beginning tells."""
    with suppress(OSError), Path(path).open("rb") as file:
        head = file.read(HEAD_BYTES)
        return any(mark in head for mark in PLAYLISTS)
    return False


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
