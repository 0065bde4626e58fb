"""Questions with known answers, and the clips that they are about."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Protocol

from holitom_cli import video
from holitom_cli.batch.manifest import clip_identity
from holitom_cli.errors import UsageError, reason
from holitom_cli.types import Frames

LETTERS = ascii_uppercase
_EXAMPLE = 'As in: {"video": "a.mp4", "question": "What falls?", "choices": ["a cup", "a book"], "answer": "a cup"}'


class Footage(Protocol):
    """A clip that questions are about, wherever its frames come from. Equal ones are the same clip."""

    @property
    def name(self) -> str:
        """As rows name it."""

    def identity(self) -> str:
        """What its content is known by."""

    def frames(self, count: int, timeout_seconds: float | None, /) -> Frames:
        """Frames, uniformly sampled: `count`, or all that there are; a decoder may take so long."""


@dataclass(frozen=True, slots=True)
class FileClip:
    """A clip in a file."""

    name: str  # as rows name it
    path: Path

    def identity(self) -> str:
        """What its content is known by."""
        return clip_identity(self.path)

    def frames(self, count: int, timeout_seconds: float | None) -> Frames:
        """Decode frames, uniformly sampled."""
        return video.read(self.path, count, timeout_seconds=timeout_seconds)


@dataclass(frozen=True, slots=True)
class Item:
    """One question and the right answer to it."""

    clip: Footage
    question: str
    answer: str  # one of the choices, where there are some
    choices: tuple[str, ...] = ()
    kind: str = ""  # what sort of question it is


def read_items(path: Path, limit: int | None = None) -> list[Item]:
    """Questions from a file with one JSON object a line: video, question, answer, and optionally choices and type.

    Videos are named relative to the file. Choices may begin with their letters ("A. ..."), and an answer may be the
    letter of its choice. A line that says the same as another counts once.

    Args:
        path: of the file, UTF-8.
        limit: read the first so many lines only.

    Raises:
        UsageError: the file cannot be read, holds no question, or a line is not a question about a file that exists.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # a string of JSON may hold other ends of line
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The questions in {path} cannot be read: {reason(error)}.", _EXAMPLE) from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UsageError(f"{path} holds no question.", _EXAMPLE)
    return list(dict.fromkeys(_item(path, number, line) for number, line in numbered[:limit]))


def _item(path: Path, number: int, line: str) -> Item:
    try:
        entry = json.loads(line)
        complaint = next(_complaints(entry), None)
    except ValueError:
        complaint = "is not JSON"
    if complaint is not None:
        raise UsageError(f"Line {number} of {path} {complaint}.", _EXAMPLE)
    clip = FileClip(entry["video"], path.parent / entry["video"])
    if not clip.path.is_file():
        raise UsageError(
            f"Line {number} of {path} is about {clip.name}, which is not there.", "Name videos relative to that file."
        )
    choices = _without_letters([choice.strip() for choice in entry.get("choices") or []])
    answer = _right_choice(entry["answer"], choices) if choices else entry["answer"].strip()
    if answer is None:
        raise UsageError(
            f"Line {number} of {path} has the answer {entry['answer']!r}, which is not one of its choices.", _EXAMPLE
        )
    return Item(clip, entry["question"], answer, choices, entry.get("type") or "")


def _complaints(entry: Any) -> Iterator[str]:
    """What keeps a parsed line from being a question."""
    if not isinstance(entry, dict):
        yield "is not a JSON object"
        return
    for key in ("video", "question", "answer"):
        if not _is_text(entry.get(key)):
            yield f"has no text for {key!r}"
    choices = entry.get("choices") or []
    if not (isinstance(choices, list) and all(map(_is_text, choices)) and len(choices) in {0, *range(2, 27)}):
        yield "has 'choices' that are not a list of 2 to 26 texts"
    elif len({choice.strip() for choice in choices}) < len(choices):
        yield "has the same choice twice"
    if not isinstance(entry.get("type") or "", str):
        yield "has a 'type' that is not text"


def _is_text(value: Any) -> bool:
    """Whether it is text that says something and can be written: JSON may hold half a surrogate pair."""
    return isinstance(value, str) and bool(value.strip()) and value.encode("utf-8", "ignore").decode() == value


def _without_letters(choices: Sequence[str]) -> tuple[str, ...]:
    """The choices without "A. ", "(B) " in front, where every one has its own letter."""
    bare = [
        re.fullmatch(rf"\(?{letter}[.):]\s*(\S.*)", choice, re.DOTALL)
        for letter, choice in zip(LETTERS, choices, strict=False)
    ]
    return tuple(match[1] for match in bare if match) if all(bare) else tuple(choices)


def _right_choice(answer: str, choices: Sequence[str]) -> str | None:
    """The choice that an answer means by its text, with or without letter, or by its letter alone."""
    answer = answer.strip()
    if answer in choices:
        return answer
    for letter, choice in zip(LETTERS, choices, strict=False):
        if re.fullmatch(rf"\(?{letter}[.):]?(\s*{re.escape(choice)})?", answer):
            return choice
    return None
