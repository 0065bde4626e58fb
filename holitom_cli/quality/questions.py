"""Questions about a clip of the small world, and their answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, islice, pairwise, zip_longest
from typing import NamedTuple

from holitom_cli.quality.world import COLOURS, DIRECTIONS, FRAMES, SHAPES, Clip, Thing

THIRDS = ("beginning", "middle", "end")
_CORNERS = ("top left", "top right", "bottom left", "bottom right")
_NUMBERS = ("one", "two", "three", "four")
_MOVES = tuple(direction for direction in DIRECTIONS if direction != "still")
ANSWERS = (*SHAPES, *COLOURS, *_MOVES, *_CORNERS, *_NUMBERS, *THIRDS, "yes", "no")  # all that there are
_CLEAR = 2  # frames from a border between thirds, so that no answer hangs on one frame
_COMMON = ("colour", "count", "present", "shape")  # kinds that most clips allow: the others are asked first
_HELD_OUT = 2  # wordings of every kind that training never sees


@dataclass(frozen=True, slots=True)
class Question:
    """One question with one right answer among `choices`."""

    kind: str
    text: str
    answer: str
    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Fact:
    """What a question can be made of: a kind, the words for its gaps, the answer and what else it might have been."""

    kind: str
    words: dict[str, str]
    answer: str
    choices: tuple[str, ...]


# Half of the training questions begin with one, so that a wording is more than its first words.
OPENINGS = ("In this video:", "Look at the video.", "A question:", "Please tell me.", "About what you see:", "Now:")
_BEFORE_CLAUSES = ("Tell me {}.", "Can you tell me {}?", "Say {}.", "I want to know {}.", "Do you know {}?")
_BEFORE_NAMES = ("Tell me {}.", "Can you tell me {}?", "Name {}.", "What is {}?", "I want to know {}.")


class _Ways(NamedTuple):
    """Ways to ask one kind of question."""

    questions: tuple[str, ...]
    clauses: tuple[str, ...]  # "Can you tell me ..."
    names: tuple[str, ...]  # "What is ..."
    tests: tuple[str, str]  # wordings that training never sees

    def training(self) -> tuple[str, ...]:
        """Every wording for training."""
        clauses = [lead.format(clause) for clause in self.clauses for lead in _BEFORE_CLAUSES]
        names = [lead.format(name) for name in self.names for lead in _BEFORE_NAMES]
        return tuple(way for way in (*self.questions, *clauses, *names) if way not in self.tests)


_WAYS = {
    "colour": _Ways(
        (
            "What colour is the {shape}?",
            "Which colour does the {shape} have?",
            "What colour does the {shape} have?",
            "Which colour is the {shape}?",
            "The {shape} is of what colour?",
            "The colour of the {shape} is what?",
            "In what colour is the {shape}?",
        ),
        ("which colour the {shape} is", "what colour the {shape} has", "of what colour the {shape} is"),
        ("the colour of the {shape}", "the colour that the {shape} has"),
        ("Name the colour of the {shape}.", "What is the colour of the {shape}?"),
    ),
    "shape": _Ways(
        (
            "What shape is the {colour} thing?",
            "Which shape does the {colour} object have?",
            "What is the {colour} thing?",
            "What is the {colour} object?",
            "Of what shape is the {colour} object?",
            "The {colour} thing is of which shape?",
            "The {colour} thing has what shape?",
            "Which shape is {colour}?",
        ),
        ("what the {colour} thing is", "which shape is {colour}", "what shape the {colour} object has"),
        ("the {colour} shape", "the shape of the {colour} thing", "the shape of the {colour} object"),
        ("The {colour} object has which shape?", "Tell me the shape of the {colour} thing."),
    ),
    "count": _Ways(
        (
            "How many shapes appear in the video?",
            "How many things can be seen in all?",
            "How many shapes are there in all?",
            "How many objects can you see in the video?",
            "How many things are in the video?",
            "How many objects are there?",
            "How many things appear in all?",
            "How many shapes can be seen?",
            "Count the shapes in the video.",
            "Count the things that can be seen.",
            "Count all objects that appear.",
        ),
        ("how many things appear", "how many shapes there are in the video", "how many objects can be seen in all"),
        ("the number of shapes in the video", "the number of objects that appear", "the number of things in all"),
        ("How many objects appear in all?", "Tell me the number of things that can be seen."),
    ),
    "direction": _Ways(
        (
            "Which way does the {thing} move?",
            "In which direction does the {thing} go?",
            "Where is the {thing} moving to?",
            "The {thing} moves in what direction?",
            "The {thing} goes which way?",
            "What direction does the {thing} take?",
            "Which way is the {thing} going?",
        ),
        (
            "which way the {thing} moves",
            "in which direction the {thing} goes",
            "where the {thing} goes",
            "which way the {thing} is going",
        ),
        ("the direction in which the {thing} moves", "the direction of the {thing}", "the way that the {thing} goes"),
        ("What is the direction of the {thing}?", "Tell me which way the {thing} goes."),
    ),
    "order": _Ways(
        (
            "What appears first, the {one} or the {other}?",
            "Which comes first, the {one} or the {other}?",
            "Is it the {one} or the {other} that appears first?",
            "Of the {one} and the {other}, which appears first?",
            "Which appears before the other, the {one} or the {other}?",
            "First the {one} or first the {other}?",
            "The {one} or the {other}: which appears first?",
            "Which do you see first, the {one} or the {other}?",
        ),
        (
            "what appears first, the {one} or the {other}",
            "which can be seen first, the {one} or the {other}",
            "whether the {one} or the {other} comes first",
        ),
        ("the first to appear, the {one} or the {other}",),
        ("Which can be seen first, the {one} or the {other}?", "The {one} or the {other}: what comes first?"),
    ),
    "when": _Ways(
        (
            "When does the {thing} appear: at the beginning, in the middle or at the end?",
            "Is the {thing} there at the beginning, in the middle or at the end?",
            "In which part of the video is the {thing}: beginning, middle or end?",
            "When can the {thing} be seen: beginning, middle or end?",
            "At which time is the {thing} in the video: beginning, middle or end?",
            "Does the {thing} appear at the beginning, in the middle or at the end?",
            "Beginning, middle or end: in which part is the {thing}?",
            "At the beginning, in the middle or at the end: at what time does the {thing} appear?",
        ),
        (
            "when the {thing} appears: beginning, middle or end",
            "in which part of the video the {thing} is: beginning, middle or end",
            "whether the {thing} is there at the beginning, in the middle or at the end",
        ),
        ("the part of the video that has the {thing}: beginning, middle or end",),
        (
            "At the beginning, in the middle or at the end: when is the {thing} there?",
            "Which part of the video has the {thing}: beginning, middle or end?",
        ),
    ),
    "where": _Ways(
        (
            "Where is the {thing}?",
            "In which corner is the {thing}?",
            "Where in the picture is the {thing}?",
            "The {thing} is in which corner?",
            "In what part of the picture is the {thing}?",
            "Where can the {thing} be seen?",
            "Which corner is the {thing} in?",
            "Which part of the picture has the {thing}?",
        ),
        (
            "in which corner the {thing} is",
            "where in the picture the {thing} can be seen",
            "where the {thing} is",
            "which corner the {thing} is in",
        ),
        ("the corner of the {thing}", "the place of the {thing}", "the corner that has the {thing}"),
        ("Tell me where the {thing} is.", "Which corner of the picture has the {thing}?"),
    ),
    "faster": _Ways(
        (
            "Which is faster, the {one} or the {other}?",
            "What moves faster, the {one} or the {other}?",
            "Of the {one} and the {other}, which is faster?",
            "Is it the {one} or the {other} that moves faster?",
            "Which has the higher speed, the {one} or the {other}?",
            "The {one} or the {other}: which moves faster?",
            "Faster is which of the two, the {one} or the {other}?",
        ),
        (
            "which is faster, the {one} or the {other}",
            "what moves faster, the {one} or the {other}",
            "whether the {one} or the {other} is faster",
        ),
        ("the faster of the two, the {one} or the {other}",),
        ("Which moves faster, the {one} or the {other}?", "The {one} or the {other}: what is faster?"),
    ),
    "change": _Ways(
        (
            "What colour does the {shape} become?",
            "Which colour does the {shape} change to?",
            "The {shape} changes its colour to what?",
            "To what colour does the {shape} turn?",
            "Which colour does the {shape} turn?",
            "Which colour is the {shape} at the end?",
            "What colour does the {shape} have after the change?",
        ),
        ("which colour the {shape} turns", "what colour the {shape} becomes", "to what colour the {shape} changes"),
        (
            "the other colour of the {shape}, after the change",
            "the colour that the {shape} turns",
            "the colour that the {shape} changes to",
        ),
        ("What colour does the {shape} turn?", "Tell me the colour that the {shape} changes to."),
    ),
    "present": _Ways(
        (
            "Is there a {thing}?",
            "Does a {thing} appear in the video?",
            "Can a {thing} be seen?",
            "Does the video have a {thing}?",
            "Is there a {thing} to be seen in the video?",
            "Do you see a {thing}?",
            "Is a {thing} there?",
            "Can you find a {thing}?",
        ),
        (
            "whether there is a {thing}",
            "whether a {thing} appears",
            "whether you can see a {thing}",
            "whether a {thing} is in the video",
        ),
        (),
        ("Is a {thing} in the video?", "Can you see a {thing}?"),
    ),
    "happened": _Ways(
        (
            "Does the {shape} change its colour?",
            "Does the colour of the {shape} change?",
            "Is there a change in the colour of the {shape}?",
            "Does the {shape} turn another colour?",
            "Is the {shape} of another colour at the end?",
            "Do you see the {shape} turn another colour?",
            "Can you see the colour of the {shape} change?",
            "Does the {shape} change to another colour?",
            "Does the {shape} change colour?",
            "Do you see the {shape} change colour?",
            "Do you see the {shape} become another colour?",
            "Can you see the {shape} become another colour?",
            "Can you see the {shape} turn another colour?",
        ),
        (
            "whether the {shape} changes its colour",
            "whether the colour of the {shape} changes",
            "whether the {shape} becomes another colour",
            "whether you see the {shape} change colour",
            "whether you can see the {shape} turn another colour",
        ),
        (),
        ("Can you see the {shape} change colour?", "Does the {shape} become another colour?"),
    ),
    "speed": _Ways(
        (
            "Does the {shape} become faster?",
            "Does the speed of the {shape} change?",
            "Is the {shape} faster at the end?",
            "Does the {shape} change its speed?",
            "Does the {shape} move faster at the end?",
            "Do you see the {shape} change its speed?",
            "Do you see the {shape} become faster?",
            "Can you see the speed of the {shape} change?",
        ),
        (
            "whether the {shape} becomes faster",
            "whether the {shape} gets faster",
            "whether the speed of the {shape} changes",
            "whether you see the {shape} become faster",
        ),
        (),
        ("Can you see the {shape} become faster?", "Is there a change in the speed of the {shape}?"),
    ),
}
# The last two wordings of each kind are for testing.
WORDINGS: dict[str, tuple[str, ...]] = {kind: (*ways.training(), *ways.tests) for kind, ways in _WAYS.items()}


def ask_about(clip: Clip, count: int, *, test: bool) -> list[Question]:
    """Up to `count` different questions about a clip: one of each kind that it allows, the rare first; then a second.

    Args:
        clip: what happens.
        count: at most so many.
        test: use the wordings that training never sees.
    """
    dice = random.Random(f"{clip.seed} {test}")
    by_kind: dict[str, list[_Fact]] = {}
    for fact in _facts(clip, dice):
        by_kind.setdefault(fact.kind, []).append(fact)
    kinds = [by_kind[kind] for kind in sorted(by_kind, key=lambda kind: dice.random() + (kind in _COMMON))]
    for facts in kinds:
        dice.shuffle(facts)
    rounds = (fact for facts in zip_longest(*kinds) for fact in facts if fact is not None)
    return [_worded(fact, dice, test=test) for fact in islice(rounds, count)]


def _worded(fact: _Fact, dice: random.Random, *, test: bool) -> Question:
    wordings = WORDINGS[fact.kind]
    text = dice.choice(wordings[-_HELD_OUT:] if test else wordings[:-_HELD_OUT]).format(**fact.words)
    if not test and dice.random() < 0.5:
        text = f"{dice.choice(OPENINGS)} {text}"
    return Question(fact.kind, text, fact.answer, fact.choices)


def _facts(clip: Clip, dice: random.Random) -> Iterator[_Fact]:
    """Everything that can be asked about a clip without doubt about the answer."""
    makers: tuple[Callable[[Clip, random.Random], Iterator[_Fact]], ...] = (
        _looks, _number, _motion, _order, _times, _places, _speeds, _changes, _presence,
    )  # fmt: skip
    for maker in makers:
        yield from maker(clip, dice)


def _only(clip: Clip, attribute: str, value: str) -> bool:
    """Whether one thing alone has this shape or, at any time, this colour."""
    if attribute == "shape":
        return sum(thing.shape == value for thing in clip.things) == 1
    return sum(value in (thing.colour, thing.turn[1] if thing.turn else "") for thing in clip.things) == 1


def _steady(clip: Clip) -> list[Thing]:
    """Things whose colour, so whose name, stays, and is no other thing's for a while."""
    names = [name for thing in clip.things for name in _names(thing)]
    return [thing for thing in clip.things if thing.turn is None and names.count(thing.name) == 1]


