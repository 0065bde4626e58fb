"""Pictures, alone or in a folder: in the order of their names, each the right one, upright."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from holitom_cli.errors import VideoError
from holitom_cli.types import Sampling
from holitom_cli.video import probe, read
from tests import clips
from tests.video import exif, heic


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


def test_pictures_of_a_folder_may_be_turned_each_in_its_own_way(tmp_path: Path) -> None:
    """As when a phone was held upright for some of them; the first one has the shape that all get."""
    for number in range(1, 9):
        (tmp_path / f"{number}.jpg").write_bytes(exif.jpeg(number, orientation=number))
    frames = read(tmp_path, 8)
    assert clips.numbers_in(frames.pixels) == [*range(1, 9)]
    assert (frames.frames_missing, frames.pixels.shape) == (0, (8, 128, 192, 3))
    (tmp_path / "0.jpg").write_bytes(exif.jpeg(0, orientation=6, size=(128, 192)))
    assert read(tmp_path, 9).pixels.shape == (9, 192, 128, 3)
    assert clips.numbers_in(read(tmp_path, 9).pixels) == [*range(9)]


def test_control_pictures_that_are_not_turned_are_seen() -> None:
    for number in range(2, 9):
        with Image.open(io.BytesIO(exif.jpeg(9, number))) as stored:
            assert clips.number_in(np.asarray(stored)) != 9


@pytest.mark.parametrize("orientation", range(1, 9))
def test_motion_jpeg_with_exif_data_in_its_frames(tmp_path: Path, orientation: int) -> None:
    path = exif.motion_jpeg(tmp_path / "clip.avi", orientation, range(5))
    frames = read(path, 5)
    assert clips.numbers_in(frames.pixels) == [*range(5)]
    assert (frames.warnings, frames.pixels.shape) == ((), (5, 128, 192, 3))


@pytest.mark.parametrize("name", ["still.jpg", "still.png", "still.bmp", "still.tif", "still.webp", "no_name_for_it"])
def test_one_picture_is_a_clip_of_one_frame(tmp_path: Path, name: str) -> None:
    """Whatever it is called: what kind it is stands in the file."""
    Image.fromarray(clips.draw(5)).save(tmp_path / name, format=None if "." in name else "JPEG", quality=95)
    frames = read(tmp_path / name, 32)
    assert clips.numbers_in(frames.pixels) == [5]
    assert frames.warnings == (
        "The clip has only 1 of the 32 frames that were asked for.",
        "The file is a picture: there is one frame.",
    )
    assert frames.video is not None
    assert frames.video.container == "picture"
    assert read(tmp_path / name, Sampling(at_seconds=(0,))).warnings == ("The file is a picture: there is one frame.",)


def test_a_picture_is_upright_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "still.jpg").write_bytes(exif.jpeg(3, orientation=6))
    assert clips.numbers_in(read(tmp_path / "still.jpg", 1).pixels) == [3]
    (tmp_path / "half.jpg").write_bytes(exif.jpeg(3, orientation=6)[:300])
    with pytest.raises(VideoError, match=r"^half\.jpg is no picture that can be read\.$"):
        read(tmp_path / "half.jpg", 1)


def test_what_stands_behind_a_picture_is_no_other_frame_and_pictures_in_a_row_are_a_clip(tmp_path: Path) -> None:
    left, right = (Image.fromarray(clips.draw(number)) for number in (4, 5))
    left.save(tmp_path / "both.jpg", format="MPO", save_all=True, append_images=[right])
    assert clips.numbers_in(read(tmp_path / "both.jpg", 8).pixels) == [4]
    (tmp_path / "row.mjpeg").write_bytes(b"".join(exif.jpeg(number, 1) for number in range(5)))
    assert clips.numbers_in(read(tmp_path / "row.mjpeg", 8).pixels) == [*range(5)]
    left.save(tmp_path / "moving.png", save_all=True, append_images=[right])
    assert clips.numbers_in(read(tmp_path / "moving.png", 8).pixels) == [4, 5]


@pytest.mark.skipif("libx265" not in av.codecs_available, reason="this FFmpeg has no encoder libx265")
def test_a_tile_of_a_picture_is_not_taken_for_it(tmp_path: Path) -> None:
    """Phones store a HEIC picture in tiles; one that is stored whole is read."""
    paint = clips.draw(5, 256, 256)
    assert clips.numbers_in(read(heic.make(tmp_path / "whole.heic", paint, 1), 4).pixels) == [5]
    with pytest.raises(VideoError, match=r"^tiles\.heic is a picture in tiles, and those are not put together here\.$"):
        read(heic.make(tmp_path / "tiles.heic", paint, 2), 4)


def test_a_film_behind_a_picture_is_left_alone(tmp_path: Path) -> None:
    """As phones store a moment before and after a photograph."""
    film = clips.make(tmp_path / "film.mp4", 12).read_bytes()
    (tmp_path / "still.jpg").write_bytes(exif.jpeg(7, 1) + film)
    assert clips.numbers_in(read(tmp_path / "still.jpg", 4).pixels) == [7]
