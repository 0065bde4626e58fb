"""The painter: what is drawn is what happens, for many clips as for one, at any size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from holitom_cli.quality.draw import RGB, SIDE, draw, paint, sketch, stencils, to_frames
from holitom_cli.quality.world import COLOURS, FRAMES, SHAPES, Clip, Thing, make_clip

CLIPS = [make_clip(seed) for seed in range(12)]


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return draw(CLIPS)


@pytest.fixture(scope="module")
def empty() -> Tensor:
    """The same clips with nothing in them."""
    return draw([replace(clip, things=()) for clip in CLIPS])


def colour_at(picture: Tensor, x: float, y: float) -> Tensor:
    """The colour (3,) of the pixel of a picture (3, side, side) at a place."""
    side = picture.shape[-1]
    return picture[:, int(y * side), int(x * side)]


def test_a_batch_is_its_clips(pictures: Tensor) -> None:
    assert pictures.shape == (len(CLIPS), FRAMES, 3, SIDE, SIDE)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    for index in range(0, len(CLIPS), 3):
        alone = draw([CLIPS[index]])[0]
        assert (alone - pictures[index]).abs().max() <= 1e-6
        assert (alone - pictures[index - 1]).abs().max() > 0.1  # control


def test_some_frames_are_those_of_all(pictures: Tensor) -> None:
    chosen = torch.tensor([[frame % 7, 31 - frame, 16] for frame in range(len(CLIPS))])
    some = paint(sketch(CLIPS).only(chosen))
    rows = torch.arange(len(CLIPS))[:, None]
    assert (some - pictures[rows, chosen]).abs().max() <= 1e-6
    assert (some - pictures[rows, chosen.flip(1)]).abs().max() > 0.1  # control


def test_a_larger_picture_shows_the_same(pictures: Tensor) -> None:
    large = draw(CLIPS[:2], side=2 * SIDE)
    small = F.avg_pool2d(large.flatten(0, 1), 2).view_as(pictures[:2])
    assert (small - pictures[:2]).abs().mean() < 0.005
    assert (small - pictures[2:4]).abs().mean() > 0.05  # control


def test_a_things_colour_is_at_its_centre_while_it_is_there(pictures: Tensor, empty: Tensor) -> None:
    looked_at = 0
    for index, clip in enumerate(CLIPS):
        thing = clip.things[-1]  # nothing passes in front of it
        if thing.shape == "ring":
            continue
        for frame in range(thing.enter, thing.leave):
            got = colour_at(pictures[index, frame], *thing.centre(frame))
            assert (got - torch.tensor(RGB[thing.colour_at(frame)])).abs().max() < 0.02
            assert (got - colour_at(empty[index, frame], *thing.centre(frame))).abs().max() > 0.1  # control
            looked_at += 1
    assert looked_at > 50


def test_nothing_is_drawn_where_nothing_is(pictures: Tensor, empty: Tensor) -> None:
    quiet = 0
    for index, clip in enumerate(CLIPS):
        for frame in range(FRAMES):
            there = any(thing.enter <= frame < thing.leave for thing in clip.things)
            assert bool((pictures[index, frame] != empty[index, frame]).any()) == there
            quiet += not there
    assert quiet > 0


def test_a_thing_fills_its_radius_and_no_more(empty: Tensor) -> None:
    thing = Thing("square", "red", 0.12, (0.4, 0.6), "still", 0.0, 0, FRAMES)
    shown = draw([replace(CLIPS[0], things=(thing,))])[0, 0]
    rows, columns = (shown != empty[0, 0]).any(0).nonzero().unbind(-1)
    for places, centre in ((columns, 0.4), (rows, 0.6)):
        assert abs(float(places.min()) / SIDE - (centre - 0.8 * 0.12)) < 2 / SIDE
        assert abs((float(places.max()) + 1) / SIDE - (centre + 0.8 * 0.12)) < 2 / SIDE


def test_later_things_pass_in_front() -> None:
    behind = Thing("circle", "red", 0.12, (0.5, 0.5), "still", 0.0, 0, FRAMES)
    front = replace(behind, shape="square", colour="blue", radius=0.06)
    for things, seen in (((behind, front), "blue"), ((front, behind), "red")):
        shown = draw([Clip(0, (), things)])
        assert (colour_at(shown[0, 0], 0.5, 0.5) - torch.tensor(RGB[seen])).abs().max() < 0.02


def test_cuts_change_the_background_and_nothing_else_does() -> None:
    still = [replace(clip, things=(), band=None) for clip in CLIPS]
    shown = draw(still)
    cuts = 0
    for picture, clip in zip(shown, still, strict=True):
        change = (picture[1:, 1] - picture[:-1, 1]).abs().mean((1, 2))  # of green, which the light leaves alone
        for frame in range(1, FRAMES):
            if frame in clip.cuts:
                assert change[frame - 1] > 0.02
                cuts += 1
            else:
                assert change[frame - 1] == 0
    assert cuts > 3


def test_the_strip_moves_sideways_and_the_rest_stays() -> None:
    for speed in (0.02, -0.02):
        clip = Clip(3, (), (), band=(0.25, 0.5, speed))
        shown = draw([clip])[0][:, 1:2]  # green, which the light leaves alone
        inside = torch.zeros(SIDE, dtype=torch.bool)
        inside[28:56] = True
        assert (shown[:, :, ~inside] == shown[:1, :, ~inside]).all()
        for frame in (3, 10):
            shift = round(speed * frame * SIDE)
            moved, first = shown[frame][:, inside], shown[0][:, inside]
            if shift > 0:
                assert moved[..., :-shift].equal(first[..., shift:])
            else:
                assert moved[..., -shift:].equal(first[..., :shift])
            assert not moved.equal(first)  # control


def test_the_light_goes_from_blue_to_red_and_leaves_things_alone() -> None:
    thing = Thing("square", "green", 0.12, (0.5, 0.5), "still", 0.0, 0, FRAMES)
    shown = draw([Clip(5, (), (thing,))])[0]
    red, green, blue = shown[:, :, :20].mean((2, 3)).unbind(1)  # of the top, where nothing is
    rise = 0.15 * torch.linspace(-1, 1, FRAMES)
    assert (red - red.mean() - rise).abs().max() < 1e-4
    assert (blue - blue.mean() + rise).abs().max() < 1e-4
    assert (green - green[0]).abs().max() == 0
    assert (shown[:, :, 50:60, 50:60] - shown[:1, :, 50:60, 50:60]).abs().max() < 1e-4


def test_every_shape_looks_different() -> None:
    shapes = stencils()[:, 0]
    assert shapes.shape == (len(SHAPES), 64, 64)
    for one in range(len(SHAPES)):
        assert 0.2 < shapes[one].mean() < 0.8
        for other in range(one):
            assert (shapes[one] - shapes[other]).abs().mean() > 0.08


def test_every_colour_stands_out() -> None:
    assert set(RGB) == set(COLOURS)
    colours = torch.tensor(list(RGB.values()))
    apart = (colours[:, None] - colours[None]).abs().amax(-1) + torch.eye(len(colours))
    assert apart.min() > 0.2


def test_a_camera_stores_whole_numbers(pictures: Tensor) -> None:
    clean, noisy, again, other = (to_frames(pictures[:1], noise, seed) for noise, seed in ((0, 0), (0.02, 1), (0.02, 1), (0.02, 2)))  # fmt: skip  # noqa: E501
    assert clean.dtype == torch.uint8
    assert (clean.float() / 255 - pictures[:1]).abs().max() <= 0.5 / 255 + 1e-6
    assert noisy.equal(again)
    assert not noisy.equal(other)
    middle = (clean > 80) & (clean < 180)  # where nothing is clipped
    assert (noisy.float() - clean.float())[middle].std() / 255 == pytest.approx(0.02, rel=0.05)
