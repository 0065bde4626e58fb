"""Probing and exact decoding with PyAV."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from holitom_cli.errors import VideoError
from holitom_cli.video.files import shown
from holitom_cli.video.packets import Packet, Table, starts_closed_group
from holitom_cli.video.routing import objection_to_decord
from holitom_cli.video.worker import Picture

SILENT_PACKETS = {"vp8"}  # its packets may show nothing (alternate reference frames): count by decoding
EARLY_END_SECONDS = 1.0  # the last frame is shown for a while, and clocks are rounded
EARLIER_START_SECONDS = 2.0
UNTIMED = {"avi"}  # stores no presentation times, and FFmpeg's guesses are out of order with B-frames: likewise
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


def frames_of(packets: Iterator[av.Packet[VideoStream]], stream: VideoStream) -> Iterator[VideoFrame]:
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


class Clip:
    """A file that is probed and then read, opened anew for every pass: some containers cannot rewind."""

    def __init__(self, path: str) -> None:
        self.path = path

    def probe(self) -> dict[str, Any]:
        """The fields of VideoInfo, as plain values."""
        with opened(self.path) as (container, stream):
            first = next(frames_of(packets_of(container, stream), stream), None)
            if first is None:
                raise VideoError(
                    f"No frame of {shown(self.path)} can be decoded.", "The file seems damaged: copy it again."
                )
            rotation = round(-first.rotation / 90) % 4 * 90  # the container counts counter-clockwise
            width, height = first.width, first.height
            count = indexed_count(container, stream) or self._total
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            return {
                "path": self.path,
                "container": short_name(container.format.name, self.path),
                "codec": stream.codec_context.codec.canonical_name,
                "width": height if rotation % 180 else width,
                "height": width if rotation % 180 else height,
                "rotation": rotation,
                "duration_seconds": duration_seconds(container, stream) or (count / rate if rate else 0.0),
                "frame_count": count,
                "frames_per_second": rate,
                "size_bytes": Path(self.path).stat().st_size,
            }

    def plan(self, indices: Sequence[int]) -> dict[str, Any]:
        """When the frames are shown (seconds, 0 where unknown), and whether decord may read them."""
        with opened(self.path) as (container, stream):
            context, tick = stream.codec_context, float(stream.time_base or 0)
            announced = clock_seconds(stream.metadata.get("DURATION", ""))
            if container.format.name == "avi":  # counts its frames in ticks; the duration is FFmpeg's guess
                announced = stream.frames * tick
            objection = objection_to_decord(
                container.format.name, context.codec.canonical_name, context.pix_fmt or "unknown", self._table
            )
        seconds = [pts * tick for pts in self._table.times] if self._counted is None else self._counted
        return {
            "seconds": [seconds[index] - seconds[0] if index < len(seconds) else 0.0 for index in indices],
            "cut_off": self._table.lost > 0,
            "ends_early": early_end_warning(seconds[-1], announced) if seconds else None,
            "objection": objection,
        }

    def read(self, indices: Sequence[int]) -> Iterator[Picture]:
        """Yield those of the frames with these ascending numbers that can be read, in any order.

        Frames that seeking did not bring are looked for once more from an earlier start: the container may have
        missed the key packet, or the decoder may show nothing until a few groups later (intra refresh).
        """
        if self._counted is not None:
            yield from self._pick({index: slot for slot, index in enumerate(indices)})
            return
        times = self._table.times
        slots = {times[index]: slot for slot, index in enumerate(indices) if index < len(times)}
        for pts in self._table.damaged:
            slots.pop(pts, None)
        for early_seconds in (0.0, EARLIER_START_SECONDS):
            if not slots:
                return
            for pts, picture in self._seek(dict(slots), early_seconds):
                del slots[pts]
                yield picture

    def _seek(self, slots: dict[int, int], early_seconds: float) -> Iterator[tuple[int, Picture]]:
        """Frames by presentation time -> slot: seek where that saves decoding, else decode on."""
        with opened(self.path) as (container, stream):
            early = int(early_seconds / stream.time_base) if stream.time_base else 0
            run = Run(container, stream, self._table, early)
            for pts, slot in slots.items():
                frame = run.frame_at(pts)
                if frame is not None:
                    yield pts, picture_of(frame, slot, run.size)

    def _pick(self, slots: dict[int, int]) -> Iterator[Picture]:
        """Frames by place in the decoder's output -> slot, from decoding everything."""
        size = None
        with opened(self.path) as (container, stream):
            for place, frame in enumerate(frames_of(packets_of(container, stream), stream)):
                size = size or (frame.width, frame.height)
                slot = slots.pop(place, None)
                if slot is not None and not frame.is_corrupt:
                    yield picture_of(frame, slot, size)
                if not slots:
                    return

    @property
    def _total(self) -> int:
        return self._table.total if self._counted is None else len(self._counted)

    @cached_property
    def _counted(self) -> list[float] | None:
        """Seconds of every frame that decoding brings, where the packets do not tell; None where they do."""
        with opened(self.path) as (container, stream):
            silent = stream.codec_context.codec.canonical_name in SILENT_PACKETS
            if self._table.exact and not silent and container.format.name not in UNTIMED:
                return None
            stamps = [frame.pts for frame in frames_of(packets_of(container, stream), stream)]
            times = [pts for pts in stamps if pts is not None]
            if stamps == sorted(set(times)):
                return [pts * float(stream.time_base or 0) for pts in times]
            step = 1 / float(stream.average_rate or stream.guessed_rate or 25)
            return [place * step for place in range(len(stamps))]

    @cached_property
    def _table(self) -> Table:
        """The packet table, from demuxing the whole file."""
        with opened(self.path) as (container, stream):
            h264 = stream.codec_context.codec.canonical_name == "h264"
            extradata = stream.codec_context.extradata or b""
            index = [entry.timestamp for entry in stream.index_entries] if indexed_count(container, stream) else []
            packets = [
                Packet(
                    pts=packet.pts,
                    key=packet.is_keyframe,
                    hidden=packet.is_discard,
                    damaged=packet.is_corrupt,
                    closed=not (h264 and packet.is_keyframe) or starts_closed_group(bytes(packet), extradata),
                )
                for packet in packets_of(container, stream)
            ]
        lost = index[len(packets) :]
        return Table(packets, len(lost), lost[0] if lost else None)


