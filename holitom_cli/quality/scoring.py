"""How an answer is got and judged: by option letter, by choice, or by its own words."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from holitom_cli import pipeline
from holitom_cli.quality.items import LETTERS, Item

if TYPE_CHECKING:
    from holitom_cli.model.loading import Model
    from holitom_cli.types import Answer, Watched

Scoring = Literal["letter", "words", "text"]

# The wording that LLaVA was trained with (arXiv 2310.03744) and that its benchmark runs use.
INSTRUCTION = "Answer with the option's letter from the given choices directly."
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def scoring_of(item: Item, wanted: Scoring) -> Scoring:
    """How a question is scored: one without choices by the text of its answer, whatever is wanted."""
    return wanted if item.choices else "text"


def prompt_of(item: Item, scoring: Scoring) -> str:
    """The question as the model gets it; for letters with the options below it, one a line."""
    if scoring != "letter":
        return item.question
    options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices, strict=False)]
    return "\n".join([item.question, *options, INSTRUCTION])


def choices_of(item: Item, scoring: Scoring) -> Sequence[str]:
    """What the model chooses from; nothing where it generates its answer."""
    return {"letter": LETTERS[: len(item.choices)], "words": item.choices, "text": ()}[scoring]


def put(model: Model, watched: Watched, item: Item, scoring: Scoring, max_new_tokens: int) -> Answer:
    """Ask a question. Letters: the option whose letter has the highest next-token logit among the letters."""
    question, choices = prompt_of(item, scoring), choices_of(item, scoring)
    if choices:
        return pipeline.choose(model, watched, question, choices)
    return pipeline.ask(model, watched, question, max_new_tokens=max_new_tokens)


def meant(item: Item, answer: Answer, scoring: Scoring) -> str:
    """The answer in words: for a letter its option."""
    return item.choices[LETTERS.index(answer.text)] if scoring == "letter" else answer.text


def is_right(item: Item, words: str, scoring: Scoring) -> bool:
    """Whether the answer is the right one: for a text, the same words after normalising."""
    return normalised(words) == normalised(item.answer) if scoring == "text" else words == item.answer


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous space (as in SQuAD, arXiv 1606.05250)."""
    plain = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())
