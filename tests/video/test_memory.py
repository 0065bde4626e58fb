"""Files that make a decoder take memory without end, and the limit that holds it."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holitom_cli import video
from holitom_cli.errors import VideoError
from holitom_cli.video.worker_link import Worker, close_idle, lent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits other processes")

LIMIT_BYTES = 128 * 1024**2
NESTED = {b"moov", b"trak", b"mdia", b"minf", b"stbl"}
COUNT = -1  # stands for it
TABLES: dict[bytes, tuple[int, ...]] = {  # ISO 14496-12: samples that are alike need one entry, however many they are
    b"stsz": (0, 1, COUNT),
    b"stts": (0, 1, COUNT, 1),
    b"stsc": (0, 1, 1, COUNT, 1),
    b"stco": (0, 1, 48),
}


def announcing(boxes: bytes, samples: int) -> bytes:
    """The boxes of an MP4 file whose tables say that it has so many samples."""
    told = b""
    while boxes:
        size, kind = struct.unpack(">I4s", boxes[:8])
        body, boxes = boxes[8:size], boxes[size:]
        if kind in NESTED:
            body = announcing(body, samples)
        elif kind in TABLES:
            numbers = [samples if number == COUNT else number for number in TABLES[kind]]
            body = struct.pack(f">{len(numbers)}I", *numbers)
        elif kind in (b"ctts", b"stss", b"edts"):
            kind = b"free"
        told += struct.pack(">I4s", len(body) + 8, kind) + body
    return told


@pytest.fixture
def limited() -> Iterator[None]:
    close_idle()
    video.limit_memory(LIMIT_BYTES)
    yield
    Worker.most_bytes = None
    close_idle()


def most_memory(path: Path) -> int:
    """The most bytes of its own that a worker has had after a probe that failed."""
    with pytest.raises(VideoError):
        video.probe(path)
    with lent() as worker:
        status = Path(f"/proc/{worker._process.pid}/status").read_text(encoding="ascii")
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak) * 1024


@pytest.fixture
def bomb(demo_clip: Path, tmp_path: Path) -> Path:
    """A clip of 0.4 MB that announces five million samples."""
    path = tmp_path / "bomb.mp4"
    path.write_bytes(announcing(demo_clip.read_bytes(), 5_000_000))
    return path


def test_tables_without_end_take_memory(bomb: Path) -> None:
    """Control: without a limit they do."""
    close_idle()
    assert most_memory(bomb) > LIMIT_BYTES


@pytest.mark.usefixtures("limited")
def test_tables_without_end_are_refused(bomb: Path) -> None:
    assert most_memory(bomb) < LIMIT_BYTES


def test_limit_holds_for_workers_that_wait_already(demo_clip: Path, bomb: Path, limited: None) -> None:
    Worker.most_bytes = None
    video.probe(demo_clip)
    with lent() as waiting:
        video.limit_memory(LIMIT_BYTES)
    assert most_memory(bomb) < LIMIT_BYTES
    with lent() as worker:
        assert worker is waiting


@pytest.mark.usefixtures("limited")
def test_clips_are_read_below_the_limit(demo_clip: Path) -> None:
    video.limit_memory(4 * LIMIT_BYTES)
    assert len(video.read(demo_clip, 8)) == 8
