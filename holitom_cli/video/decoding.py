"""Stretches of a clip decoded side by side with PyAV."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import NamedTuple

import av
from av.container import InputContainer
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from holitom_cli.video.interlaced import Surrounded, is_woven, shown_of, surrounded
from holitom_cli.video.opening import frames_of, opened, packets_of
from holitom_cli.video.packets import Table
from holitom_cli.video.plan import Stretch, cores, threads

# Codecs whose decoders skip frames that no other frame refers to without any effect on the others; for HEVC that
# holds where there is one temporal layer: else "no other" means "no other of the same layer".
SKIPPING = {"h264", "hevc", "mpeg2video", "mpeg4"}
HEVC_LAYERS_BYTE = 21  # ISO/IEC 14496-15, 8.3.3.1: bits 3 to 5 of this byte of the decoder configuration record


class Shown(NamedTuple):
    """A frame as RGB, and when it is shown in the stream's time base."""

    pts: int
    picture: VideoFrame
    deinterlaced: bool


class StretchReader:
    """Decodes stretches of one file on all cores; after `read`, `unreached` has the frames that no seek led to."""

    def __init__(self, path: str, table: Table, size: tuple[int, int]) -> None:
        self.unreached: set[int] = set()
        self._path, self._table, self._size = path, table, size

    def read(self, plan: Sequence[Stretch], *, thrifty: bool) -> Iterator[Shown]:
        """Yield the wanted frames that could be decoded, in any order; `thrifty` skips what nothing refers to."""
        self.unreached = set()
        beside, each = threads(len(plan), cores())
        todo: queue.SimpleQueue[Stretch] = queue.SimpleQueue()
        for stretch in plan:
            todo.put(stretch)
        arriving: queue.Queue[Shown | Exception | None] = queue.Queue(beside)  # bounds how many pictures wait
        for _ in range(beside):
            threading.Thread(target=self._work, args=(todo, arriving, each, thrifty), daemon=True).start()
        while beside:
            item = arriving.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                beside -= 1
            else:
                yield item

    def _work(
        self,
        todo: queue.SimpleQueue[Stretch],
        arriving: queue.Queue[Shown | Exception | None],
        thread_count: int,
        thrifty: bool,
    ) -> None:
        """Decode one stretch after another until none is left."""
        try:
            with opened(self._path) as (container, stream), suppress(queue.Empty):
                stream.codec_context.thread_count = thread_count
                while True:
                    skip = thrifty and skips_exactly(stream)
                    for near in self._decode(container, stream, todo.get_nowait(), skip):
                        picture, deinterlaced = shown_of(near, stream)
                        arriving.put(Shown(near[1].pts or 0, rgb(picture, self._size), deinterlaced))
        except Exception as error:
            arriving.put(error)
        arriving.put(None)

    def _decode(
        self, container: InputContainer, stream: VideoStream, stretch: Stretch, thrifty: bool
    ) -> Iterator[Surrounded]:
        """The wanted frames of a stretch that are whole.

        Interlaced ones need their neighbours: where those were not planned for, the next plan has them.
        """
        stream.codec_context.flush_buffers()
        if stretch.start is not None:
            with suppress(av.FFmpegError):  # a container that cannot seek is found out by where its packets stand
                container.seek(stretch.start, stream=stream)
        wanted = set(stretch.wanted)
        frames = frames_of(self._packets(container, stream, stretch, thrifty), stream)
        for near in surrounded(frames, stream):
            frame = near[1]
            if frame.pts in wanted:
                wanted.discard(frame.pts)
                if not frame.is_corrupt and (stretch.beside is not None or not is_woven(frame, stream)):
                    yield near
            if not wanted:
                break

    def _packets(
        self, container: InputContainer, stream: VideoStream, stretch: Stretch, thrifty: bool
    ) -> Iterator[av.Packet[VideoStream]]:
        """The packets of a stretch; none when the seek went past its beginning."""
        wanted, begun = {*stretch.wanted, *(stretch.beside or ())}, False
        for packet in packets_of(container, stream):
            place = self._table.position.get(packet.pts, -1) if packet.pts is not None else -1
            if not begun and place > stretch.first:
                self.unreached |= {*stretch.wanted}
                return
            begun = begun or place == stretch.first
            if not begun:
                continue
            needed = not thrifty or packet.pts in wanted or place == stretch.last
            stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
            yield packet
            if place == stretch.last:
                return


def skips_exactly(stream: VideoStream) -> bool:
    """Whether frames that nothing refers to may be skipped without changing any other."""
    codec, extradata = stream.codec_context.codec.canonical_name, stream.codec_context.extradata or b""
    if codec == "hevc":
        return len(extradata) > HEVC_LAYERS_BYTE and extradata[HEVC_LAYERS_BYTE] >> 3 & 7 == 1
    return codec in SKIPPING


def rgb(frame: VideoFrame, size: tuple[int, int]) -> VideoFrame:
    """The frame at this width and height, in the stored orientation; what is transparent is white."""
    if is_transparent(frame):
        frame = on_white(frame.reformat(width=size[0], height=size[1], format="rgba"))
    return frame.reformat(width=size[0], height=size[1], format="rgb24")


def is_transparent(frame: VideoFrame) -> bool:
    """Whether a frame may have transparent places; the colours there mean nothing, and are mostly black."""
    return frame.format.has_palette or any(component.is_alpha for component in frame.format.components)


def on_white(frame: VideoFrame) -> VideoFrame:
    """An RGBA frame on white paper."""
    graph = Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000))
    paper = graph.add("color", f"white:size={frame.width}x{frame.height}")
    overlay = graph.add("overlay", "format=gbrp")
    paper.link_to(overlay, 0, 0)
    source.link_to(overlay, 0, 1)
    overlay.link_to(graph.add("buffersink"))
    graph.configure()
    frame.pts = 0  # where the paper begins
    graph.vpush(frame)
    graph.vpush(None)
    return graph.vpull()
