"""The packet table of a clip: which frame numbers there are, where they stand and where decoding may start.

A frame's number is its rank in presentation order. Packets stand in decoding order, which differs wherever a frame
is predicted from a later one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple


class Packet(NamedTuple):
    """What the container says about one packet. Times count the stream's time base."""

    pts: int | None  # presentation time
    key: bool  # decoding may start here
    hidden: bool = False  # decoded but never shown (cut away by an edit list)
    damaged: bool = False  # the file ends inside it
    closed: bool = True  # for a key packet: no frame after it refers behind it


@dataclass(frozen=True)
class Table:
    """All packets in decoding order, and how many more the file names but does not hold."""

    packets: Sequence[Packet]
    lost: int = 0  # frames that the container's index names and the file no longer holds
    first_lost_dts: int | None = None
    tick_seconds: float = 0.0  # of the stream's time base; 0 where it has none

    @cached_property
    def exact(self) -> bool:
        """Whether presentation times alone name the frames: all there, all different."""
        times = [packet.pts for packet in self.packets]
        return bool(times) and None not in times and len(set(times)) == len(times)

    @cached_property
    def times(self) -> list[int]:
        """Presentation time by frame number, as far as it is certain.

        A frame shown after the first lost packet's decoding time may have lost neighbours before it, so that its
        number cannot be known: it counts as lost too.
        """
        shown = sorted(p.pts for p in self.packets if p.pts is not None and not p.hidden)
        if self.first_lost_dts is None:
            return shown
        return [pts for pts in shown if pts < self.first_lost_dts]

    @cached_property
    def total(self) -> int:
        """Frames that the clip has, or had before it was cut off."""
        return self.lost + sum(not packet.hidden for packet in self.packets)

    @cached_property
    def position(self) -> dict[int, int]:
        """Presentation time -> place in decoding order."""
        return {packet.pts: place for place, packet in enumerate(self.packets) if packet.pts is not None}

    @cached_property
    def damaged(self) -> set[int]:
        """Presentation times of packets that are not whole."""
        return {packet.pts for packet in self.packets if packet.damaged and packet.pts is not None}

    @cached_property
    def keys(self) -> list[int]:
        """Presentation times of the key packets, in decoding order."""
        return [packet.pts for packet in self.packets if packet.key and packet.pts is not None]

    @cached_property
    def closed(self) -> bool:
        """Whether every group stands alone: decoding from its key packet gives all frames until the next one."""
        last_key = None
        for packet in self.packets:
            if packet.pts is None or (packet.key and not packet.closed):
                return False
            last_key = packet.pts if packet.key else last_key
            if last_key is None or packet.pts < last_key:
                return False
        return bool(self.packets)

    def beside(self, wanted: Iterable[int]) -> list[int]:
        """Presentation times of the frames before and after those that are wanted."""
        places = {bisect_left(self.times, pts) + step for pts in wanted for step in (-1, 1)}
        return [self.times[place] for place in sorted(places) if 0 <= place < len(self.times)]

    def start_for(self, pts: int, early: int = 0) -> int | None:
        """Where decoding must start for a frame: the last key packet that is shown no later than it.

        A frame that follows a key packet in decoding order but is shown before it (a leading picture of an open
        group) refers to frames before that key packet, so the order of showing decides. With `early`, start so
        many ticks sooner and two groups before that.
        """
        before = [key for key in self.keys if key <= pts - early]
        if early:
            before = before[:-2] or self.keys[:1]
        return before[-1] if before else None


def starts_closed_group(data: bytes, extradata: bytes) -> bool:
    """Whether an H.264 key packet of an MP4 or Matroska file holds an IDR slice (NAL unit type 5).

    Other key packets are recovery points: open groups or intra refresh, where frames after them may refer to frames
    before them. Source: ITU-T H.264, table 7-1; lengths before NAL units as in ISO/IEC 14496-15, 5.3.3.
    """
    if len(extradata) < 5 or extradata[0] != 1:
        return False
    width, place = (extradata[4] & 3) + 1, 0
    while place + width < len(data):
        if data[place + width] & 31 == 5:
            return True
        place += width + int.from_bytes(data[place : place + width])
    return False
