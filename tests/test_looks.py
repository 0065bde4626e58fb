"""Which things a question is about, and in how many frames they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holitom_cli.quality.questions import ask_about
from holitom_cli.quality.shapes import ShapesClip
from holitom_cli.quality.world import Clip, Thing
from tests import looks


def thing(shape: str, colour: str, enter: int, leave: int) -> Thing:
    return Thing(shape, colour, 0.1, (0.5, 0.5), "still", 0.0, enter, leave)


BRIEF, LONG = thing("star", "red", 5, 8), thing("ring", "blue", 3, 13)
CLIP = Clip(0, (), (BRIEF, LONG))


def test_questions_are_about_what_their_answers_are_about() -> None:
    number_of = {"order": 2, "faster": 2}
    kinds = set()
    for index in range(60):
        clip = ShapesClip(0, index).world
        for question in ask_about(clip, 100, test=True):
            things = looks.asked_about(clip, question.kind, question.text)
            kinds.add(question.kind)
            if question.kind == "count":
                assert len(things) == ("one", "two", "three", "four").index(question.answer) + 1
            elif question.kind == "present":
                assert len(things) == (question.answer == "yes")
            else:
                assert len(things) == number_of.get(question.kind, 1), question
            if question.kind == "colour":
                assert things[0].colour == question.answer
            if question.kind in {"shape", "order", "faster"}:
                assert question.answer in [one.shape for one in things]
    assert len(kinds) == 12


@pytest.mark.parametrize(
    ("frames", "expected"), [([0, 4, 8], (0, 0)), ([0, 5, 12], (1, 1)), ([5, 6, 7, 12], (2, 2)), ([4, 8], (0, 0))]
)
def test_the_thing_that_is_shown_least_counts(frames: list[int], expected: tuple[int, int]) -> None:
    assert (looks.looks([BRIEF], frames), looks.looks([LONG, BRIEF], frames)) == expected


def test_nothing_that_is_there_is_shown_by_no_number_of_frames() -> None:
    assert looks.asked_about(CLIP, "present", "Is there a red ring?") == []
    assert looks.looks([], [0, 4]) is None


def test_the_table_parts_the_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = ShapesClip(0, 3)
    questions = ask_about(clip.world, 5, test=True)
    rows = [
        {
            "key": one.text, "video": clip.name, "question": one.text, "type": one.kind, "correct": number != 1,
            "method": "dycoke", "budget": 25,
        }
        for number, one in enumerate(questions)
    ]  # fmt: skip
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    every = ",".join(map(str, range(32)))
    looks.main([str(tmp_path / "answers.jsonl"), "--frames", every])
    *_, seen = capsys.readouterr().out.splitlines()
    assert seen.startswith("| `dycoke` | 25 | 80.0% of 5 | – | ")  # every frame: nothing is shown by none
    looks.main([str(tmp_path / "answers.jsonl"), "--frames", "99"])
    *_, unseen = capsys.readouterr().out.splitlines()
    assert unseen.startswith("| `dycoke` | 25 | 80.0% of 5 | ")
    assert unseen.split(" | ")[4:6] == ["–", "–"]  # control: no frame shows anything
