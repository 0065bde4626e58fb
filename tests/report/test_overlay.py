"""What became of every patch: true on a clip that is known, and the same as counting one by one for every method."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch

from holitom_cli import methods
from holitom_cli.report.overlay import Fate, borders, colour, kept, looked_at, runs, tokens_by_frame
from holitom_cli.types import Answer, TokenCounts, VideoFeatures, VisualTokens
from tests.report.conftest import FRAMES, GRID, Known, moving
from tests.report.factory import make_answer

# --- a clip whose parts are known ----------------------------------------------------------------


def test_merged_cells_are_exactly_the_still_ones(known: Known) -> None:
    overlay = kept(known.answers[0].visual)
    merged = overlay.fate == Fate.MERGED
    assert merged.shape == (FRAMES, GRID, GRID)
    assert (merged == ~moving()).all()
    shifted = np.roll(moving(), 1, axis=1)  # control: one cell beside would be seen
    assert not (merged == ~shifted).all()


def test_still_cells_have_one_token_in_all_frames(known: Known) -> None:
    overlay = kept(known.answers[0].visual)
    assert (overlay.token == overlay.token[0]).all()
    assert (overlay.token[:, moving()] == -1).all()
    assert overlay.stands[1:].sum() == 0  # they stand in the segment's first frame
    tokens = set(overlay.token[0][~moving()].tolist())
    assert overlay.stands[0].sum() == len(tokens)
    places = overlay.token[0][overlay.stands[0]]
    assert set(places.tolist()) == tokens  # each in a patch that it stands for


def test_nothing_is_merged_where_every_token_is_kept(known: Known) -> None:
    overlay = kept(known.baseline[0].visual)
    assert (overlay.fate == Fate.KEPT).all()
    assert not overlay.stands.any()
    assert looked_at(known.baseline[0]) is None


def test_a_question_keeps_as_many_tokens_as_the_record_says(known: Known) -> None:
    for answer in known.answers:
        seen = looked_at(answer)
        assert seen is not None
        rows = answer.visual.source.numpy().reshape(seen.fate.shape)
        kept_rows = set(rows[seen.fate == Fate.KEPT].tolist())
        folded_rows = set(rows[seen.fate == Fate.FOLDED].tolist())
        assert len(kept_rows) + len(folded_rows) == answer.tokens.visual
        assert not kept_rows & folded_rows
        ((_, left),) = answer.tokens.inside
        assert left - len(kept_rows) in (0, 1)  # the newline token is one of those left, or was folded


# --- every method --------------------------------------------------------------------------------


def compressed(name: str, frames: int = 11, grid: int = 6) -> VisualTokens:
    """What a method makes of a clip of which half stands still."""
    stream = torch.Generator().manual_seed(3)
    ground = torch.randn(1, grid**2, 8, generator=stream)
    fresh = torch.randn(frames, grid**2, 8, generator=stream)
    still = torch.rand(grid**2, 1, generator=stream) < 0.5
    attention = torch.rand(frames, grid**2, generator=stream)
    keys = torch.randn(frames, grid**2, 4, generator=stream)
    video = VideoFeatures(torch.where(still, ground + 0.05 * fresh, fresh), attention, grid, keys)
    return methods.get(name).compress(video)


def one_by_one(visual: VisualTokens) -> dict[tuple[int, int], Fate]:
    """The slow way: look at every patch by itself, and count who else has its token."""
    source = visual.source.tolist()
    everywhere = [row for line in source for row in line]
    fates = {}
    for frame, line in enumerate(source):
        for patch, row in enumerate(line):
            sharing = everywhere.count(row)
            fates[frame, patch] = Fate.DROPPED if row < 0 else Fate.MERGED if sharing > 1 else Fate.KEPT
    return fates


@pytest.mark.parametrize("name", methods.available())
def test_fates_are_those_counted_one_by_one(name: str) -> None:
    visual = compressed(name)
    overlay = kept(visual)
    frames, patches = visual.source.shape
    fates = overlay.fate.reshape(frames, patches)
    assert {place: Fate(int(fates[place])) for place in np.ndindex(frames, patches)} == one_by_one(visual)
    merged = overlay.token.reshape(frames, patches) >= 0
    assert (merged == (fates == Fate.MERGED)).all()
    assert (overlay.token.reshape(frames, patches)[merged] == visual.source.numpy()[merged]).all()
    assert sum(tokens_by_frame(visual)) == len(visual)
    assert sum(overlay.count(0, fate) for fate in Fate) == patches


def test_fates_without_any_token() -> None:
    empty = torch.empty(0, dtype=torch.int64)
    visual = VisualTokens(torch.empty(0, 2), empty, empty, empty, torch.full((2, 4), -1), (range(2),), ())
    assert (kept(visual).fate == Fate.DROPPED).all()
    assert tokens_by_frame(visual) == [0, 0]


# --- inside the language model -------------------------------------------------------------------


def inside(source: list[list[int]], ended: list[list[int]]) -> Answer:
    answer = make_answer()
    visual = replace(answer.visual, source=cast("Any", np.array(source)))
    tokens = TokenCounts(2, 4, (("frames", 8), ("picked", 5)), ((3, 4),), 7, 13, 2)
    return replace(answer, visual=visual, inner_source=cast("Any", np.array(ended)), tokens=tokens)


def test_what_a_question_looked_at() -> None:
    # Row 0 stays; row 1 goes into row 0; row 2 is dropped; row 3 goes into the newline token, row 5.
    overlay = looked_at(inside([[0, 1, 2, -1], [3, 4, 4, 0]], [[0, 0, -1, -1], [5, 4, 4, 0]]))
    assert overlay is not None
    kept_, folded, dropped = Fate.KEPT, Fate.FOLDED, Fate.DROPPED
    assert overlay.fate.reshape(2, 4).tolist() == [[kept_, folded, dropped, dropped], [folded, kept_, kept_, kept_]]
    assert overlay.outline.reshape(2, 4).tolist() == [[0, -1, -1, -1], [-1, 0, 0, 0]]
    assert (overlay.token == -1).all()


# --- lines and colours ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_borders_lie_where_neighbours_differ(seed: int) -> None:
    labels = np.random.default_rng(seed).integers(-1, 3, (5, 5))
    above, left = borders(labels)

    def label(y: int, x: int) -> int:
        return int(labels[y, x]) if 0 <= y < 5 and 0 <= x < 5 else -1

    for y, x in np.ndindex(above.shape):
        assert above[y, x] == (label(y, x) != label(y - 1, x))
    for y, x in np.ndindex(left.shape):
        assert left[y, x] == (label(y, x) != label(y, x - 1))


def test_runs_cover_a_line_in_order() -> None:
    line = np.array([2, 2, -1, 5, 5, 5])
    assert list(runs(line)) == [(0, 2, 2), (2, 3, -1), (3, 6, 5)]
    assert list(runs(line[:1])) == [(0, 1, 2)]


def test_colours_of_tokens_differ_from_those_with_numbers_nearby() -> None:
    colours = [colour(token) for token in range(300)]
    assert len(set(colours)) == 300
    near = [np.abs(np.subtract(a, b)).sum() for a, b in pairwise(colours)]
    assert min(near) > 100
    assert colours == [colour(token) for token in range(300)]