class Run:
    """Decoding forward through an open container, with jumps ahead to key packets."""

    def __init__(self, container: InputContainer, stream: VideoStream, table: Table, early: int) -> None:
        self.size: tuple[int, int] | None = None  # of the first frame; later ones are scaled to it
        self._container, self._stream, self._table, self._early = container, stream, table, early
        self._place = -1  # of the last packet handed to the decoder, in decoding order
        self._frames = frames_of(self._packets(0), stream)
        self._frame: VideoFrame | None = None  # decoded last

    def frame_at(self, pts: int) -> VideoFrame | None:
        """The frame shown at `pts`, later than at the call before; None when decoding does not bring it."""
        start = self._table.start_for(pts, self._early)
        if start is not None and self._table.position[start] > max(self._place, 0):
            with suppress(av.FFmpegError):  # a container that cannot seek is read on
                self._container.seek(start, stream=self._stream)
            self._place, self._frame = -1, None
            self._frames = frames_of(self._packets(self._table.position[start]), self._stream)
        while self._frame is None or self._frame.pts is None or self._frame.pts < pts:
            self._frame = next(self._frames, None)
            if self._frame is None:
                return None
            self.size = self.size or (self._frame.width, self._frame.height)
        return self._frame if self._frame.pts == pts and not self._frame.is_corrupt else None

    def _packets(self, latest: int) -> Iterator[av.Packet[VideoStream]]:
        """Packets from a key packet on, at place `latest` or before; none when the seek went past it."""
        started = False
        for packet in packets_of(self._container, self._stream):
            place = self._table.position.get(packet.pts, -1) if packet.pts is not None else -1
            if not started and place > latest:
                return
            started = started or packet.is_keyframe or latest == 0
            if started:
                self._place = place
                yield packet


def picture_of(frame: VideoFrame, slot: int, size: tuple[int, int] | None) -> Picture:
    """The frame as RGB at this width and height, in the stored orientation, without a copy."""
    width, height = size or (frame.width, frame.height)
    plane = frame.reformat(width=width, height=height, format="rgb24").planes[0]
    return Picture(slot, plane, height, width, plane.line_size, upright=False)


def indexed_count(container: InputContainer, stream: VideoStream) -> int | None:
    """Frames that an MP4's own index names; None where there is no such index or it hides some of them.

    Other containers only guess, or count before an edit list has taken frames away.
    """
    entries = getattr(stream, "index_entries", ())  # from av 17 on; before, a cut-off file is taken for a shorter one
    if "mp4" not in container.format.name or not stream.frames or len(entries) != stream.frames:
        return None
    return None if any(entry.is_discard for entry in entries) else len(entries)


def duration_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """What the stream says about its length, else what the container says."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def clock_seconds(clock: str) -> float:
    """Seconds of Matroska's "HH:MM:SS.fraction", the length of one track; 0 for anything else."""
    if not re.fullmatch(r"\d+:\d+:\d+(\.\d+)?", clock):
        return 0.0
    hours, minutes, seconds = map(float, clock.split(":"))
    return hours * 3600 + minutes * 60 + seconds


def early_end_warning(found: float, announced: float) -> str | None:
    """A sentence when the last frame stands well before the end that the header announces, both in seconds."""
    if announced - found <= EARLY_END_SECONDS:
        return None
    return f"The file ends after {found:.1f} of {announced:.1f} s; it seems cut off."


def short_name(names: str, path: str) -> str:
    """One of FFmpeg's comma-separated names of a demuxer: the file's own suffix when it is among them."""
    suffix = Path(path).suffix.removeprefix(".").lower()
    return suffix if suffix in names.split(",") else names.split(",", maxsplit=1)[0]
