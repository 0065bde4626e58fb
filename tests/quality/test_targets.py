"""Labels of visual tokens, against what the world says thing by thing and frame by frame."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from holitom_cli.quality.draw import sketch
from holitom_cli.quality.targets import CLASSES, IGNORED, SAME_COLOUR, Looks, events, looks, owners
from holitom_cli.quality.world import COLOURS, DIRECTIONS, FRAMES, SHAPES, SLOW, Clip, Thing, make_clip

GRID = 7
CLIPS = [make_clip(seed) for seed in range(40)]
NAMES = list(DIRECTIONS)


@pytest.fixture(scope="module")
def owner() -> Tensor:
    return owners(sketch(CLIPS), GRID)


@pytest.fixture(scope="module")
def seen() -> Looks:
    return looks(sketch(CLIPS), GRID)


@pytest.fixture(scope="module")
def happened() -> dict[str, Tensor]:
    return events(sketch(CLIPS), GRID)


def cell_of(x: float, y: float) -> int:
    return int(y * GRID) * GRID + int(x * GRID)


def covered(owner: Tensor) -> list[tuple[int, int, int, Thing]]:
    """Every clip, frame and cell that a thing has, with the thing."""
    found = (owner >= 0).nonzero().tolist()
    return [(row, frame, cell, CLIPS[row].things[owner[row, frame, cell]]) for row, frame, cell in found]


def test_a_thing_owns_the_cell_of_its_centre(owner: Tensor) -> None:
    mine = total = 0
    for row, clip in enumerate(CLIPS):
        for layer, thing in enumerate(clip.things):
            for frame in range(thing.enter, thing.leave):
                mine += int(owner[row, frame, cell_of(*thing.centre(frame))]) == layer
                total += 1
    assert mine > 0.95 * total  # two things may share a cell


def test_owners_are_there_and_near(owner: Tensor) -> None:
    for _, frame, cell, thing in covered(owner):
        assert thing.enter <= frame < thing.leave
        x, y = thing.centre(frame)
        across, down = abs(x * GRID - 0.5 - cell % GRID), abs(y * GRID - 0.5 - cell // GRID)
        assert max(across, down) < 0.5 + thing.radius * GRID
    there = [[any(t.enter <= frame < t.leave for t in clip.things) for frame in range(FRAMES)] for clip in CLIPS]
    assert (owner >= 0).any(-1).equal(torch.tensor(there))


def test_looks_are_the_owners(owner: Tensor, seen: Looks) -> None:
    for row, frame, cell, thing in covered(owner):
        assert seen.shape[row, frame, cell] == SHAPES.index(thing.shape)
        assert seen.colour[row, frame, cell] == COLOURS.index(thing.colour_at(frame))
        x, y = thing.centre(frame)
        wanted = torch.tensor([x * GRID - 0.5 - cell % GRID, y * GRID - 0.5 - cell // GRID])
        assert (seen.offset[row, frame, cell] - wanted).abs().max() < 1e-4
    empty = owner < 0
    assert seen.there.equal((~empty).long())
    assert (seen.shape[empty] == IGNORED).all()
    assert (seen.colour[empty] == IGNORED).all()
    assert (seen.offset[empty] == 0).all()
    assert seen.late[3, :, 11].tolist() == pytest.approx([frame / 31 for frame in range(FRAMES)])


def test_events_are_what_has_happened_to_the_owner(owner: Tensor, happened: dict[str, Tensor]) -> None:
    assert happened.keys() == CLASSES.keys()
    rushed = 0
    for row, frame, cell, thing in covered(owner):
        got = {name: int(label[row, frame, cell]) for name, label in happened.items()}
        now, first = thing.colour_at(frame), thing.colour
        assert got["before"] == (SAME_COLOUR if now == first else COLOURS.index(first))
        assert got["seen"] == sum(other.enter <= frame for other in CLIPS[row].things)
        if frame - thing.enter < 2:
            assert got["direction"] == got["speed"] == got["rushed"] == IGNORED
            continue
        assert got["direction"] == NAMES.index(thing.direction)
        fast = thing.rush is not None and frame >= thing.rush + 2
        if thing.rush is None or fast or frame <= thing.rush:  # between, both speeds are in the measure
            assert got["speed"] == (2 if fast else 0 if not thing.speed else 1 if thing.speed == SLOW else 2)
            assert got["rushed"] == fast
        rushed += fast
    assert rushed > 20
    assert all((label[owner < 0] == IGNORED).all() for label in happened.values())
    assert all(label.max() < CLASSES[name] for name, label in happened.items())


def test_labels_of_some_frames_are_those_of_all(seen: Looks) -> None:
    chosen = torch.randint(FRAMES, (len(CLIPS), 5), generator=torch.Generator().manual_seed(1))
    rows = torch.arange(len(CLIPS))[:, None]
    some = looks(sketch(CLIPS).only(chosen), GRID)
    for name in Looks._fields:
        assert getattr(some, name).equal(getattr(seen, name)[rows, chosen]), name
    assert not some.shape.equal(seen.shape[rows, chosen.flip(1)])  # control


def test_an_empty_clip_has_no_labels() -> None:
    plan = sketch([Clip(1, (), ())])
    assert (owners(plan, GRID) == -1).all()
    assert all((label == IGNORED).all() for label in events(plan, GRID).values())
