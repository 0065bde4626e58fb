"""The plan before decoding, and that its shortcuts change no pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from holitom_cli.types import Sampling
from holitom_cli.video import decoding, opening
from holitom_cli.video.av_reader import Clip
from holitom_cli.video.packets import Packet, Table
from holitom_cli.video.plan import Stretch, stretches, threads
from tests import clips

# decoding order of two groups of I0 P3 B1 B2, the second one open: B4 and B5 are shown before its key packet
TABLE = Table([Packet(pts, pts in (0, 6)) for pts in (0, 3, 1, 2, 6, 4, 5, 9, 7, 8)])


def test_frames_are_grouped_by_where_decoding_starts() -> None:
    assert stretches(TABLE, [1, 4, 7]) == [Stretch(0, 0, 6, (1, 4)), Stretch(6, 4, 9, (7,))]
    assert stretches(TABLE, [8]) == [Stretch(6, 4, 9, (8,))]
    assert stretches(TABLE, [0]) == [Stretch(0, 0, 1, (0,))]
    assert stretches(TABLE, []) == []


def test_the_longest_stretch_comes_first() -> None:
    assert [stretch.wanted for stretch in stretches(TABLE, [0, 8])] == [(8,), (0,)]


def test_from_the_beginning_there_is_one_stretch() -> None:
    assert stretches(TABLE, [1, 8], early=None) == [Stretch(None, 0, 9, (1, 8))]


def test_a_key_packet_is_never_the_one_packet_more() -> None:
    """Where every frame is a key, a stretch is one packet long."""
    table = Table([Packet(pts, True) for pts in range(5)])
    assert [stretch.packets for stretch in stretches(table, [1, 3])] == [1, 1]


@pytest.mark.parametrize(
    ("count", "available", "expected"),
    [
        (1, 2, (1, 4)),
        (3, 2, (2, 2)),
        (32, 2, (2, 1)),
        (32, 16, (16, 1)),
        (3, 16, (3, 11)),
        (9, 64, (9, 15)),
        (0, 2, (1, 4)),
    ],
)
def test_threads(count: int, available: int, expected: tuple[int, int]) -> None:
    assert threads(count, available) == expected


def noise(number: int) -> clips.Picture:
    """A frame number and noise: a wrong reference frame changes some pixel."""
    random = np.random.default_rng(number)
    return (clips.draw(number) + random.integers(0, 20, (clips.HEIGHT, clips.WIDTH, 3))).astype(np.uint8)


REORDERED: dict[str, dict[str, Any]] = {
    "h264.mp4": {"options": {"preset": "slow", "x264-params": "keyint=250:bframes=5:b-pyramid=normal:ref=4"}},
    "h264_open.mkv": {"options": {"x264-params": "open-gop=1:keyint=30:min-keyint=30:bframes=3:scenecut=0"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=60:bframes=4"}},
    "hevc_layers.mp4": {
        "codec": "libx265",
        "options": {"x265-params": "log-level=none:keyint=60:temporal-layers=3:b-adapt=0"},
    },
    "mpeg2.ts": {"codec": "mpeg2video", "options": {"bf": "2"}},
    "mpeg4.mkv": {"codec": "mpeg4", "options": {"bf": "2"}},
}


@pytest.mark.parametrize("name", REORDERED)
def test_every_pixel_is_that_of_full_decoding(tmp_path: Path, name: str) -> None:
    path = clips.make(tmp_path / name, 100, group=250, paint=noise, **REORDERED[name])
    with av.open(str(path)) as container:
        everything = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for indices in ([99], [0, 33, 66, 99], [*range(5, 100, 9)], [*range(100)]):
        found = {picture.slot: picture for picture in Clip(str(path)).read(indices)}
        assert sorted(found) == [*range(len(indices))]
        for slot, index in enumerate(indices):
            picture = found[slot]
            rows = np.frombuffer(picture.rgb, np.uint8).reshape(picture.height, picture.stride)
            rgb = rows[:, : picture.width * 3].reshape(picture.height, picture.width, 3)
            np.testing.assert_array_equal(rgb, everything[index])


def test_what_is_there_is_not_looked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole clip is read in one go: the file is opened by as many threads as there are, and never after that."""
    path = clips.make(tmp_path / "clip.mp4", 30)
    clip = Clip(str(path))
    clip.plan(Sampling(num_frames=2))
    real, opens = opening.opened, list[str]()

    def counted(path: str) -> Any:
        opens.append(path)
        return real(path)

    monkeypatch.setattr(decoding, "opened", counted)
    monkeypatch.setattr(decoding, "cores", lambda: 2)
    assert len([*clip.read([0, 29])]) == 2
    assert len(opens) == 2


def test_frames_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortcut is taken: with it, fewer frames leave the decoder."""
    path = clips.make(tmp_path / "clip.mp4", 100, group=250, paint=noise, **REORDERED["h264.mp4"])
    real, decoded = opening.frames_of, [0]

    def counted(*arguments: Any) -> Any:
        for frame in real(*arguments):
            decoded[-1] += 1
            yield frame

    monkeypatch.setattr(decoding, "frames_of", counted)
    assert len([*Clip(str(path)).read([90])]) == 1
    monkeypatch.setattr(decoding, "skips_exactly", lambda _: False)
    decoded.append(0)
    assert len([*Clip(str(path)).read([90])]) == 1
    assert decoded[0] < 0.7 * decoded[1]


def test_control_skipping_what_is_referred_to_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that skips reference frames too loses the frame or changes it."""
    path = clips.make(tmp_path / "clip.mp4", 100, group=250, paint=noise, **REORDERED["h264.mp4"])
    with av.open(str(path)) as container:
        truth = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][90]
    real = decoding.StretchReader._packets

    def too_few(self: Any, *arguments: Any) -> Any:
        for place, packet in enumerate(real(self, *arguments)):
            if place == 0 or place > 60:
                yield packet

    monkeypatch.setattr(decoding.StretchReader, "_packets", too_few)
    pictures = [*Clip(str(path)).read([90])]
    assert not pictures or not np.array_equal(np.frombuffer(pictures[0].rgb, np.uint8).reshape(truth.shape), truth)
