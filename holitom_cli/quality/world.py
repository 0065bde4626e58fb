"""A small world of moving shapes: what happens in a clip, before a pixel of it is drawn.

Everything about a clip follows from its seed. Lengths are shares of the picture's side, times are frames.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import pairwise
from math import dist

FRAMES = 32
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
# Side lengths a frame: what moves has moved from one sampled frame to the next, as in real videos.
SLOW, FAST = 0.04, 0.1

_MARGIN = 0.14  # nothing comes nearer to the border
_HURRY = 3  # times its speed, of a thing in a rush
_SHORTEST_SCENE = 7  # frames
_TRIES = 20  # to find a place
_TEST_SEEDS = 1 << 40  # seeds from here on are for testing


@dataclass(frozen=True, slots=True)
class Thing:
    """A shape that is there for a while."""

    shape: str
    colour: str
    radius: float
    start: tuple[float, float]  # centre when it enters
    direction: str
    speed: float
    enter: int
    leave: int  # first frame without it
    turn: tuple[int, str] | None = None  # frame from which it has another colour
    rush: int | None = None  # frame from which it is in a rush, three times as fast

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    def travelled(self, frame: int) -> float:
        """Distance from the start at a frame."""
        steps = frame - self.enter
        rushed = max(0, frame - self.rush) if self.rush is not None else 0
        return self.speed * (steps + (_HURRY - 1) * rushed)

    def centre(self, frame: int) -> tuple[float, float]:
        """Where it is at a frame."""
        x, y = DIRECTIONS[self.direction]
        distance = self.travelled(frame)
        return self.start[0] + x * distance, self.start[1] + y * distance

    def colour_at(self, frame: int) -> str:
        """Its colour at a frame."""
        return self.turn[1] if self.turn is not None and frame >= self.turn[0] else self.colour


@dataclass(frozen=True, slots=True)
class Clip:
    """What happens in a clip. Things later in the list pass in front of earlier ones."""

    seed: int
    cuts: tuple[int, ...]  # first frame of every scene but the first
    things: tuple[Thing, ...]
    band: tuple[float, float, float] | None = None  # a strip that moves: top, bottom, speed a frame

    def scene_of(self, frame: int) -> int:
        """Which scene a frame is in, from 0."""
        return sum(frame >= cut for cut in self.cuts)

    @property
    def scenes(self) -> list[range]:
        """Frames of each scene."""
        borders = [0, *self.cuts, FRAMES]
        return [range(a, b) for a, b in pairwise(borders)]


def train_seed(number: int) -> int:
    """The seed of a training clip; no test clip has it."""
    return number % _TEST_SEEDS


def test_seed(number: int) -> int:
    """The seed of a test clip; no training clip has it."""
    return _TEST_SEEDS + number


def make_clip(seed: int) -> Clip:
    """Draw the lots of one clip."""
    dice = random.Random(seed)
    cuts = _cuts(dice)
    borders = [0, *cuts, FRAMES]
    count = dice.choices([1, 2, 3, 4], [0.18, 0.22, 0.3, 0.3])[0]
    looks = dice.sample([(shape, colour) for shape in SHAPES for colour in COLOURS], count)
    brief = dice.choice([0.1, 0.7])  # clips to follow what moves, and clips to miss things in
    things: list[Thing] = []
    for shape, colour in looks:
        scene = dice.randrange(len(borders) - 1)
        stay = _stay(dice, range(borders[scene], borders[scene + 1]), brief)
        things.append(_thing(dice, shape, colour, stay, things))
    band = None
    if dice.random() < 0.5:
        top = dice.uniform(0, 0.6)
        band = (top, top + dice.uniform(0.2, 0.4), dice.choice([-1, 1]) * dice.uniform(0.004, 0.02))
    return Clip(seed, cuts, tuple(things), band)


def _cuts(dice: random.Random) -> tuple[int, ...]:
    """Zero to two cuts, no scene shorter than a few frames."""
    wanted = dice.choices([0, 1, 2], [0.4, 0.35, 0.25])[0]
    spare = FRAMES - _SHORTEST_SCENE * (wanted + 1)
    marks = sorted(dice.randint(0, spare) for _ in range(wanted))
    return tuple(mark + _SHORTEST_SCENE * (index + 1) for index, mark in enumerate(marks))


def _stay(dice: random.Random, scene: range, brief: float) -> range:
    """How long a thing is there: for one to three frames, for a part of the scene, or for all of it."""
    kind = dice.random()
    if kind < brief:
        length = dice.randint(1, 3)
    elif kind < brief + 0.3 * (1 - brief) and len(scene) >= 10:
        length = dice.randint(7, len(scene) - 2)
    else:
        return scene
    enter = dice.randint(scene.start, scene.stop - length)
    return range(enter, enter + length)


def _thing(dice: random.Random, shape: str, colour: str, stay: range, others: list[Thing]) -> Thing:
    """A thing, and what it does while it is there."""
    radius = dice.choice([0.075, 0.095, 0.12])
    direction = dice.choice(list(DIRECTIONS)) if len(stay) >= 5 else "still"
    speed = 0.0 if direction == "still" else dice.choice([SLOW, FAST])
    rush = turn = None
    if speed:
        stay, rush = _run(dice, stay, speed)
    enter, leave = stay.start, stay.stop
    if len(stay) >= 6 and dice.random() < 0.28:
        turn = (dice.randint(enter + 2, leave - 2), dice.choice([other for other in COLOURS if other != colour]))
    thing = Thing(shape, colour, radius, (0.5, 0.5), direction, speed, enter, leave, turn, rush)
    return _placed(dice, thing, others)


def _run(dice: random.Random, stay: range, speed: float) -> tuple[range, int | None]:
    """The part of a stay in which something that moves stays inside the picture, and from when it is in a rush."""
    steps = int((1 - 2 * _MARGIN) / speed)  # from border to border
    rushed = dice.choice([3, 4]) if speed == SLOW and len(stay) >= 10 and dice.random() < 0.6 else 0
    shortest, longest = (rushed + 5, steps + 1 - (_HURRY - 1) * rushed) if rushed else (8, steps + 1)
    length = min(len(stay), dice.randint(min(shortest, longest), longest))
    enter = dice.randint(stay.start, stay.stop - length)
    leave = enter + length
    return range(enter, leave), leave - 1 - rushed if rushed else None


def _placed(dice: random.Random, thing: Thing, others: list[Thing]) -> Thing:
    """Put the thing where its whole way fits, apart from others when either comes and goes; between, they may cross."""
    x, y = DIRECTIONS[thing.direction]
    way = thing.travelled(thing.leave - 1)
    best, distance = thing, -1.0
    for _ in range(_TRIES):
        candidate = replace(thing, start=(_coordinate(dice, x * way), _coordinate(dice, y * way)))
        nearest = min((_gap(candidate, other) for other in others), default=1.0)
        if nearest > distance:
            best, distance = candidate, nearest
        if nearest >= 1:
            break
    return best


def _coordinate(dice: random.Random, shift: float) -> float:
    """A start from which a shift stays inside the picture."""
    low, high = _MARGIN - min(0.0, shift), 1 - _MARGIN - max(0.0, shift)
    return dice.uniform(low, high) if low < high else (low + high) / 2


def _gap(one: Thing, other: Thing) -> float:
    """Least distance of the centres when the later one enters and when the first leaves; 1 = they just touch."""
    together = range(max(one.enter, other.enter), min(one.leave, other.leave))
    if not together:
        return 1.0
    gaps = [dist(one.centre(frame), other.centre(frame)) for frame in (together[0], together[-1])]
    return min(gaps) / (one.radius + other.radius)
