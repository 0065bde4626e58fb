"""The built-in set: the same for a seed every time, of every kind of question, apart from training and other seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from holitom_cli.errors import UsageError
from holitom_cli.quality.clips import _NOISE, film, write_clip
from holitom_cli.quality.draw import RGB
from holitom_cli.quality.items import FileClip, Item
from holitom_cli.quality.questions import WORDINGS, ask_about
from holitom_cli.quality.shapes import LARGEST_SEED, PER_CLIP, QUESTIONS, ShapesClip, _painted, shapes
from holitom_cli.quality.world import FRAMES, Clip, train_seed
from holitom_cli.quality.world import test_seed as seed_of_test

if TYPE_CHECKING:
    from holitom_cli.types import ByteArray


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return shapes()


def clips_of(items: list[Item]) -> list[ShapesClip]:
    clips = list(dict.fromkeys(item.clip for item in items))
    assert all(isinstance(clip, ShapesClip) for clip in clips)
    return clips  # type: ignore[return-value]


def test_a_whole_set_has_two_thousand_different_questions_and_a_limit_is_its_beginning(items: list[Item]) -> None:
    assert len(items) == len(set(items)) == QUESTIONS >= 2000
    assert shapes() == items
    assert shapes(limit=300) == items[:300]
    assert shapes(limit=QUESTIONS + 1) == items
    assert shapes(1, 300) != items[:300]  # control
    names = {clip.name for clip in clips_of(items)}
    assert len(names) == len(clips_of(items)) > QUESTIONS / PER_CLIP - 1
    assert len(clips_of(items[:300])) >= 60  # enough videos to draw from for an interval


@pytest.mark.parametrize("limit", [300, QUESTIONS])
@pytest.mark.parametrize("seed", [0, 7])
def test_every_kind_of_question_is_there_in_good_number(seed: int, limit: int) -> None:
    kinds = Counter(item.kind for item in shapes(seed, limit))
    assert set(kinds) == set(WORDINGS)
    assert min(kinds.values()) > limit / 50
    assert max(kinds.values()) < limit / 8
    taken = Counter(
        one.kind for clip in clips_of(shapes(seed, limit)) for one in ask_about(clip.world, PER_CLIP, test=True)
    )
    assert min(taken.values()) < min(kinds.values())  # control: the first questions of each clip are more lopsided


def test_every_question_is_one_about_its_clip_in_words_that_training_never_has(items: list[Item]) -> None:
    for item in items[:200]:
        assert isinstance(item.clip, ShapesClip)
        asked = {(one.text, one.answer, one.choices, one.kind) for one in ask_about(item.clip.world, 100, test=True)}
        assert (item.question, item.answer, item.choices, item.kind) in asked
        assert item.answer in item.choices


def test_sets_share_no_clip_with_each_other_or_with_training() -> None:
    seeds = {seed: [clip.world.seed for clip in clips_of(shapes(seed))] for seed in (0, 1, 2, LARGEST_SEED)}
    everything = [number for numbers in seeds.values() for number in numbers]
    assert len(set(everything)) == len(everything)
    assert min(everything) > max(train_seed(number) for number in (0, 1 << 39, (1 << 40) - 1))
    assert min(everything) > seed_of_test(100_000)  # those that training reports about
    assert max(everything) < 1 << 63
    assert film(clips_of(shapes(LARGEST_SEED, 1))[0].world).shape[0] == FRAMES
    with pytest.raises(UsageError, match=f"Seed {LARGEST_SEED + 1} is too large"):
        shapes(LARGEST_SEED + 1)


def test_frames_are_what_is_painted_with_the_times_of_the_file() -> None:
    clip = ShapesClip(7, 3)
    frames = clip.frames(FRAMES, None)
    assert (frames.pixels == film(clip.world)).all()
    assert frames.seconds.tolist() == [frame / 16 for frame in range(FRAMES)]
    assert len(clip.frames(2 * FRAMES, None)) == FRAMES
    few = clip.frames(5, None)
    assert few.indices is not None
    assert few.indices.tolist() == [0, 7, 15, 23, 31]
    assert (few.pixels == frames.pixels[few.indices]).all()
    assert (few.pixels != frames.pixels[:5]).any()  # control


@pytest.mark.parametrize("number", [FRAMES, 7])
def test_a_file_of_the_clip_shows_the_same_frames_at_the_same_times(tmp_path: Path, number: int) -> None:
    clip = ShapesClip(0, 1)
    write_clip(tmp_path / "clip.mp4", clip.world)
    ours, files = clip.frames(number, None), FileClip("clip.mp4", tmp_path / "clip.mp4").frames(number, None)
    assert files.seconds.tolist() == pytest.approx(ours.seconds.tolist())
    assert files.indices is not None
    assert files.indices.tolist() == ours.indices.tolist()  # type: ignore[union-attr]

    def difference(other: ShapesClip) -> float:
        return float(np.abs(files.pixels.astype(float) - other.frames(number, None).pixels).mean())

    assert difference(clip) < 4  # of 255
    assert difference(replace(clip, index=2)) > 12  # control


@pytest.fixture
def fresh() -> Iterator[None]:
    """No clip is remembered that a test, or the one before, has painted otherwise."""
    _painted.cache_clear()
    yield
    _painted.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_a_clip_is_known_by_what_happens_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {ShapesClip(seed, index).identity() for seed in (0, 1) for index in range(5)}
    assert len(known) == 10
    before = ShapesClip(0, 0).identity()
    assert ShapesClip(0, 0).identity() == before
    other = replace(ShapesClip(0, 0).world, band=(0.1, 0.2, 0.3))
    monkeypatch.setattr("holitom_cli.quality.shapes.make_clip", lambda _: other)
    assert ShapesClip(0, 0).identity() != before  # another version of the world has its own rows


@pytest.mark.parametrize(
    ("detail", "changed"),
    [
        ("draw._LIGHT", 0.2),
        ("draw.RGB", {name: tuple(reversed(colour)) for name, colour in RGB.items()}),
        ("clips._NOISE", 0.02),
        ("clips._NOISE", _NOISE),  # control: the same painter
    ],
)
@pytest.mark.usefixtures("fresh")
def test_a_clip_is_known_by_how_it_is_painted(monkeypatch: pytest.MonkeyPatch, detail: str, changed: object) -> None:
    clip = ShapesClip(0, 0)
    before, happens = clip.identity(), clip.world
    monkeypatch.setattr(f"holitom_cli.quality.{detail}", changed)
    _painted.cache_clear()  # as in another process
    assert clip.world == happens
    assert (clip.identity() == before) is (changed == _NOISE)


@pytest.mark.usefixtures("fresh")
def test_a_clip_is_painted_once_for_its_identity_and_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    painted: list[Clip] = []

    def paint(world: Clip) -> ByteArray:
        painted.append(world)
        return film(world)

    monkeypatch.setattr("holitom_cli.quality.shapes.film", paint)
    clip = ShapesClip(0, 0)
    clip.identity()
    frames = clip.frames(FRAMES, None)
    assert painted == [clip.world]
    frames.pixels[:] = 0  # its own copy
    assert clip.frames(FRAMES, None).pixels.any()
    ShapesClip(0, 1).identity()
    assert len(painted) == 2  # control
