"""Interlaced clips: moving edges are no combs, what stands still keeps its lines, and the record says so."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from holitom_cli.errors import VideoError
from holitom_cli.types import Frames
from holitom_cli.video import client, interlaced, read
from holitom_cli.video.av_reader import Clip
from holitom_cli.video.worker_link import WorkerError
from tests import clips

COUNT = 40
TOP, BOTTOM, STILL = 20, 100, 24  # rows that the bar covers; columns that hold lines which stand still
NOTE = "{} of {} frames are interlaced; each is shown as one picture."

MPEG2 = {"codec": "mpeg2video", "options": {"flags": "+ildct+ilme", "b": "8M", "bf": "2"}}
X264 = {"x264-params": "interlaced=1:tff=1:crf=10:bframes=3"}
RECIPES: dict[str, dict[str, Any]] = {
    "h264.mp4": {"options": X264},
    "h264.mkv": {"options": X264},
    "h264_one_group.mp4": {"options": X264, "group": 250},
    "h264_every_frame_a_key.mp4": {"options": X264, "group": 1},
    "mpeg2.ts": MPEG2,
    "mpeg2.mpg": MPEG2,  # counted by decoding
    "mpeg2_top.mkv": MPEG2,
    "h264_top.mp4": {"options": X264},
}


def scene(field: int) -> clips.Picture:
    """A bar that moves by 5 pixels from field to field, beside lines of two rows that stand still."""
    picture = np.full((clips.HEIGHT, clips.WIDTH, 3), 60, np.uint8)
    picture[:, :STILL] = np.where(np.arange(clips.HEIGHT) // 2 % 2, 200, 40)[:, None, None]
    left = STILL + 10 + 5 * field % (clips.WIDTH - STILL - 40)
    picture[TOP:BOTTOM, left : left + 16] = 220
    return picture


def woven(number: int, *, first: int = 1) -> clips.Picture:
    """Two moments in one frame: the first one in the lines from 0 or 1 on, the second one in the others."""
    picture = scene(2 * number + 1)
    picture[first::2] = scene(2 * number)[first::2]
    return picture


def upper_first(number: int) -> clips.Picture:
    return woven(number, first=0)


def combing(picture: clips.Picture) -> float:
    """How much a line differs from those around it, on average over the bar's way."""
    lines = picture[TOP:BOTTOM, STILL:, 1].astype(float)
    return float(np.abs(lines[1:-1] - (lines[:-2] + lines[2:]) / 2).mean())


def combs(frames: Frames) -> float:
    return max(map(combing, frames.pixels))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("interlaced")

    def make(name: str) -> Path:
        path = folder / name
        top = "top" in name
        how = {"paint": upper_first if top else woven, "first_field": "top" if top else "bottom", **RECIPES[name]}
        return path if path.exists() else clips.make(path, COUNT, **how)

    return make


def test_the_measure_sees_combs() -> None:
    assert combing(scene(10)) < 0.1
    assert combing(woven(10)) > 5


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("asked", [COUNT, 7])
def test_no_combs(made: Callable[[str], Path], name: str, asked: int) -> None:
    frames = read(made(name), asked)
    assert len(frames) == asked
    assert combs(frames) < 1
    assert NOTE.format(asked, asked) in frames.warnings
    assert frames.indices is not None
    for index, picture in zip(frames.indices.tolist(), frames.pixels, strict=True):
        near = [
            np.abs(picture[:, STILL:].astype(int) - scene(2 * index + step)[:, STILL:]).mean() for step in (-1, 0, 1)
        ]
        assert near[1] < 1 < 4 < min(near[0], near[2])  # the moment of the first field, not the one before or after


@pytest.mark.parametrize("name", ["h264.mp4", "mpeg2.mpg"])
def test_control_without_it_there_are_combs(
    made: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interlaced, "is_woven", lambda *_: False)
    from holitom_cli.video import decoding

    monkeypatch.setattr(decoding, "is_woven", lambda *_: False)
    pictures = [
        np.frombuffer(picture.rgb, np.uint8).reshape(clips.HEIGHT, picture.stride)[:, : 3 * clips.WIDTH]
        for picture in Clip(str(made(name))).read([5, 20, 35])
    ]
    assert min(combing(rows.reshape(clips.HEIGHT, clips.WIDTH, 3)) for rows in pictures) > 5


