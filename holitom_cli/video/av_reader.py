"""Probing and exact decoding with PyAV."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from holitom_cli.errors import VideoError
from holitom_cli.sampling import Sampling
from holitom_cli.video.decoding import StretchReader, rgb
from holitom_cli.video.files import shown
from holitom_cli.video.hdr import TRANSFERS
from holitom_cli.video.interlaced import is_woven, shown_of, surrounded
from holitom_cli.video.opening import check_size, frames_of, opened, packets_of
from holitom_cli.video.orientation import orientation
from holitom_cli.video.packets import Packet, Table, starts_closed_group
from holitom_cli.video.plan import stretches
from holitom_cli.video.references import points_elsewhere
from holitom_cli.video.routing import AV_REASON, WHOLE_REASON, objection_to_decord
from holitom_cli.video.sampling import Timeline, pick
from holitom_cli.video.worker import Picture

SILENT_PACKETS = {"vp8"}  # its packets may show nothing (alternate reference frames): count by decoding
WIDEST_PIXEL = 4  # times as wide as high or the other way; 2 is the most that H.264 has a name for (table E-1)
EARLY_END_SECONDS = 1.0  # the last frame is shown for a while, and clocks are rounded
EARLIER_START_SECONDS = 2.0
# Containers whose packets tell when each frame is shown. Others store no such times or not for all frames (AVI, MXF,
# MPEG program streams), and FFmpeg's guesses name other frames with B-frames or after a seek: count by decoding.
TIMED = {"mov", "matroska", "mpegts", "flv", "gif"}


class Facts(NamedTuple):
    """What opening a file and decoding its first frame tells."""

    format: str  # the demuxer's names
    codec: str
    pixel_format: str
    size: tuple[int, int]  # width and height of the first frame before it is turned; later ones are scaled to it
    square: bool  # so are its pixels
    rotation: int  # clockwise, in degrees
    mirrored: bool
    hdr: str
    interlaced: bool  # later frames may be and not be
    duration_seconds: float | None
    announced_seconds: float  # where the header says that the last frame ends, 0 where it does not
    rate: float  # frames a second, 0 where unknown
    indexed: int | None  # frames that an MP4's index names


class Clip:
    """A file that is probed and then read, opened anew for every pass: some containers cannot rewind."""

    def __init__(self, path: str) -> None:
        self.path = path

    def probe(self) -> dict[str, Any]:
        """The fields of VideoInfo, as plain values."""
        facts = self._facts
        width, height = facts.size if facts.rotation % 180 == 0 else facts.size[::-1]
        count = facts.indexed or (self._table.total if self._counted is None else len(self._counted))
        return {
            "path": self.path,
            "container": short_name(facts.format, self.path),
            "codec": facts.codec,
            "width": width,
            "height": height,
            "rotation": facts.rotation,
            "duration_seconds": facts.duration_seconds or (count / facts.rate if facts.rate else 0.0),
            "frame_count": count,
            "frames_per_second": facts.rate,
            "size_bytes": Path(self.path).stat().st_size,
            "mirrored": facts.mirrored,
            "hdr": facts.hdr,
        }

    def plan(self, sampling: Sampling) -> dict[str, Any]:
        """The frames that a sampling picks, when they are shown (seconds, 0 where unknown), and what is to be said."""
        stamps, facts = self._stamps, self._facts
        seconds = [stamp - stamps[0] for stamp in stamps]
        picked = pick(sampling, Timeline(seconds, self._keys, max(self._table.total, len(seconds))))
        return {
            **picked._asdict(),
            "seconds": [seconds[index] if index < len(seconds) else 0.0 for index in picked.indices],
            "cut_off": self._table.lost > 0,
            "ends_early": early_end_warning(stamps[-1], facts.announced_seconds),
            "decoder": "av",
            "decoder_reason": AV_REASON if self._counted is None else WHOLE_REASON,
            "objection": objection_to_decord(
                facts.format,
                facts.codec,
                facts.pixel_format,
                self._table,
                mirrored=facts.mirrored,
                interlaced=facts.interlaced,
                square=facts.square,
            ),
        }

    def read(self, indices: Sequence[int]) -> Iterator[Picture]:
        """Yield those of the frames with these ascending numbers that can be read, in any order.

        Frames that the plan did not bring are looked for once more without its shortcuts and from an earlier start:
        the decoder may show nothing until a few groups later (intra refresh). What no seek reached is reached by
        decoding from the beginning.
        """
        if self._counted is not None:
            yield from self._pick({index: slot for slot, index in enumerate(indices)})
            return
        times = self._table.times
        slots = {times[index]: slot for slot, index in enumerate(indices) if index < len(times)}
        for pts in self._table.damaged:
            slots.pop(pts, None)
        reader = StretchReader(self.path, self._table, self._facts.size)
        earlier = int(EARLIER_START_SECONDS / self._table.tick_seconds) if self._table.tick_seconds else 0
        for early, thrifty in ((0, True), (earlier, False), (None, False)):
            again = set(slots) if early is not None else reader.unreached & set(slots)
            if not again:
                continue
            plan = stretches(self._table, again, early, neighbours=self._facts.interlaced or not thrifty)
            for pts, frame, deinterlaced in reader.read(plan, thrifty=thrifty):
                yield picture_of(frame, slots.pop(pts), self._turned, deinterlaced=deinterlaced)

    def _pick(self, slots: dict[int, int]) -> Iterator[Picture]:
        """Frames by place in the decoder's output -> slot, from decoding everything."""
        with opened(self.path) as (container, stream):
            for place, near in enumerate(surrounded(frames_of(packets_of(container, stream), stream), stream)):
                slot = slots.pop(place, None)
                if slot is not None and not near[1].is_corrupt:
                    picture, deinterlaced = shown_of(near, stream)
                    small = rgb(picture, self._facts.size)
                    yield picture_of(small, slot, self._turned, deinterlaced=deinterlaced)
                if not slots:
                    return

    @property
    def _turned(self) -> tuple[int, bool]:
        return self._facts.rotation, self._facts.mirrored

    @property
    def _stamps(self) -> list[float]:
        """When each frame is shown, in seconds on the file's own clock."""
        if self._counted is not None:
            return [seconds for seconds, _ in self._counted]
        if not self._table.times:
            raise VideoError(f"{shown(self.path)} holds no whole frame.", "The file seems cut off: copy it again.")
        return [pts * self._table.tick_seconds for pts in self._table.times]

    @property
    def _keys(self) -> list[int]:
        """The numbers of the key frames."""
        if self._counted is not None:
            return [place for place, (_, key) in enumerate(self._counted) if key]
        keys = set(self._table.keys)
        return [number for number, pts in enumerate(self._table.times) if pts in keys]

    @cached_property
    def _facts(self) -> Facts:
        with opened(self.path) as (container, stream):
            if container.format.name.startswith("mov") and points_elsewhere(self.path):
                raise VideoError(
                    f"{shown(self.path)} keeps its pictures in another file, and others are not read.",
                    "Give that file, or save this one again as a self-contained movie.",
                )
            stream.thread_type = "SLICE"  # threads for frames would decode one frame each before the first is out
            first = next(frames_of(packets_of(container, stream), stream), None)
            if first is None:
                raise VideoError(
                    f"No frame of {shown(self.path)} can be decoded.", "The file seems damaged: copy it again."
                )
            context, kind = stream.codec_context, container.format.name
            rotation, mirrored = orientation(first)
            announced = clock_seconds(stream.metadata.get("DURATION", ""))
            if kind == "avi":  # counts its frames in ticks; the duration is FFmpeg's guess
                announced = stream.frames * float(stream.time_base or 0)
            size = square_size(first, stream)
            check_size(self.path, *size)
            indexed, length = indexed_count(container, stream), duration_seconds(container, stream)
            if "mp4" in kind and indexed is None:  # nothing else would tell that it is cut off: before av 17, fragments
                announced = (length or 0.0) + float((stream.start_time or 0) * (stream.time_base or 0))
            return Facts(
                format=kind,
                codec=context.codec.canonical_name,
                pixel_format=context.pix_fmt or "unknown",
                size=size,
                square=size == (first.width, first.height),
                rotation=rotation,
                mirrored=mirrored,
                hdr=TRANSFERS.get(int(context.color_trc), ""),
                interlaced=is_woven(first, stream),
                duration_seconds=length,
                announced_seconds=announced,
                rate=float(stream.average_rate or stream.guessed_rate or 0),
                indexed=indexed,
            )

    @cached_property
    def _counted(self) -> list[tuple[float, bool]] | None:
        """Seconds of every frame that decoding brings, and whether it is a key frame; None where packets tell."""
        timed = self._facts.format.split(",", maxsplit=1)[0] in TIMED
        if timed and self._table.exact and self._facts.codec not in SILENT_PACKETS:
            return None
        with opened(self.path) as (container, stream):
            found = [(frame.pts, frame.key_frame) for frame in frames_of(packets_of(container, stream), stream)]
            times, keys = [pts for pts, _ in found if pts is not None], [key for _, key in found]
            step = 1 / (self._facts.rate or 25)
            seconds = [place * step for place in range(len(found))]
            if len(times) == len(found) and times == sorted(set(times)):
                seconds = [pts * float(stream.time_base or 0) for pts in times]
            return list(zip(seconds, keys, strict=True))

    @cached_property
    def _table(self) -> Table:
        """The packet table, from demuxing the whole file."""
        with opened(self.path) as (container, stream):
            h264 = stream.codec_context.codec.canonical_name == "h264"
            extradata = stream.codec_context.extradata or b""
            index = [entry.timestamp for entry in stream.index_entries] if self._facts.indexed else []
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
            tick = float(stream.time_base or 0)
        lost = index[len(packets) :]
        return Table(packets, len(lost), lost[0] if lost else None, tick)


def picture_of(frame: VideoFrame, slot: int, turned: tuple[int, bool], *, deinterlaced: bool = False) -> Picture:
    """An RGB frame on its way out, without a copy; `turned` is its orientation."""
    plane = frame.planes[0]
    return Picture(slot, plane, frame.height, frame.width, plane.line_size, *turned, deinterlaced)


def square_size(frame: VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """Width and height at which a frame's pixels are square, as players show it: the shorter way is stretched.

    Shapes that no camera or disc has are taken for mistakes.
    """
    shape = stream.sample_aspect_ratio or 1
    if not 1 / WIDEST_PIXEL <= shape <= WIDEST_PIXEL:
        return frame.width, frame.height
    return round(frame.width * max(1, shape)), round(frame.height * max(1, 1 / shape))


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
    ends = clock_seconds(stream.metadata.get("DURATION", ""))  # of a late track, Matroska says when it ends
    late = float((stream.start_time or 0) * (stream.time_base or 0)) if ends else 0.0
    return container.duration / av.time_base - max(0.0, late) if container.duration else None


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
