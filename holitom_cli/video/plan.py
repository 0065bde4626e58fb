"""What to decode, and in what order, to reach some frames of a clip: planned before a packet is decoded."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from holitom_cli.video.packets import Table

MOST_THREADS = 16  # each decoder keeps its own reference frames: more would take memory rather than time


class Stretch(NamedTuple):
    """Frames that one seek and one run of decoding bring. Times count the stream's time base."""

    start: int | None  # presentation time of the key packet to seek to, None is the beginning of the file
    first: int  # its place in decoding order
    last: int  # place of the last packet to decode, in decoding order
    wanted: tuple[int, ...]  # presentation times, ascending
    beside: tuple[int, ...] | None = None  # those before and after the wanted ones, None where they are not decoded

    @property
    def packets(self) -> int:
        """How many packets it covers."""
        return self.last - self.first + 1


def stretches(table: Table, wanted: Iterable[int], early: int | None = 0, *, neighbours: bool = False) -> list[Stretch]:
    """Group frames by the key packet that decoding has to start at; the longest stretch comes first.

    One packet more than needed belongs to a stretch: the second field of its last picture may stand in a packet of
    its own. With `early`, start that many ticks sooner; None starts at the beginning of the file. With `neighbours`,
    the frames before and after each wanted one belong to it, as far as they are not before its start.
    """
    groups: dict[int | None, list[int]] = {}
    for pts in sorted(wanted):
        groups.setdefault(None if early is None else table.start_for(pts, early), []).append(pts)
    found = []
    for start, group in groups.items():
        beside = tuple(table.beside(group)) if neighbours else None
        first = 0 if start is None else table.position[start]
        found.append(Stretch(start, first, _last(table, [*group, *(beside or ())]), tuple(group), beside))
    return sorted(found, key=lambda stretch: -stretch.packets)


def _last(table: Table, group: list[int]) -> int:
    last = max(table.position[pts] for pts in group)
    more = last + 1 < len(table.packets) and not table.packets[last + 1].key
    return last + 1 if more else last


def cores() -> int:
    """CPU cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # Linux; elsewhere a process may use all
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def threads(count: int, available: int) -> tuple[int, int]:
    """How many of `count` stretches to decode side by side, and on how many threads each.

    Few stretches get more threads than there are cores, so that the last one to finish has them all.
    """
    beside = max(1, min(count, available, MOST_THREADS))
    return beside, min(MOST_THREADS, max(1, -(-2 * available // max(count, 1))))
