"""Whether a MOV or MP4 says that its pictures stand in another file (a "dref" that is not its own).

libavformat does not follow such references, which leaves it with whatever its own file has at the other one's places.
Boxes: ISO/IEC 14496-12, 4.2 and 8.7.2; aliases: Apple's QuickTime File Format Specification, "Data Reference Atoms".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

OWN = 0x01  # the flag of a reference to the file itself
VERSION_BYTES = 4  # and flags, at the beginning of some boxes


class Span(NamedTuple):
    """Where a box's content stands in the file."""

    begin: int
    end: int


def points_elsewhere(path: str) -> bool:
    """Whether a track of moving pictures refers to another file."""
    with Path(path).open("rb") as file:
        whole = Span(0, Path(path).stat().st_size)
        for track in _inside(file, whole, b"moov", b"trak"):
            handlers = [_read(file, Span(at.begin + 8, at.end), 4) for at in _inside(file, track, b"mdia", b"hdlr")]
            if b"vide" in handlers:
                for table in _inside(file, track, b"mdia", b"minf", b"dinf", b"dref"):
                    if any(_is_external(file, entry) for _, entry in _boxes(file, Span(table.begin + 8, table.end))):
                        return True
    return False


def _is_external(file: BinaryIO, entry: Span) -> bool:
    """Some writers leave the flag out, but have no other file to name."""
    flags = _read(file, entry, VERSION_BYTES)
    return len(flags) == VERSION_BYTES and not flags[-1] & OWN and entry.end - entry.begin > VERSION_BYTES + 1


def _inside(file: BinaryIO, span: Span, *names: bytes) -> Iterator[Span]:
    """The boxes at the end of this path of names."""
    for name, found in _boxes(file, span):
        if name == names[0]:
            if len(names) == 1:
                yield found
            else:
                yield from _inside(file, found, *names[1:])


def _boxes(file: BinaryIO, span: Span) -> Iterator[tuple[bytes, Span]]:
    """Names and contents of the boxes that follow one another here, until one makes no sense."""
    place = span.begin
    while place + 8 <= span.end:
        head = _read(file, Span(place, span.end), 16)
        size, header = int.from_bytes(head[:4]), 8
        if size == 1:  # the size comes behind the name
            size, header = int.from_bytes(head[8:]), 16
        end = span.end if size == 0 else place + size
        if end < place + header or end > span.end:
            return
        yield head[4:8], Span(place + header, end)
        place = end


def _read(file: BinaryIO, span: Span, size: int) -> bytes:
    file.seek(span.begin)
    return file.read(min(size, max(0, span.end - span.begin)))