def _names(thing: Thing) -> list[str]:
    """What a thing can be called, before and after it turns."""
    colours = [thing.colour] if thing.turn is None else [thing.colour, thing.turn[1]]
    return [f"{colour} {thing.shape}" for colour in colours]


def _looks(clip: Clip, _: random.Random) -> Iterator[_Fact]:
    for thing in _steady(clip):
        if _only(clip, "shape", thing.shape):
            yield _Fact("colour", {"shape": thing.shape}, thing.colour, COLOURS)
        if _only(clip, "colour", thing.colour):
            yield _Fact("shape", {"colour": thing.colour}, thing.shape, SHAPES)


def _number(clip: Clip, _: random.Random) -> Iterator[_Fact]:
    yield _Fact("count", {}, _NUMBERS[len(clip.things) - 1], _NUMBERS)


def _motion(clip: Clip, _: random.Random) -> Iterator[_Fact]:
    for thing in _steady(clip):
        if thing.direction != "still" and thing.travelled(thing.leave - 1) > 0.08:
            yield _Fact("direction", {"thing": thing.name}, thing.direction, _MOVES)


def _order(clip: Clip, dice: random.Random) -> Iterator[_Fact]:
    for one, other in combinations(_steady(clip), 2):
        if abs(one.enter - other.enter) >= 4 and one.shape != other.shape:
            first = one if one.enter < other.enter else other
            yield _Fact("order", _pair(one, other, dice), first.shape, (one.shape, other.shape))


