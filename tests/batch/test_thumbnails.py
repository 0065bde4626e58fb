"""One picture of each clip: the frame that was asked for, or the next key frame; a clip that is gone ends nothing."""

from __future__ import annotations

import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holitom_cli import video
from holitom_cli.batch.thumbnails import pictures
from holitom_cli.cli.batch_report import ReportOptions
from holitom_cli.cli.console import Talk
from holitom_cli.report.pictures import shrinker
from holitom_cli.types import Sampling


def raw(picture: Any) -> bytes:
    return bytes(picture.tobytes())


def frame(clip: Path, wish: Sampling) -> bytes:
    return raw(video.read(clip, wish, shrink=shrinker(32)).pixels[0])


def test_the_frame_of_each_place_is_read(demo_clip: Path, tmp_path: Path) -> None:
    places = [(str(demo_clip), 1.2, False), (str(tmp_path / "gone.mp4"), 0.0, False), (str(demo_clip), 5.0, True)]
    found = dict(pictures(places, shrinker(32), raw))
    assert list(found) == places
    exact, gone, near = found.values()
    assert exact == frame(demo_clip, Sampling(at_seconds=(1.2,)))
    assert exact != frame(demo_clip, Sampling(at_seconds=(5.0,)))  # control
    assert gone is None
    assert near == frame(demo_clip, Sampling(at_seconds=(6.64,)))  # the next key frame
    assert len(exact) == 32 * 18 * 3


def test_whoever_stops_listening_does_not_wait(demo_clip: Path) -> None:
    reading = pictures([(str(demo_clip), 1.0, False)] * 500, shrinker(32), raw)
    assert isinstance(reading, Generator)
    next(reading)
    with pytest.raises(KeyboardInterrupt):
        reading.throw(KeyboardInterrupt)
    assert not [one for one in threading.enumerate() if one.name.startswith("thumbnails")]


def test_a_run_that_was_interrupted_reads_no_pictures(
    tmp_path: Path, demo_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from holitom_cli.cli import batch_report

    def read(*_: object) -> dict[Any, bytes]:
        read_at.append(1)
        return {}

    read_at: list[int] = []
    monkeypatch.setattr(batch_report, "_thumbnails", read)
    (tmp_path / "rows.jsonl").write_text("", encoding="utf-8")
    options = ReportOptions(report=tmp_path / "page.html")
    options.write(tmp_path / "rows.jsonl", None, Talk(quiet=True), quickly=True)
    assert (tmp_path / "page.html").is_file()
    assert read_at == []
    options.write(tmp_path / "rows.jsonl", None, Talk(quiet=True), quickly=False)
    assert read_at == [1]


def test_shrunken_pictures_are_encoded_at_once(demo_clip: Path) -> None:
    shapes: list[tuple[int, ...]] = []

    def encode(picture: Any) -> bytes:
        shapes.append(np.asarray(picture).shape)
        return b"file"

    assert [file for _, file in pictures([(str(demo_clip), 0.0, True)], shrinker(64), encode)] == [b"file"]
    assert shapes == [(36, 64, 3)]
