"""Question files, how questions are put, and how answers are judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from holitom_cli import pipeline
from holitom_cli.errors import UsageError
from holitom_cli.model import load_model
from holitom_cli.model.loading import Model
from holitom_cli.model.prefill import prefill
from holitom_cli.model.prompt import prompt_embeds
from holitom_cli.quality import scoring
from holitom_cli.quality.items import FileClip, Item, read_items
from holitom_cli.types import Answer, Choice, Watched
from tests.report.factory import make_answer

CLIP = FileClip("a.mp4", Path("a.mp4"))
ITEM = Item(CLIP, "What falls?", "a book", ("a cup", "a book", "a hat"))


# --- files -----------------------------------------------------------------------------------


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Read one line, or text, as a questions file beside a.mp4."""
    (tmp_path / "a.mp4").touch()

    def call(content: Any, limit: int | None = None) -> list[Item]:
        path = tmp_path / "questions.jsonl"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return read_items(path, limit)

    return call


PLAIN = {"video": "a.mp4", "question": "What falls?", "answer": "a book"}
CHOICE = {**PLAIN, "choices": ["a cup", "a book", "a hat"]}


def test_a_line_becomes_a_question(read: Any, tmp_path: Path) -> None:
    clip = FileClip("a.mp4", tmp_path / "a.mp4")
    assert read(PLAIN) == [Item(clip, "What falls?", "a book")]
    assert read({**CHOICE, "type": "event", "id": 7}) == [
        Item(clip, "What falls?", "a book", ("a cup", "a book", "a hat"), "event")
    ]
    separated = json.dumps({**PLAIN, "question": "What\u2028falls\x85?"}, ensure_ascii=False)
    assert [item.question for item in read(separated)] == ["What\u2028falls\x85?"]
    assert len(read(f"{json.dumps(PLAIN)}\r\n{json.dumps(PLAIN)}\r\n{json.dumps(CHOICE)}")) == 2
    lines = "\ufeff" + "\n\n".join(json.dumps({**PLAIN, "question": str(number)}) for number in range(5))
    assert [item.question for item in read(lines)] == ["0", "1", "2", "3", "4"]
    assert [item.question for item in read(lines, limit=2)] == ["0", "1"]


@pytest.mark.parametrize("answer", ["a book", " a book ", "B", "B.", "(B)", "B) a book", "B. a book", "(B) a book"])
@pytest.mark.parametrize("style", ["{text}", "{letter}. {text}", "({letter}) {text}", "{letter}) {text}"])
def test_answers_may_be_text_or_letter_and_choices_may_have_letters(read: Any, answer: str, style: str) -> None:
    choices = [style.format(letter=letter, text=text) for letter, text in zip("ABC", CHOICE["choices"], strict=True)]
    (item,) = read({**CHOICE, "choices": choices, "answer": answer})
    assert (item.choices, item.answer) == (("a cup", "a book", "a hat"), "a book")


def test_a_choice_that_only_looks_like_a_letter_stays(read: Any) -> None:
    (item,) = read({**CHOICE, "choices": ["B", "A"], "answer": "A"})
    assert (item.choices, item.answer) == (("B", "A"), "A")
    (item,) = read({**CHOICE, "choices": ["A. Turing", "K. Zuse"], "answer": "A. Turing"})
    assert item.choices == ("A. Turing", "K. Zuse")


BAD = [
    ("", "holds no question"),
    ("\n \n", "holds no question"),
    ("what?", "Line 1 of .* is not JSON"),
    (json.dumps(PLAIN) + "\n{", "Line 2 of .* is not JSON"),
    ([1], "is not a JSON object"),
    ({**PLAIN, "video": None}, "no text for 'video'"),
    ({**PLAIN, "question": "  "}, "no text for 'question'"),
    ({**PLAIN, "question": "\ud800"}, "no text for 'question'"),
    ({**PLAIN, "answer": 3}, "no text for 'answer'"),
    ({**PLAIN, "video": "b.mp4"}, "about b.mp4, which is not there"),
    ({**CHOICE, "choices": "a cup"}, "'choices' that are not a list of 2 to 26 texts"),
    ({**CHOICE, "choices": ["a book"]}, "'choices' that are not a list"),
    ({**CHOICE, "choices": ["a book", 2]}, "'choices' that are not a list"),
    ({**CHOICE, "choices": [str(number) for number in range(27)]}, "'choices' that are not a list"),
    ({**CHOICE, "choices": ["a book", "a book "]}, "the same choice twice"),
    ({**CHOICE, "answer": "a dog"}, "the answer 'a dog', which is not one of its choices"),
    ({**CHOICE, "answer": "D"}, "the answer 'D'"),
    ({**PLAIN, "type": ["x"]}, "a 'type' that is not text"),
]


