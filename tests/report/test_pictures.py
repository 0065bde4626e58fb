"""Pictures with what was kept drawn over: each pixel is what the overlay says, files can be read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from holitom_cli import video
from holitom_cli.report.overlay import Fate, colour, kept, looked_at
from holitom_cli.report.pictures import (
    DIMMED,
    TINTED,
    VEIL,
    contact_sheet,
    drawn,
    moments,
    shrinker,
    write_clip,
    write_contact_sheet,
    write_overlays,
)
from tests.report.conftest import FRAMES, GRID, SIDE, Known


def inner(y: int, x: int) -> tuple[slice, slice]:
    """Pixels of a cell that neither a border nor the dot in the middle touches."""
    top, left = (round(place * SIDE / GRID) for place in (y, x))
    return slice(top + 4, top + 8), slice(left + 4, left + 8)


@pytest.mark.parametrize(
    ("frame", "inside", "fates"),
    [
        (0, False, {Fate.MERGED, Fate.KEPT, Fate.DROPPED}),
        (FRAMES - 1, False, {Fate.MERGED, Fate.KEPT, Fate.DROPPED}),
        (FRAMES - 1, True, {Fate.FOLDED, Fate.KEPT, Fate.DROPPED}),
    ],
)
def test_every_patch_looks_as_it_fared(known: Known, frame: int, inside: bool, fates: set[Fate]) -> None:
    overlay = looked_at(known.answers[0]) if inside else kept(known.answers[0].visual)
    assert overlay is not None
    picture = known.pictures.pixels[frame]
    image = np.asarray(drawn(picture, overlay, frame)).astype(float)
    seen = set()
    for y, x in np.ndindex(GRID, GRID):
        fate, before = Fate(int(overlay.fate[frame, y, x])), picture[inner(y, x)].astype(float)
        wanted = before
        if fate in DIMMED:
            wanted = before + (np.array(VEIL) - before) * DIMMED[fate]
        elif fate == Fate.MERGED:
            wanted = before + (np.array(colour(int(overlay.token[frame, y, x]))) - before) * TINTED
        assert np.abs(image[inner(y, x)] - wanted).max() <= 2
        seen.add(fate)
    assert seen == fates


def test_merged_groups_are_outlined_and_have_a_dot_where_they_stand(known: Known) -> None:
    overlay = kept(known.answers[0].visual)
    image = np.asarray(drawn(np.zeros((SIDE, SIDE, 3), np.uint8), overlay, 0))
    y, x = np.argwhere(overlay.stands[0])[0]
    middle = (round((y + 0.5) * SIDE / GRID), round((x + 0.5) * SIDE / GRID))
    assert image[middle].tolist() == [255, 255, 255]
    left = overlay.token[0][:, :-1] != overlay.token[0][:, 1:]
    y, x = np.argwhere(left)[0]
    edge = round((x + 1) * SIDE / GRID)
    assert image[inner(y, x)[0], edge].tolist() == [[255, 255, 255]] * 4


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def test_the_picture_itself_is_left_alone(known: Known) -> None:
    before = known.pictures.pixels[0].copy()
    drawn(known.pictures.pixels[0], kept(known.answers[0].visual), 0)
    assert (known.pictures.pixels[0] == before).all()


@pytest.mark.parametrize(
    ("shape", "wanted"), [((360, 640), (180, 320)), ((640, 360), (320, 180)), ((50, 40), (50, 40))]
)
def test_pictures_are_made_smaller_and_never_larger(shape: tuple[int, int], wanted: tuple[int, int]) -> None:
    turned = np.zeros((*shape[::-1], 3), np.uint8).transpose(1, 0, 2)  # a view, as of a turned frame
    assert shrinker(320)(turned).shape == (*wanted, 3)


def test_a_picture_a_frame_and_more_for_each_question(known: Known, tmp_path: Path) -> None:
    write_overlays(known.answers, known.pictures, tmp_path / "new" / "folder")
    names = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    starts = ["frame", "question-1-frame", "question-2-frame"]
    assert names == sorted(f"{start}-{number}.png" for start in starts for number in range(1, FRAMES + 1))
    with Image.open(tmp_path / "new" / "folder" / "frame-2.png") as image:
        assert same(image, drawn(known.pictures.pixels[1], kept(known.answers[0].visual), 1))


def test_contact_sheet_shows_every_frame_in_order(known: Known, tmp_path: Path) -> None:
    write_contact_sheet(known.answers[0], known.pictures, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as file:
        assert same(file, contact_sheet(known.answers[0], known.pictures))
        sheet = np.asarray(file)
    overlay, side = kept(known.answers[0].visual), 320
    for number in range(FRAMES):  # three columns, as the root of eight is nearly three
        top, left = 8 + number // 3 * (side + 22 + 8), 8 + number % 3 * (side + 8)
        small = drawn(shrinker(side)(known.pictures.pixels[number]), overlay, number)
        assert np.array_equal(sheet[top : top + side, left : left + side], np.asarray(small))
        label = sheet[top + side + 3 : top + side + 20, left : left + 100]
        assert (label < 128).any()
    assert (sheet[-200:, -200:] == 255).all()  # the ninth place is empty


def test_clip_of_overlays_is_as_long_as_the_clip(known: Known, tmp_path: Path) -> None:
    write_clip(known.answers[0], known.pictures, tmp_path / "out.mp4")
    back = video.read(tmp_path / "out.mp4", FRAMES + 1)
    assert back.seconds.tolist() == pytest.approx([number / 4 for number in range(FRAMES + 1)], abs=0.002)
    overlay = kept(known.answers[0].visual)
    for number in (0, 1, FRAMES - 1):
        shown = drawn(known.pictures.pixels[number], overlay, number)
        far = [np.abs(back.pixels[number].astype(int) - np.asarray(shown)).mean()]
        far += [np.abs(back.pixels[number].astype(int) - known.pictures.pixels[number]).mean()]  # control
        assert far[0] < 12 < far[1]


def test_long_pauses_are_shortened() -> None:
    assert moments([0.0, 0.5, 60.0, 60.25]) == [0.0, 0.5, 1.5, 1.75, 2.0]
    assert moments([3.0]) == [0.0, 1.0]