def _times(clip: Clip, _: random.Random) -> Iterator[_Fact]:
    for thing in _steady(clip):
        third = _third(thing.enter, thing.leave - 1)
        if third is not None:
            yield _Fact("when", {"thing": thing.name}, third, THIRDS)


def _third(first: int, last: int) -> str | None:
    """Which third holds these frames, if none of them is near a border between two."""
    thirds = zip(THIRDS, pairwise([-_CLEAR, FRAMES / 3, FRAMES * 2 / 3, FRAMES + _CLEAR]), strict=True)
    return next((name for name, (start, stop) in thirds if start + _CLEAR <= first and last <= stop - _CLEAR), None)


def _places(clip: Clip, _: random.Random) -> Iterator[_Fact]:
    for thing in _steady(clip):
        x, y = thing.start
        if thing.direction == "still" and abs(x - 0.5) > 0.12 and abs(y - 0.5) > 0.12:
            corner = f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"
            yield _Fact("where", {"thing": thing.name}, corner, _CORNERS)


def _speeds(clip: Clip, dice: random.Random) -> Iterator[_Fact]:
    timed = [thing for thing in _steady(clip) if thing.rush is None and thing.leave - thing.enter >= 5]
    for one, other in combinations(timed, 2):
        if one.speed != other.speed and one.shape != other.shape:
            faster = one if one.speed > other.speed else other
            yield _Fact("faster", _pair(one, other, dice), faster.shape, (one.shape, other.shape))


