"""A folder of pictures: in the order of their names, each the right one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from holitom_cli.errors import VideoError
from holitom_cli.video import probe, read
from tests import clips


def picture(path: Path, number: int) -> None:
    codec, pix_fmt = ("mjpeg", "yuvj420p") if path.suffix == ".jpg" else ("png", "rgb24")
    paint = clips.draw(number)
    clips.make(path, 1, codec, pix_fmt=pix_fmt, container_options={"update": "1"}, paint=lambda _: paint)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Frames 0 to 11, whose names sort otherwise letter by letter, and what is no picture."""
    place = tmp_path / "pictures"
    place.mkdir()
    for number in range(12):
        picture(place / f"shot {number}.{'jpg' if number % 2 else 'png'}", number)
    (place / "notes.txt").write_text("no picture")
    return place


def test_every_picture_in_order(folder: Path) -> None:
    frames = read(folder, 12)
    assert clips.numbers_in(frames.pixels) == [*range(12)]
    np.testing.assert_array_equal(frames.seconds, np.arange(12))
    assert frames.warnings == ("Pictures have no times: one a second is assumed.",)
    assert clips.numbers_in(read(folder, 4).pixels) == [0, 3, 7, 11]
    info = probe(folder)
    assert (info.container, info.codec, info.frame_count, info.width, info.height) == (
        "folder",
        "pictures",
        12,
        192,
        128,
    )


def test_a_damaged_picture_is_missing_not_its_neighbour(folder: Path) -> None:
    (folder / "shot 5.jpg").write_bytes(b"junk")
    frames = read(folder, 12)
    assert frames.frames_missing == 1
    assert clips.numbers_in(frames.pixels) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert frames.warnings[0] == "1 of 12 frames could not be read; the file seems damaged."
    (folder / "shot 0.png").write_bytes(b"junk")
    with pytest.raises(VideoError, match=r"^shot 0\.png is no picture that can be read\.$"):
        read(folder, 12)


def test_names_are_no_patterns(tmp_path: Path) -> None:
    """A name that FFmpeg would take for a series of files names one file."""
    (tmp_path / "a").mkdir()
    picture(tmp_path / "x.png", 7)
    (tmp_path / "a" / "p%d.png").write_bytes((tmp_path / "x.png").read_bytes())
    picture(tmp_path / "a" / "p1.png", 9)
    frames = read(tmp_path / "a", 2)
    assert (clips.numbers_in(frames.pixels), frames.frames_missing) == ([9, 7], 0)


@pytest.mark.parametrize("ending", ["jpg", "jpeg", "png", "bmp", "tif", "webp"])
def test_pictures_that_pillow_writes(tmp_path: Path, ending: str) -> None:
    """Left to guess, FFmpeg takes a JPEG file that begins with a JFIF header for a series of pictures."""
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (320, 240), colour).save(tmp_path / f"shot {number}.{ending}")
    (tmp_path / f"._shot 0.{ending}").write_bytes(b"\0\5\x16\7")  # what a Mac leaves beside each file
    frames = read(tmp_path, 2)
    assert frames.frames_missing == 0
    middle = frames.pixels[:, frames.pixels.shape[1] // 2, frames.pixels.shape[2] // 2]
    np.testing.assert_allclose(middle, [[255, 0, 0], [0, 0, 255]], atol=6)


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_pictures_are_turned_as_their_exif_data_says(tmp_path: Path, number: int, ending: str) -> None:
    """Four corners of four colours, as Pillow turns them."""
    upright = Image.new("RGB", (96, 64))
    for place, colour in zip([(0, 0), (48, 0), (0, 32), (48, 32)], ["red", "lime", "blue", "white"], strict=True):
        upright.paste(colour, (*place, place[0] + 48, place[1] + 32))
    exif = Image.Exif()
    exif[0x0112] = number
    upright.save(tmp_path / f"1.{ending}", exif=exif)
    with Image.open(tmp_path / f"1.{ending}") as file:
        expected = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    pixels = read(tmp_path, 1).pixels[0]
    tall, wide = pixels.shape[0] / expected.shape[0], pixels.shape[1] / expected.shape[1]
    for y in (16, expected.shape[0] - 16):
        for x in (16, expected.shape[1] - 16):
            np.testing.assert_allclose(pixels[round(y * tall), round(x * wide)], expected[y, x], atol=40)
