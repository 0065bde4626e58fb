"""Batches to train on: clips, and questions about them laid out behind the video one after another."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from string import ascii_lowercase
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from holitom_cli.quality.checkpoint import CHAT_TEMPLATE, build_tokenizer
from holitom_cli.quality.draw import Sketch, sketch
from holitom_cli.quality.questions import ANSWERS, OPENINGS, WORDINGS, ask_about
from holitom_cli.quality.targets import IGNORED
from holitom_cli.quality.world import make_clip, test_seed, train_seed

_QUESTION_TOKENS = 24  # room for a question with its answer and the words of the chat template
_LONGEST_NONSENSE = 8  # words
_GAP = "?question?"  # where a question goes in the chat template


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the run does."""

    minutes: float
    tower_minutes: float
    clips: int = 64  # in a step
    questions: int = 16  # about each clip, at most
    frames: int = 1024  # in a step of the tower's own task
    rate: float = 1e-3
    workers: int = 12
    seed: int = 0


class Batch(NamedTuple):
    """Clips and what is asked about them; B clips, T text tokens."""

    sketch: Sketch
    ids: Tensor  # (B, T) questions and answers, one after another
    segment: Tensor  # (B, T) which question a token belongs to, from 1; 0 = padding
    place: Tensor  # (B, T) position behind the video
    target: Tensor  # (B, T) the token to predict here, where it belongs to an answer
    kinds: list[list[str]]  # of the questions of every clip


def words_of_questions() -> list[str]:
    """Every word that questions and answers use."""
    text = " ".join((*OPENINGS, *(wording for wordings in WORDINGS.values() for wording in wordings)))
    for name in ("thing", "shape", "colour", "one", "other"):
        text = text.replace("{" + name + "}", name)
    plain = "".join(letter if letter.isalpha() else " " for letter in text)
    words = {word for part in plain.split() for word in (part, part.lower())}
    return sorted(words | {word for answer in ANSWERS for word in answer.split()})


def nonsense(words: list[str], dice: random.Random) -> tuple[str, str]:
    """A question that means nothing in the small world, and one of the world's answers.

    Outside the world no answer is right; without these, the model would not know where to end a wrong one.
    """
    made_up = ["".join(dice.choices(ascii_lowercase, k=dice.randint(1, 9))) for _ in range(_LONGEST_NONSENSE)]
    text = " ".join(dice.choices([*dice.sample(words, _LONGEST_NONSENSE), *made_up], k=dice.randint(1, 8)))
    return f"{text}?", dice.choice(ANSWERS)


class Writer:
    """Turns clips into batches, with the words that training or testing uses."""

    def __init__(self, recipe: Recipe, *, test: bool = False) -> None:
        self.recipe, self.test = recipe, test
        self.spoken = words_of_questions()
        self.words = build_tokenizer(self.spoken, sorted({answer.split()[0] for answer in ANSWERS}))
        self.end = self.words.eos_token_id
        self.room = recipe.questions * _QUESTION_TOKENS  # text tokens of a clip
        content = [{"type": "video"}, {"type": "text", "text": _GAP}]
        text = self.words.apply_chat_template(
            [{"role": "user", "content": content}],  # type: ignore[arg-type]  # typed for plain texts alone
            chat_template=CHAT_TEMPLATE,
            add_generation_prompt=True,
            tokenize=False,
        )
        before, _, after = str(text).partition("<video>")
        self.before = self._encode(before)  # text tokens before the video
        self._around = after.split(_GAP)

    def batch(self, numbers: list[int]) -> Batch:
        """The clips with these numbers."""
        seed = test_seed if self.test else train_seed
        clips = [make_clip(seed(number)) for number in numbers]
        rows, kinds = [], []
        for clip in clips:
            asked = ask_about(clip, self.recipe.questions, test=self.test)
            pairs = [(question.text, question.answer) for question in asked]
            stray = [] if self.test else [nonsense(self.spoken, random.Random(clip.seed))]
            row, kept = self._row(pairs, stray)
            rows.append(row)
            kinds.append([question.kind for question in asked[:kept]])
        ids, segment, place, target = torch.tensor(rows).unbind(1)
        return Batch(sketch(clips), ids, segment, place, target, kinds)

    def word(self, name: str) -> int:
        """The one token of a word within a sentence."""
        (one,) = self._encode(f" {name}")
        return one

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.words(text, add_special_tokens=False)["input_ids"]
        return ids

    def _row(self, pairs: list[tuple[str, str]], stray: list[tuple[str, str]]) -> tuple[list[list[int]], int]:
        """Ids, segments, places and targets of one clip, and how many questions fit in.

        Of what is answered to stray questions behind them, everything but the first word is to be learnt.
        """
        ids: list[int] = []
        segment: list[int] = []
        place: list[int] = []
        target: list[int] = []
        for number, (question, answer) in enumerate([*pairs, *stray], 1):
            after = self._encode(question.join(self._around))
            said = [*self._encode(answer), self.end]
            tokens = after + said[:-1]
            if len(ids) + len(tokens) > self.room:
                return self._padded(ids, segment, place, target), min(number - 1, len(pairs))
            ids += tokens
            segment += [number] * len(tokens)
            place += range(len(tokens))
            target += [IGNORED] * (len(after) - 1) + (said if number <= len(pairs) else [IGNORED, *said[1:]])
        return self._padded(ids, segment, place, target), len(pairs)

    def _padded(self, *rows: list[int]) -> list[list[int]]:
        fills = (0, 0, 0, IGNORED)
        return [row + [fill] * (self.room - len(row)) for row, fill in zip(rows, fills, strict=True)]


class Stream(IterableDataset[Batch]):
    """Endless training batches, drawn up by the loader's workers; every clip is seen once."""

    def __init__(self, recipe: Recipe, first: int) -> None:
        self.recipe, self.first = recipe, first

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        writer = Writer(self.recipe)
        number = self.first + worker * self.recipe.clips
        while True:
            yield writer.batch(list(range(number, number + self.recipe.clips)))
            number += workers * self.recipe.clips
