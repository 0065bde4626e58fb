"""What happens in clips: reproducible, inside the picture, nothing hidden when it matters, everything there is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import dist, hypot, pi

import pytest

from holitom_cli.quality import world
from holitom_cli.quality.world import COLOURS, DIRECTIONS, FRAMES, SHAPES, Clip, Thing, make_clip

CLIPS = [make_clip(seed) for seed in range(600)]
THINGS = [thing for clip in CLIPS for thing in clip.things]


def walked(thing: Thing) -> list[tuple[float, float]]:
    """Centres in all frames in which a thing is there, one step after another."""
    x, y = thing.start
    across, down = DIRECTIONS[thing.direction]
    centres = []
    for frame in range(thing.enter, thing.leave):
        centres.append((x, y))
        step = thing.speed * (3 if thing.rush is not None and frame >= thing.rush else 1)
        x, y = x + across * step, y + down * step
    return centres


def outside(thing: Thing) -> bool:
    """Whether any of it is ever outside the picture."""
    return any(
        min(x, y) - thing.radius < 0 or max(x, y) + thing.radius > 1 for x, y in map(thing.centre, frames_of(thing))
    )


def frames_of(thing: Thing) -> range:
    return range(thing.enter, thing.leave)


def overlap(one: Thing, other: Thing, frame: int) -> float:
    """Share of one's circle that the other's covers at a frame."""
    (ax, ay), (bx, by) = one.centre(frame), other.centre(frame)
    points = [(i / 20 - 1, j / 20 - 1) for i in range(41) for j in range(41)]
    inside = [(ax + u * one.radius, ay + v * one.radius) for u, v in points if u * u + v * v <= 1]
    return sum(hypot(x - bx, y - by) <= other.radius for x, y in inside) / len(inside)


def test_a_seed_makes_one_clip() -> None:
    assert [make_clip(seed) for seed in range(20)] == CLIPS[:20]
    assert len({(clip.cuts, clip.things) for clip in CLIPS}) == len(CLIPS)


def test_test_clips_are_never_trained_on() -> None:
    numbers = [0, 1, 2**32, 2**40 - 1, 2**40, 2**41 + 5, 2**63]
    trained = {world.train_seed(number) for number in numbers}
    tested = {world.test_seed(number) for number in numbers}
    assert max(trained) < min(tested)


def test_scenes_divide_the_frames() -> None:
    for clip in CLIPS:
        assert [frame for scene in clip.scenes for frame in scene] == list(range(FRAMES))
        assert min(map(len, clip.scenes)) >= 7
        for number, scene in enumerate(clip.scenes):
            assert {clip.scene_of(frame) for frame in scene} == {number}


def test_a_thing_stays_in_one_scene_and_its_events_in_its_time() -> None:
    for clip in CLIPS:
        for thing in clip.things:
            assert thing.leave > thing.enter
            assert clip.scene_of(thing.enter) == clip.scene_of(thing.leave - 1)
            if thing.turn is not None:
                assert thing.enter + 2 <= thing.turn[0] <= thing.leave - 2
                assert thing.turn[1] != thing.colour
            if thing.rush is not None:
                assert thing.enter + 4 <= thing.rush <= thing.leave - 4
                assert thing.speed == world.SLOW
            assert (thing.speed == 0) == (thing.direction == "still")


def test_places_are_what_steps_add_up_to() -> None:
    for thing in THINGS:
        for frame, (x, y) in zip(frames_of(thing), walked(thing), strict=True):
            assert thing.centre(frame) == pytest.approx((x, y))


def test_a_thing_turns_once_and_in_its_frame() -> None:
    for thing in THINGS:
        turn, other = thing.turn or (thing.leave, "")
        wanted = [thing.colour] * (turn - thing.enter) + [other] * (thing.leave - turn)
        assert [thing.colour_at(frame) for frame in frames_of(thing)] == wanted


def test_everything_stays_inside_the_picture() -> None:
    assert not [thing for thing in THINGS if outside(thing)]
    assert outside(replace(THINGS[0], start=(0.02, 0.5)))  # control


def test_nothing_is_hidden_when_it_enters() -> None:
    hidden = 0
    for clip in CLIPS:
        for index, thing in enumerate(clip.things):
            above = [other for other in clip.things[index + 1 :] if thing.enter in frames_of(other)]
            hidden += any(overlap(thing, other, thing.enter) > 0.5 for other in above)
    assert hidden == 0
    big, small = (Thing("circle", "red", radius, (0.5, 0.5), "still", 0, 0, 9) for radius in (0.12, 0.06))
    assert overlap(small, big, 0) == 1  # control
    assert overlap(big, small, 0) == pytest.approx(0.25, abs=0.02)


def test_looks_differ_within_a_clip() -> None:
    for clip in CLIPS:
        assert len({thing.name for thing in clip.things}) == len(clip.things)


def shares(values: list[str]) -> dict[str, float]:
    return {value: count / len(values) for value, count in Counter(values).items()}


def test_everything_occurs_about_as_often_as_it_should() -> None:
    assert shares([thing.shape for thing in THINGS]).keys() == set(SHAPES)
    assert shares([thing.colour for thing in THINGS]).keys() == set(COLOURS)
    for values, choices in (([t.shape for t in THINGS], SHAPES), ([t.colour for t in THINGS], COLOURS)):
        assert all(0.7 < share * len(choices) < 1.3 for share in shares(values).values())
    assert {thing.direction for thing in THINGS} == set(DIRECTIONS)
    assert {len(clip.things) for clip in CLIPS} == {1, 2, 3, 4}
    assert {len(clip.scenes) for clip in CLIPS} == {1, 2, 3}
    assert 0.4 < sum(clip.band is not None for clip in CLIPS) / len(CLIPS) < 0.6
    assert 0.3 < sum(thing.leave - thing.enter <= 3 for thing in THINGS) / len(THINGS) < 0.5  # short events
    assert sum(thing.leave - thing.enter == 1 for thing in THINGS) > 100  # some in a single frame
    assert min(thing.radius for thing in THINGS) ** 2 * pi < 0.018  # small ones
    for event in ("turn", "rush"):
        assert sum(getattr(thing, event) is not None for thing in THINGS) > 60


def test_some_things_pass_behind_others() -> None:
    def crossed(clip: Clip) -> bool:
        pairs = [(one, other) for index, one in enumerate(clip.things) for other in clip.things[index + 1 :]]
        return any(
            dist(one.centre(frame), other.centre(frame)) < other.radius
            for one, other in pairs
            for frame in range(max(one.enter, other.enter), min(one.leave, other.leave))
        )

    assert sum(map(crossed, CLIPS)) >= 3