@pytest.mark.parametrize(("content", "said"), BAD)
def test_lines_that_are_no_questions_are_named(read: Any, content: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        read(content)
    assert caught.value.hint


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "film.jsonl").write_bytes(b"\xff\xfe\x00")
    for name in ("none.jsonl", "film.jsonl", "."):
        with pytest.raises(UsageError, match="cannot be read"):
            read_items(tmp_path / name)


# --- asking and judging ----------------------------------------------------------------------


def test_options_are_listed_with_letters_and_the_usual_instruction() -> None:
    assert scoring.prompt_of(ITEM, "letter") == (
        "What falls?\nA. a cup\nB. a book\nC. a hat\nAnswer with the option's letter from the given choices directly."
    )
    assert scoring.prompt_of(ITEM, "words") == scoring.prompt_of(ITEM, "text") == "What falls?"
    assert [list(scoring.choices_of(ITEM, how)) for how in ("letter", "words", "text")] == [
        ["A", "B", "C"], ["a cup", "a book", "a hat"], [],
    ]  # fmt: skip
    assert [scoring.scoring_of(replace(ITEM, choices=()), how) for how in ("letter", "words")] == ["text", "text"]


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("a book", True),
        ("The Book.", True),
        ("  BOOK!\n", True),
        ("a  'book'", True),
        ("books", False),
        ("a book falls", False),
        ("", False),
        ("the", False),
        ("another book", False),
    ],
)
def test_generated_answers_have_to_match_in_words(said: str, right: bool) -> None:
    assert scoring.is_right(ITEM, said, "text") is right


def test_choices_have_to_be_the_very_same() -> None:
    assert scoring.is_right(ITEM, "a book", "words")
    assert not scoring.is_right(ITEM, "book", "words")
    item = replace(ITEM, choices=("no", "No!"), answer="No!")  # alike when normalised
    assert not scoring.is_right(item, "no", "letter")


def test_a_letter_means_its_option() -> None:
    answer = make_answer(text="C", choices=(Choice("A", 0.1), Choice("B", 0.2), Choice("C", 0.7)))
    assert scoring.meant(ITEM, answer, "letter") == "a hat"
    assert scoring.meant(ITEM, make_answer(text="a hat"), "words") == "a hat"


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Model:
    return load_model(str(tiny_checkpoint), device="cpu")


@pytest.fixture(scope="module")
def watched(model: Model, demo_clip: Path) -> Watched:
    return pipeline.watch(model, demo_clip, num_frames=2)


def logits(model: Model, watched: Watched, question: str) -> torch.Tensor:
    """Next-token logits (V,) behind a question."""
    before, after = model.chat.encode(question)
    embeds, span = prompt_embeds(model, before, watched.visual, after)
    reductions = watched.method.reductions(model.checkpoint.depth)
    return prefill(model.language_model, model.lm_head, embeds, span, reductions).logits[0]


def token(model: Model, text: str) -> int:
    first: int = model.chat.tokenizer.encode(text)[0]
    return first


def test_the_letter_with_the_highest_logit_wins(model: Model, watched: Watched) -> None:
    for question in ("What falls?", "Who is it?", "Where?", "Is it red?"):
        item = replace(ITEM, question=question)
        answer = scoring.put(model, watched, item, "letter", 5)
        found = logits(model, watched, scoring.prompt_of(item, "letter"))
        best = max("ABC", key=lambda letter: float(found[token(model, letter)]))
        assert answer.text == best
        assert answer.tokens.generated == 0


def test_other_ways_ask_the_question_itself(model: Model, watched: Watched) -> None:
    words: Answer = scoring.put(model, watched, replace(ITEM, choices=("cup", "book", "hat")), "words", 5)
    found = logits(model, watched, "What falls?")
    assert words.text == max(("cup", "book", "hat"), key=lambda text: float(found[token(model, text)]))
    said = scoring.put(model, watched, ITEM, "text", 5)
    assert said.text == pipeline.ask(model, watched, "What falls?", max_new_tokens=5).text
    assert said.tokens.generated <= 5
    assert not said.choices