@pytest.mark.skipif(find_spec("decord") is None, reason="decord has no wheel for this platform")
def test_decord_would_comb_and_is_not_asked(made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    forced = read(made("h264.mp4"), 7, decoder="decord")
    assert combs(forced) > 5
    assert not any("interlaced" in warning for warning in forced.warnings)

    def fail(_: object) -> None:
        raise WorkerError("is broken")

    monkeypatch.setattr(client.Task, "_with_first", fail)
    with pytest.raises(VideoError, match=r"could not be read: av is broken\.$"):
        read(made("h264.mp4"), 7)


def test_what_stands_still_keeps_its_lines(made: Callable[[str], Path]) -> None:
    """The frames before and after say that nothing moved there: both fields are used, not one of them twice."""
    truth = scene(0)[4:-4, 4 : STILL - 4].astype(int)
    for picture in read(made("h264.mp4"), COUNT).pixels[1:-1]:
        assert np.abs(picture[4:-4, 4 : STILL - 4] - truth).mean() < 8
    one_field = truth.copy()
    one_field[1:-1:2] = (truth[:-2:2] + truth[2::2]) // 2
    assert np.abs(one_field - truth).mean() > 30  # control: every other line made of those around it


@pytest.mark.parametrize("name", ["h264.mp4", "h264_one_group.mp4", "mpeg2.ts"])
def test_a_plan_gives_what_decoding_everything_gives(made: Callable[[str], Path], name: str) -> None:
    """Asked for by itself, a frame is what it is among all; but a group's first one has lost a neighbour."""
    everything = read(made(name), COUNT).pixels
    with av.open(str(made(name))) as container:
        keys = {place for place, frame in enumerate(container.decode(video=0)) if frame.key_frame}
    for index in (3, 17, 31, COUNT - 1):
        alone = next(Clip(str(made(name))).read([index]))
        rows = np.frombuffer(alone.rgb, np.uint8).reshape(clips.HEIGHT, alone.stride)[:, : 3 * clips.WIDTH]
        if index not in keys:
            np.testing.assert_array_equal(rows.reshape(clips.HEIGHT, clips.WIDTH, 3), everything[index])


def test_a_clip_that_becomes_interlaced(tmp_path: Path) -> None:
    """The first frame does not tell; those that say so are read again with their neighbours."""
    parts = [
        clips.make(tmp_path / "plain.ts", 20, paint=lambda number: scene(2 * number), options={"crf": "10"}),
        clips.make(tmp_path / "woven.ts", 20, paint=lambda number: woven(20 + number), options=X264),
    ]
    path = tmp_path / "both.mkv"
    joined(parts, path)
    frames = read(path, 40)
    assert len(frames) == 40
    assert combs(frames) < 1
    assert NOTE.format(20, 40) in frames.warnings


def joined(parts: list[Path], path: Path) -> None:
    """One clip after another in one stream, each with headers of its own in its packets."""
    with av.open(str(path), "w") as target:
        copy, ticks = None, 0
        for part in parts:
            with av.open(str(part)) as source:
                stream = source.streams.video[0]
                copy = copy or target.add_stream_from_template(stream)
                packets = [packet for packet in source.demux(stream) if packet.size]
                begin = min(packet.pts or 0 for packet in packets)
                for packet in packets:
                    assert packet.pts is not None
                    assert packet.dts is not None
                    packet.pts, packet.dts = packet.pts - begin + ticks + 7200, packet.dts - begin + ticks + 7200
                    packet.stream = copy
                    target.mux(packet)
                ticks += 20 * 3600  # of 1/90000 s


def test_a_frame_without_neighbours(tmp_path: Path) -> None:
    frames = read(clips.make(tmp_path / "one.mp4", 1, paint=woven, options=X264), 1)
    assert combs(frames) < 1
    assert frames.warnings[0] == NOTE.format(1, 1)


@pytest.mark.parametrize("tags", [{"colorspace": 1}, {"colorspace": 6}, {"colorspace": 1, "color_range": 2}])
def test_colours_are_as_in_progressive_clips(tmp_path: Path, tags: dict[str, int]) -> None:
    colour = np.full((clips.HEIGHT, clips.WIDTH, 3), (200, 60, 30), np.uint8)
    pixels = [
        read(
            clips.make(
                tmp_path / f"{kind}.mp4",
                6,
                paint=lambda _: colour,
                options={"x264-params": f"crf=10{kind}"},
                tags=tags,
                pix_fmt="yuvj420p" if "color_range" in tags else "yuv420p",
            ),
            6,
        ).pixels
        for kind in ("", ":interlaced=1")
    ]
    assert np.abs(pixels[0].astype(int) - pixels[1]).max() <= 2


def test_fields_of_hevc_are_pictures_by_themselves(tmp_path: Path) -> None:
    options = {"x265-params": "log-level=none:interlace=1"}
    path = clips.make(tmp_path / "fields.mp4", 10, "libx265", options=options, paint=scene)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame  # it says so, of one field
    assert read(path, 10).warnings == ()


def test_progressive_clips_are_left_alone(tmp_path: Path) -> None:
    frames = read(clips.make(tmp_path / "plain.mp4", 10, paint=scene), 10)
    assert frames.warnings == ()
