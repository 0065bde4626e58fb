"""Clips as files: what is read back is what was painted, and the questions are those of the world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from holitom_cli import video
from holitom_cli.quality.clips import FILE_SIDE, film, write_clip, write_set
from holitom_cli.quality.draw import draw
from holitom_cli.quality.items import read_items
from holitom_cli.quality.questions import ask_about
from holitom_cli.quality.world import FRAMES, make_clip
from holitom_cli.quality.world import test_seed as seed_of_test

NUMBERS = range(2)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "new", NUMBERS, 4)


def test_a_file_shows_what_was_painted(questions: Path) -> None:
    for number in NUMBERS:
        frames = video.read(questions.parent / f"{number:06d}.mp4", FRAMES)
        assert frames.pixels.shape == (FRAMES, FILE_SIDE, FILE_SIDE, 3)
        assert frames.seconds.tolist() == pytest.approx([frame / 16 for frame in range(FRAMES)])
        assert frames.video is not None
        assert frames.video.codec == "h264"
        clip = make_clip(seed_of_test(number))
        clean = draw([clip], side=FILE_SIDE)[0].permute(0, 2, 3, 1).numpy() * 255
        for wanted, bound in ((film(clip), 4.0), (clean, 4.0)):  # of 255
            difference = np.abs(frames.pixels.astype(float) - wanted).mean((1, 2, 3))
            assert difference.max() < bound
        other = film(make_clip(seed_of_test(number + 1)))
        assert np.abs(frames.pixels.astype(float) - other).mean() > 12  # control


def test_a_set_is_made_again_byte_for_byte(questions: Path, tmp_path: Path) -> None:
    again = write_set(tmp_path, NUMBERS, 4)
    for file in [questions, *sorted(questions.parent.glob("*.mp4"))]:
        assert (again.parent / file.name).read_bytes() == file.read_bytes()
    write_clip(tmp_path / "other.mp4", make_clip(seed_of_test(7)))
    assert (tmp_path / "other.mp4").read_bytes() != (tmp_path / "000000.mp4").read_bytes()  # control


def test_the_questions_are_in_the_evaluations_own_format(questions: Path) -> None:
    wanted = [one for number in NUMBERS for one in ask_about(make_clip(seed_of_test(number)), 4, test=True)]
    got = read_items(questions)
    assert [(item.question, item.answer, item.choices, item.kind) for item in got] == [
        (one.text, one.answer, one.choices, one.kind) for one in wanted
    ]
    rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    assert {row["video"] for row in rows} == {"000000.mp4", "000001.mp4"}
    assert set(rows[0]) == {"video", "question", "answer", "choices", "type"}
