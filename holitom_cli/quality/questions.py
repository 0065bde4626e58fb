"""Questions about a clip of the small world, and their answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, islice, zip_longest

from holitom_cli.quality.world import COLOURS, DIRECTIONS, FRAMES, SHAPES, Clip, Thing

THIRDS = ("beginning", "middle", "end")
_CORNERS = ("top left", "top right", "bottom left", "bottom right")
_NUMBERS = ("one", "two", "three", "four")
_MOVES = tuple(direction for direction in DIRECTIONS if direction != "still")
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


# The last two wordings of each kind are for testing.
WORDINGS: dict[str, tuple[str, ...]] = {
    "colour": (
        "What colour is the {shape}?",
        "Which colour does the {shape} have?",
        "The {shape} is of what colour?",
        "Tell me the colour of the {shape}.",
        "The colour of the {shape} is what?",
        "In what colour is the {shape}?",
        "Can you tell me the colour of the {shape}?",
        "Say which colour the {shape} is.",
        "Name the colour of the {shape}.",
        "What is the colour of the {shape}?",
    ),
    "shape": (
        "What shape is the {colour} thing?",
        "Which shape does the {colour} object have?",
        "What is the {colour} thing?",
        "Name the {colour} shape.",
        "What is the shape of the {colour} thing?",
        "Of what shape is the {colour} object?",
        "Can you tell me what the {colour} thing is?",
        "Say which shape is {colour}.",
        "The {colour} object has which shape?",
        "Tell me the shape of the {colour} thing.",
    ),
    "count": (
        "How many shapes appear in the video?",
        "How many things can be seen in all?",
        "Count the shapes in the video.",
        "What is the number of shapes in the video?",
        "How many shapes are there in all?",
        "How many objects can you see in the video?",
        "Can you tell me how many things appear?",
        "Say how many shapes there are in the video.",
        "How many objects appear in all?",
        "Tell me the number of things that can be seen.",
    ),
    "direction": (
        "Which way does the {thing} move?",
        "In which direction does the {thing} go?",
        "Where is the {thing} moving to?",
        "The {thing} moves in what direction?",
        "What direction does the {thing} take?",
        "Tell me the direction in which the {thing} moves.",
        "Can you tell me where the {thing} goes?",
        "Say which way the {thing} is moving.",
        "What is the direction of the {thing}?",
        "Tell me which way the {thing} goes.",
    ),
    "order": (
        "What appears first, the {one} or the {other}?",
        "Which comes first, the {one} or the {other}?",
        "Is it the {one} or the {other} that appears first?",
        "Of the {one} and the {other}, which appears first?",
        "Which appears before the other, the {one} or the {other}?",
        "Tell me what appears first: the {one} or the {other}.",
        "Can you tell me which comes first, the {one} or the {other}?",
        "First the {one} or first the {other}?",
        "Which can be seen first, the {one} or the {other}?",
        "The {one} or the {other}: what comes first?",
    ),
    "when": (
        "When does the {thing} appear: at the beginning, in the middle or at the end?",
        "Is the {thing} there at the beginning, in the middle or at the end?",
        "In which part of the video is the {thing}: beginning, middle or end?",
        "When can the {thing} be seen: beginning, middle or end?",
        "Tell me when the {thing} appears: beginning, middle or end.",
        "At which time is the {thing} in the video: beginning, middle or end?",
        "Can you tell me when the {thing} is there: at the beginning, in the middle or at the end?",
        "Does the {thing} appear at the beginning, in the middle or at the end?",
        "At the beginning, in the middle or at the end: when is the {thing} there?",
        "Which part of the video has the {thing}: beginning, middle or end?",
    ),
    "where": (
        "Where is the {thing}?",
        "In which corner is the {thing}?",
        "Where in the picture is the {thing}?",
        "The {thing} is in which corner?",
        "In what part of the picture is the {thing}?",
        "Tell me the corner of the {thing}.",
        "Can you tell me in which corner the {thing} is?",
        "Say where in the picture the {thing} can be seen.",
        "Tell me where the {thing} is.",
        "Which corner of the picture has the {thing}?",
    ),
    "faster": (
        "Which is faster, the {one} or the {other}?",
        "What moves faster, the {one} or the {other}?",
        "Of the {one} and the {other}, which is faster?",
        "Is it the {one} or the {other} that moves faster?",
        "Tell me which is faster: the {one} or the {other}.",
        "Which has the higher speed, the {one} or the {other}?",
        "Can you tell me which moves faster, the {one} or the {other}?",
        "Faster is which of the two, the {one} or the {other}?",
        "Which moves faster, the {one} or the {other}?",
        "The {one} or the {other}: what is faster?",
    ),
    "change": (
        "What colour does the {shape} become?",
        "Which colour does the {shape} change to?",
        "The {shape} changes its colour to what?",
        "To what colour does the {shape} turn?",
        "Which colour is the {shape} at the end?",
        "Tell me which colour the {shape} turns.",
        "Can you tell me what colour the {shape} becomes?",
        "What is the other colour of the {shape}, after the change?",
        "What colour does the {shape} turn?",
        "Tell me the colour that the {shape} changes to.",
    ),
    "present": (
        "Is there a {thing}?",
        "Does a {thing} appear in the video?",
        "Can a {thing} be seen?",
        "Does the video have a {thing}?",
        "Tell me whether there is a {thing}.",
        "Is there a {thing} to be seen in the video?",
        "Do you see a {thing}?",
        "Can you tell me whether a {thing} appears?",
        "Is a {thing} in the video?",
        "Can you see a {thing}?",
    ),
    "happened": (
        "Does the {shape} change its colour?",
        "Does the colour of the {shape} change?",
        "Is there a change in the colour of the {shape}?",
        "Does the {shape} turn another colour?",
        "Tell me whether the {shape} changes its colour.",
        "Is the {shape} of another colour at the end?",
        "Do you see the {shape} turn another colour?",
        "Can you tell me whether the colour of the {shape} changes?",
        "Can you see the {shape} change colour?",
        "Does the {shape} become another colour?",
    ),
    "speed": (
        "Does the {shape} become faster?",
        "Does the speed of the {shape} change?",
        "Is the {shape} faster at the end?",
        "Does the {shape} change its speed?",
        "Tell me whether the {shape} becomes faster.",
        "Does the {shape} move faster at the end?",
        "Do you see the {shape} change its speed?",
        "Can you tell me whether the {shape} gets faster?",
        "Can you see the {shape} become faster?",
        "Is there a change in the speed of the {shape}?",
    ),
}


def ask_about(clip: Clip, count: int, *, test: bool) -> list[Question]:
    """Up to `count` different questions about a clip: one of each kind that it allows, then a second of each.

    Args:
        clip: what happens.
        count: at most so many.
        test: use the wordings that training never sees.
    """
    dice = random.Random(f"{clip.seed} {test}")
    by_kind: dict[str, list[_Fact]] = {}
    for fact in _facts(clip, dice):
        by_kind.setdefault(fact.kind, []).append(fact)
    kinds = list(by_kind.values())
    dice.shuffle(kinds)
    for facts in kinds:
        dice.shuffle(facts)
    rounds = (fact for facts in zip_longest(*kinds) for fact in facts if fact is not None)
    return [_worded(fact, dice, test=test) for fact in islice(rounds, count)]


def _worded(fact: _Fact, dice: random.Random, *, test: bool) -> Question:
    wordings = WORDINGS[fact.kind]
    text = dice.choice(wordings[-_HELD_OUT:] if test else wordings[:-_HELD_OUT])
    return Question(fact.kind, text.format(**fact.words), fact.answer, fact.choices)


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


def _times(clip: Clip, dice: random.Random) -> Iterator[_Fact]:
    for thing in _steady(clip):
        first, last = thing.enter * 3 // FRAMES, (thing.leave - 1) * 3 // FRAMES
        if first == last and (first == 1 or dice.random() < 0.55):  # a middle is rarer: it takes two cuts
            yield _Fact("when", {"thing": thing.name}, THIRDS[first], THIRDS)


def _places(clip: Clip, _: random.Random) -> Iterator[_Fact]:
    for thing in _steady(clip):
        x, y = thing.start
        if thing.direction == "still" and abs(x - 0.5) > 0.12 and abs(y - 0.5) > 0.12:
            corner = f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"
            yield _Fact("where", {"thing": thing.name}, corner, _CORNERS)


def _speeds(clip: Clip, dice: random.Random) -> Iterator[_Fact]:
    timed = [thing for thing in _steady(clip) if thing.rush is None and thing.leave - thing.enter >= 8]
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
        if thing.speed and thing.leave - thing.enter >= 8 and (thing.rush is not None or dice.random() < 0.2):
            yield _Fact("speed", words, "no" if thing.rush is None else "yes", ("yes", "no"))


def _presence(clip: Clip, dice: random.Random) -> Iterator[_Fact]:
    """A thing that is there, or one that only has the shape and the colour of things that are."""
    there = {name for thing in clip.things for name in _names(thing)}
    colours = [thing.colour for thing in clip.things] if dice.random() < 0.6 else COLOURS
    mixed = f"{dice.choice(colours)} {dice.choice(clip.things).shape}"
    present = dice.choice(_steady(clip) or [None])
    if present is not None and dice.random() < 0.4:
        yield _Fact("present", {"thing": present.name}, "yes", ("yes", "no"))
    elif mixed not in there:
        yield _Fact("present", {"thing": mixed}, "no", ("yes", "no"))


def _pair(one: Thing, other: Thing, dice: random.Random) -> dict[str, str]:
    """Two names in either order, so that the order says nothing."""
    names = [one.name, other.name]
    dice.shuffle(names)
    return {"one": names[0], "other": names[1]}
