"""Clips that are right and odd: pixels that are no squares, transparent ones, hardly any; late, long and quick ones."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from holitom_cli.errors import VideoError
from holitom_cli.types import Frames, VideoInfo
from holitom_cli.video import probe, read
from tests import clips


def info(frames: Frames) -> VideoInfo:
    assert frames.video is not None
    return frames.video


def shaped(path: Path, shape: Fraction, size: tuple[int, int], rotation: int = 0) -> Path:
    """Numbered frames whose pixels are so many times as wide as high."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.sample_aspect_ratio = shape
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(clips.draw(number, *size), format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("shape", "stored", "shown"),
    [
        (Fraction(2), (96, 128), (192, 128)),
        (Fraction(1, 2), (192, 64), (192, 128)),
        (Fraction(64, 45), (144, 116), (205, 116)),
        (Fraction(100), (96, 128), (96, 128)),  # a mistake
    ],
)
def test_pixels_that_are_no_squares_are_stretched(
    tmp_path: Path, ending: str, shape: Fraction, stored: tuple[int, int], shown: tuple[int, int]
) -> None:
    path = shaped(tmp_path / f"clip.{ending}", shape, stored)
    frames = read(path, 6)
    assert clips.numbers_in(frames.pixels) == [*range(6)]
    assert frames.pixels.shape[1:3] == shown[::-1]
    assert (probe(path).width, probe(path).height) == shown
    if shown != stored:
        with pytest.raises(VideoError, match="gave a picture of shape"):
            read(path, 6, decoder="decord")


def test_stretched_before_it_is_turned(tmp_path: Path) -> None:
    path = shaped(tmp_path / "clip.mp4", Fraction(2), (96, 128), rotation=90)
    assert read(path, 2).pixels.shape == (2, 192, 128, 3)


# name -> codec, pixel format
TRANSPARENT = {
    "clip.mov": ("prores_ks", "yuva444p10le"),
    "clip.mkv": ("ffv1", "bgra"),
    "deep.mkv": ("ffv1", "rgba64le"),
    "clip.png": ("apng", "rgba"),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_places_of_a_clip_are_white(tmp_path: Path, name: str) -> None:
    """The lower half is transparent black; the left of the upper one is red, the right one half transparent."""
    codec, pixels = TRANSPARENT[name]
    picture = np.zeros((128, 192, 4), np.uint8)
    picture[:64] = (255, 0, 0, 255)
    picture[:64, 96:, 3] = 128
    with av.open(str(tmp_path / name), "w", format="apng" if codec == "apng" else None) as container:
        stream = container.add_stream(codec, rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 192, 128, pixels
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format=pixels)))
        container.mux(stream.encode(None))
    for shown in read(tmp_path / name, 3).pixels:
        np.testing.assert_allclose(shown[110, 50], [255, 255, 255], atol=6)
        np.testing.assert_allclose(shown[20, 40], [255, 0, 0], atol=6)
        np.testing.assert_allclose(shown[20, 150], [255, 127, 127], atol=6)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_places_of_a_picture_are_white(tmp_path: Path, mode: str) -> None:
    picture = np.zeros((64, 96, 4), np.uint8)
    picture[:32] = (90, 90, 90, 255)
    image = Image.fromarray(picture)
    (image.quantize(4) if mode == "P" else image.convert(mode)).save(tmp_path / "still.png")
    (pixels,) = read(tmp_path / "still.png", 1).pixels
    np.testing.assert_allclose(pixels[[5, 60], [5, 5]], [[90] * 3, [255] * 3], atol=2)


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "size"),
    [
        ("a.gif", "gif", "rgb8", (1, 1)),
        ("a.mkv", "ffv1", "bgr0", (1, 1)),
        ("a.avi", "png", "rgb24", (1, 1)),
        ("b.avi", "png", "rgb24", (65, 3)),
        ("c.avi", "png", "rgb24", (1, 3000)),
        ("a.mp4", "libx264", "yuv420p", (2, 2)),
        ("b.mkv", "ffv1", "bgr0", (8000, 2)),
    ],
)
def test_hardly_any_pixels(tmp_path: Path, name: str, codec: str, pixels: str, size: tuple[int, int]) -> None:
    grey = np.full((size[1], size[0], 3), 146, np.uint8)
    path = clips.make(tmp_path / name, 3, codec, pix_fmt=pixels, size=size, paint=lambda _: grey)
    frames = read(path, 3)
    assert frames.pixels.shape == (3, size[1], size[0], 3)
    np.testing.assert_allclose(frames.pixels.astype(int), 146, atol=30)  # a GIF has few colours


KINDS: dict[str, dict[str, Any]] = {
    "grey.mkv": {"codec": "ffv1", "pix_fmt": "gray"},
    "deep_grey.mkv": {"codec": "ffv1", "pix_fmt": "gray10le"},
    "grey.mp4": {"pix_fmt": "gray"},
    "all_chroma.mp4": {"pix_fmt": "yuv444p"},
    "deep_chroma.mp4": {"pix_fmt": "yuv444p10le"},
    "primaries.mp4": {"codec": "libx264rgb", "pix_fmt": "rgb24"},
    "quick.mp4": {"rate": 240},
    "a_frame_a_minute.mp4": {"ticks": [60_000 * number for number in range(12)]},
    "a_frame_an_hour.mkv": {"ticks": [3_600_000 * number for number in range(12)]},
    "late.mkv": {"ticks": [5_000 + 40 * number for number in range(12)]},
    "late.mp4": {"ticks": [5_000 + 40 * number for number in range(12)]},
    "late_in_pieces.mkv": {"ticks": [5_000 + 40 * number for number in range(12)], "container_options": {"live": "1"}},
}


@pytest.mark.parametrize("name", KINDS)
def test_odd_kinds(tmp_path: Path, name: str) -> None:
    """Every frame, its time from the first one on, and how long that takes."""
    recipe = KINDS[name]
    frames = read(clips.make(tmp_path / name, 12, **recipe), 12)
    assert clips.numbers_in(frames.pixels) == [*range(12)]
    ticks = recipe.get("ticks", [1000 / recipe.get("rate", 25) * number for number in range(12)])
    seconds = (np.array(ticks) - ticks[0]) / 1000
    np.testing.assert_allclose(frames.seconds, seconds, atol=1e-3)
    assert 0 <= info(frames).duration_seconds - seconds[-1] <= 0.05


def test_what_an_edit_list_cuts_away_is_not_shown(tmp_path: Path) -> None:
    path = clips.make(tmp_path / "cut.mp4", 10, ticks=[100 * number - 500 for number in range(10)], options={"bf": "0"})
    assert clips.numbers_in(read(path, 5).pixels) == [5, 6, 7, 8, 9]
