"""What a maintainer does with a trained run: its card, the choice of a clip, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from holitom_cli import pipeline
from holitom_cli.quality.items import read_items
from tests import bundle_demo
from tests.bundle_demo import bundle, candidates
from tests.make_random_checkpoint import RANDOM
from tests.model_card import Training

LOG: list[dict[str, Any]] = [
    {"seconds": 60.0, "steps": {"tower": 700, "clips": 0}, "stage": "tower", "what": 0.1},
    {"seconds": 900.0, "steps": {"tower": 700, "clips": 2000}, "stage": "test", "accuracy": 0.5, "by_kind": {}},
    {
        "seconds": 1501.0,
        "steps": {"tower": 700, "clips": 4321},
        "stage": "test",
        "questions": 8012,
        "accuracy": 0.9731,
        "by_kind": {"change": 0.96, "when": 0.912},
    },
]
TRAINING = Training("python -m holitom_cli.quality.train run --minutes 25", "one NVIDIA H200")


@dataclass
class Said:
    text: str


class Model:
    """Answers some questions rightly, and the others with nothing."""

    def __init__(self, knows: set[str]) -> None:
        self.knows = knows
        self.watched: list[Path] = []

    def watch(self, _: object, path: Path) -> None:
        self.watched.append(Path(path))

    def ask(self, _: object, __: object, question: str, **___: object) -> Said:
        right = {one.text: one.answer for scene in islice(candidates(), 2) for one in scene.questions}
        return Said(f" {right[question]}" if question in self.knows else "")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What training leaves, with random weights."""
    shutil.copytree(RANDOM, tmp_path / "run" / "checkpoint")
    (tmp_path / "run" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LOG), encoding="utf-8")
    return tmp_path / "run"


def play(monkeypatch: pytest.MonkeyPatch, *known: int, but: int | None = None) -> None:
    """Have a model that knows all about these candidates, but for one question."""
    scenes = list(islice(candidates(), 2))
    texts = [question.text for number in known for question in scenes[number].questions]
    model = Model({text for place, text in enumerate(texts) if place != but})
    monkeypatch.setattr(pipeline, "watch", model.watch)
    monkeypatch.setattr(pipeline, "ask", model.ask)


def test_everything_is_in_its_place(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, 0, 1)
    target = tmp_path / "demo"
    target.mkdir()
    (target / "old.bin").write_bytes(b"of an earlier model")
    bundle(run, target, TRAINING)
    assert not (target / "old.bin").exists()
    assert (target / "model.safetensors").read_bytes() == (RANDOM / "model.safetensors").read_bytes()
    assert (target / "log.jsonl").read_bytes() == (run / "log.jsonl").read_bytes()
    first = next(candidates())
    items = read_items(target / "questions.jsonl")
    assert [(item.question, item.answer, item.kind) for item in items] == [
        (question.text, question.answer, question.kind) for question in first.questions
    ]
    assert {item.clip.name for item in items} == {"shapes.mp4"}
    info = items[0].clip.frames(32, None).video
    assert info is not None
    assert (info.frame_count, info.codec) == (32, "h264")


def test_the_card_says_what_the_log_and_the_configuration_say(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, 0)
    bundle(run, tmp_path / "demo", TRAINING)
    card = " ".join((tmp_path / "demo" / "README.md").read_text(encoding="utf-8").split())
    for part in (
        "license: apache-2.0",
        TRAINING.command,
        "25 minutes on one NVIDIA H200",
        "700 steps of the tower",
        "4,321 of the language model",
        "on 8,012 questions",
        "**97.3%**",
        "| the colour that something turns | 96.0% |",
        "| the part of the clip in which something is there | 91.2% |",
        "Qwen2: 6 layers, 64 wide, 4 heads, 2 key/value heads, 851 tokens",
        "384 x 384 pixels, 27 x 27 patches, pooled to 14 x 14",
        "answers are of no worth",
        "do not rank methods on the published models",
    ):
        assert part in card, part
    assert "{" not in card


def test_a_clip_with_a_wrong_answer_is_passed_over_and_that_is_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, 0, 1, but=2)
    bundle(run, tmp_path / "demo", TRAINING)
    second = list(islice(candidates(), 2))[1]
    asked = [item.question for item in read_items(tmp_path / "demo" / "questions.jsonl")]
    assert asked == [question.text for question in second.questions]
    assert f"test clip {second.number}," in (tmp_path / "demo" / "README.md").read_text(encoding="utf-8")
    assert "(1 passed over before it)" in (tmp_path / "demo" / "README.md").read_text(encoding="utf-8")


def test_every_kind_of_question_has_its_words() -> None:
    from holitom_cli.quality.questions import WORDINGS
    from tests.model_card import _KINDS

    assert set(_KINDS) == set(WORDINGS)


def test_what_is_too_large_or_was_never_tested_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, 0)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "old.bin").write_bytes(b"of an earlier model")
    monkeypatch.setattr(bundle_demo, "MOST_BYTES", 1000)
    with pytest.raises(SystemExit, match="more than 1,000"):
        bundle(run, tmp_path / "demo", TRAINING)
    (run / "log.jsonl").write_text(json.dumps(LOG[0]) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no line of stage 'test'"):
        bundle(run, tmp_path / "demo", TRAINING)
    assert [file.name for file in (tmp_path / "demo").iterdir()] == ["old.bin"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "run"]  # nothing is left beside it


def test_the_rule_holds_for_what_it_finds() -> None:
    for scene in islice(candidates(), 5):
        assert len(scene.clip.cuts) == 1
        assert len(scene.clip.things) >= 3
        assert any(thing.turn for thing in scene.clip.things)
        (brief,) = (thing for thing in scene.clip.things if thing.leave - thing.enter <= 3)
        assert any(brief.name in question.text for question in scene.questions)
        assert len({question.kind for question in scene.questions}) == 6
