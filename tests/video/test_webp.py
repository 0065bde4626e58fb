"""Animated WebP: the right frame at the right time, and files that are damaged or too large."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from holitom_cli.errors import VideoError
from holitom_cli.types import Sampling
from holitom_cli.video import probe, read, webp
from tests import clips

COUNT = 40
DURATIONS_MS = [20 + 13 * (number % 5) for number in range(COUNT)]
STARTS = np.cumsum([0, *DURATIONS_MS[:-1]]) / 1000
HEAD = 12 + 18 + 14  # RIFF, VP8X and ANIM


def make(path: Path, durations_ms: list[int] = DURATIONS_MS, *, lossless: bool = True) -> Path:
    pictures = [Image.fromarray(clips.draw(number)) for number in range(len(durations_ms))]
    pictures[0].save(
        path, format="WEBP", save_all=True, append_images=pictures[1:], duration=durations_ms, lossless=lossless
    )
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("webp") / "clip.webp")


def chunks(content: bytes) -> list[tuple[bytes, int, int]]:
    """Name, begin and end of every chunk."""
    found, place = [], 12
    while place < len(content):
        end = place + 8 + int.from_bytes(content[place + 4 : place + 8], "little")
        found.append((content[place : place + 4], place, end))
        place = end + end % 2
    return found


def frames_in(content: bytes) -> list[tuple[int, int]]:
    return [(begin, end) for name, begin, end in chunks(content) if name == b"ANMF"]


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("asked", [COUNT, 17, 32])
def test_every_frame_at_its_time(tmp_path: Path, asked: int, lossless: bool) -> None:
    frames = read(make(tmp_path / "clip.webp", lossless=lossless), asked)
    assert frames.indices is not None
    assert clips.numbers_in(frames.pixels) == frames.indices.tolist()
    assert frames.indices.tolist() == np.linspace(0, COUNT - 1, asked, dtype=int).tolist()
    np.testing.assert_allclose(frames.seconds, STARTS[frames.indices], atol=1e-9)
    assert (frames.frames_missing, frames.warnings) == (0, ())
    assert (frames.decoder, frames.decoder_reason) == ("pillow", "the only one that reads animated WebP")


def test_pixels_are_those_of_the_file(clip: Path) -> None:
    np.testing.assert_array_equal(read(clip, COUNT).pixels, np.stack([clips.draw(n) for n in range(COUNT)]))


def test_probe_tells_what_was_made(clip: Path) -> None:
    info = probe(clip)
    assert (info.container, info.codec, info.width, info.height) == ("webp", "webp", clips.WIDTH, clips.HEIGHT)
    assert (info.frame_count, info.rotation, info.size_bytes) == (COUNT, 0, clip.stat().st_size)
    assert info.duration_seconds == pytest.approx(sum(DURATIONS_MS) / 1000)
    assert info.frames_per_second == pytest.approx(COUNT / info.duration_seconds)


def test_other_ways_of_sampling(clip: Path) -> None:
    at = read(clip, Sampling(at_seconds=(0.0, STARTS[7], STARTS[8] - 0.002)))
    assert clips.numbers_in(at.pixels) == [0, 7]
    part = read(clip, Sampling(num_frames=5, start_seconds=STARTS[10], end_seconds=STARTS[14]))
    assert clips.numbers_in(part.pixels) == [10, 11, 12, 13, 14]
    keys = read(clip, Sampling(num_frames=3, keyframes=True))
    assert clips.numbers_in(keys.pixels) == [0, 19, 39]
    assert keys.warnings == ("The clip names no key frame, so frames are where they were asked for.",)


def test_frames_that_are_drawn_over_one_another(tmp_path: Path) -> None:
    """Parts of pictures, some of them transparent, are put together; what nothing covers is white."""
    base = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    red, both = base.copy(), base.copy()
    red.paste((255, 0, 0, 255), (0, 0, 32, 64))
    both.paste((255, 0, 0, 255), (0, 0, 32, 64))
    both.paste((0, 0, 255, 255), (48, 16, 64, 48))
    red.save(tmp_path / "a.webp", save_all=True, append_images=[both], duration=100, lossless=True)
    (_, second) = frames_in((tmp_path / "a.webp").read_bytes())
    assert second[1] - second[0] < 200  # the second one holds what is new
    pixels = read(tmp_path / "a.webp", 2).pixels
    assert pixels[1, 32, 8].tolist() == [255, 0, 0]
    assert pixels[1, 32, 56].tolist() == [0, 0, 255]
    assert pixels[0, 32, 56].tolist() == [255, 255, 255]


@pytest.mark.parametrize("name", ["clip.mp4", "clip", "clip.gif"])
def test_the_content_decides_not_the_name(clip: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(clip.read_bytes())
    assert clips.numbers_in(read(tmp_path / name, 3).pixels) == [0, 19, 39]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_cut_off_is_answered_from_what_is_there(clip: Path, tmp_path: Path, share: float) -> None:
    content = clip.read_bytes()
    (tmp_path / "cut.webp").write_bytes(content[: int(len(content) * share)])
    left = sum(end <= int(len(content) * share) for _, end in frames_in(content))
    frames = read(tmp_path / "cut.webp", COUNT)
    assert 0 < left < COUNT
    assert clips.numbers_in(frames.pixels) == [*range(left)]
    assert "The file ends inside a frame; it seems cut off." in frames.warnings


def test_cut_off_before_the_first_frame_ends(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.webp").write_bytes(clip.read_bytes()[: HEAD + 20])
    with pytest.raises(VideoError, match=r"^cut\.webp holds no whole frame\.$"):
        probe(tmp_path / "cut.webp")


def test_a_damaged_frame_and_those_drawn_over_it_are_missing(clip: Path, tmp_path: Path) -> None:
    content = bytearray(clip.read_bytes())
    begin, end = frames_in(bytes(content))[10]
    content[begin + 44 : end] = bytes(end - begin - 44)  # behind the headers of the frame and of its picture
    (tmp_path / "damaged.webp").write_bytes(content)
    frames = read(tmp_path / "damaged.webp", COUNT)
    assert clips.numbers_in(frames.pixels) == [*range(10)]
    assert frames.frames_missing == COUNT - 10
    assert frames.warnings[0] == "30 of 40 frames could not be read; the file seems damaged."


def test_a_canvas_that_would_fill_the_memory(clip: Path, tmp_path: Path) -> None:
    content = bytearray(clip.read_bytes())
    content[24:30] = b"\xff\xff\x00\xff\xff\x00"  # 65,536 in either direction
    (tmp_path / "bomb.webp").write_bytes(content)
    with pytest.raises(
        VideoError, match=r"^bomb\.webp has pictures of 65,536 x 65,536 pixels; 100 million is the most"
    ):
        probe(tmp_path / "bomb.webp")


def test_no_duration_at_all(tmp_path: Path) -> None:
    """Frames that are shown for no time are there all the same."""
    path = make(tmp_path / "quick.webp", [0] * 6)
    info, frames = probe(path), read(path, 6)
    assert (info.duration_seconds, info.frames_per_second) == (0.0, 0.0)
    assert clips.numbers_in(frames.pixels) == [*range(6)]
    assert frames.seconds.tolist() == [0.0] * 6


def test_numbers_that_the_decoder_does_not_share_are_not_trusted(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    animation = webp.Animation(str(clip))
    contents = animation._contents
    animation._contents = contents._replace(durations_ms=contents.durations_ms[1:])
    with pytest.raises(ValueError, match="counts other frames"):
        list(animation.read([0]))