def _changes(clip: Clip, dice: random.Random) -> Iterator[_Fact]:
    for thing in clip.things:
        if not _only(clip, "shape", thing.shape) or thing.leave - thing.enter < 6:
            continue
        words = {"shape": thing.shape}
        if thing.turn is not None:
            yield _Fact("change", words, thing.turn[1], COLOURS)
        if thing.turn is not None or dice.random() < 0.45:  # so that yes and no are about as frequent
            yield _Fact("happened", words, "no" if thing.turn is None else "yes", ("yes", "no"))
        if thing.speed and thing.leave - thing.enter >= 8 and (thing.rush is not None or dice.random() < 0.36):
            yield _Fact("speed", words, "no" if thing.rush is None else "yes", ("yes", "no"))


def _presence(clip: Clip, dice: random.Random) -> Iterator[_Fact]:
    """A thing that is there, and one that only has the shape and the colour of things that are."""
    there = {name for thing in clip.things for name in _names(thing)}
    for thing in dice.sample(_steady(clip), min(1, len(_steady(clip)))):
        yield _Fact("present", {"thing": thing.name}, "yes", ("yes", "no"))
    colours = [thing.colour for thing in clip.things] if dice.random() < 0.6 else COLOURS
    mixed = [f"{colour} {thing.shape}" for colour in colours for thing in clip.things]
    absent = [name for name in mixed if name not in there]
    if absent:
        yield _Fact("present", {"thing": dice.choice(absent)}, "no", ("yes", "no"))


def _pair(one: Thing, other: Thing, dice: random.Random) -> dict[str, str]:
    """Two names in either order, so that the order says nothing."""
    names = [one.name, other.name]
    dice.shuffle(names)
    return {"one": names[0], "other": names[1]}
