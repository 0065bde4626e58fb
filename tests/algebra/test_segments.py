"""Segmentation against a dynamic programme in plain loops, and against every possible cut of short clips."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from holitom_cli.algebra.segments import cut, frame_similarity, neighbour_similarity, segment, steadiness

if TYPE_CHECKING:
    from holitom_cli.algebra.host import BoolArray


def gain(static: Tensor, first: int, last: int) -> int:
    """Tokens saved by merging frames first..last over time."""
    cells = sum(all(bool(static[f, p]) for f in range(first, last)) for p in range(static.shape[1]))
    return (last - first) * cells


def slow_segment(static: Tensor, max_window: int) -> tuple[tuple[range, ...], int]:
    """The specification in loops; a later candidate has to be strictly better, and short windows come first."""
    frames = len(static) + 1
    saved, start = [0], [0]
    for end in range(1, frames + 1):
        best, begin = saved[end - 1], end - 1
        for window in range(2, min(max_window, end) + 1):
            candidate = saved[end - window] + gain(static, end - window, end - 1)
            if candidate > best:
                best, begin = candidate, end - window
        saved.append(best)
        start.append(begin)
    segments: list[range] = []
    end = frames
    while end:
        segments.insert(0, range(start[end], end))
        end = start[end]
    return tuple(segments), saved[-1]


def every_cut(frames: int) -> Iterator[list[range]]:
    for count in range(frames):
        for cuts in combinations(range(1, frames), count):
            bounds = [0, *cuts, frames]
            yield [range(a, b) for a, b in pairwise(bounds)]


def random_static(frames: int, cells: int, share: float, seed: int) -> Tensor:
    return torch.rand(frames - 1, cells, generator=torch.Generator().manual_seed(seed)) < share


def cuts(unchanged: BoolArray, max_window: int) -> tuple[tuple[range, ...], int]:
    """The segments, and the tokens saved."""
    found = segment(steadiness(unchanged, max_window)[1])
    return found.parts, found.saved


@pytest.mark.parametrize("max_window", [1, 2, 3, 7, 1024])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.95, 1.0])
@pytest.mark.parametrize(("frames", "cells"), [(1, 4), (2, 1), (2, 9), (3, 2), (5, 4), (12, 3), (17, 9)])
def test_segments_are_those_of_the_loops(frames: int, cells: int, share: float, max_window: int) -> None:
    for seed in range(4):  # few cells and shares of 0 and 1 make ties
        static = random_static(frames, cells, share, seed)
        assert cuts(static.numpy(), max_window) == slow_segment(static, max_window)


def test_a_long_clip() -> None:
    static = random_static(70, 25, 0.93, 0)
    segments, saved = cuts(static.numpy(), 1024)
    assert (segments, saved) == slow_segment(static, 1024)
    assert 2 < len(segments) < 70
    assert cuts(static.numpy(), 4) != (segments, saved)  # control: the limit matters


@pytest.mark.parametrize("frames", [1, 2, 3, 6, 8])
def test_no_cut_saves_more(frames: int) -> None:
    for seed in range(3):
        static = random_static(frames, 5, 0.7, seed)
        best = max(sum(gain(static, s.start, s.stop - 1) for s in cut) for cut in every_cut(frames))
        segments, saved = cuts(static.numpy(), 1024)
        assert saved == best
        assert sum(gain(static, s.start, s.stop - 1) for s in segments) == saved


def test_ties_take_the_shorter_window() -> None:
    # Two cells static for one step, then one of them for another: {0,1},{2} and {0,1,2} both save 2.
    static = torch.tensor([[True, True], [True, False]])
    assert cuts(static.numpy(), 1024) == ((range(2), range(2, 3)), 2)
    # Nothing to save: every frame stays alone.
    assert cuts(np.zeros((3, 4), dtype=bool), 1024) == (tuple(range(f, f + 1) for f in range(4)), 0)


def test_windows_of_one_frame_save_nothing() -> None:
    assert cuts(np.ones((4, 6), dtype=bool), 1) == (tuple(range(f, f + 1) for f in range(5)), 0)


def test_a_still_clip_is_one_segment() -> None:
    assert cuts(np.ones((9, 6), dtype=bool), 1024) == ((range(10),), 54)


@pytest.mark.parametrize("frames", [1, 2, 32, 33, 34, 65, 70])  # around the length of a chunk
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_similarity_is_the_cosine_in_float32(frames: int, dtype: torch.dtype) -> None:
    tokens = torch.randn(frames, 3, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = neighbour_similarity(tokens)
    assert found.dtype == torch.float32
    assert found.shape == (frames - 1, 3)
    for f in range(frames - 1):
        for p in range(3):
            a, b = tokens[f, p].double(), tokens[f + 1, p].double()
            assert abs(float(found[f, p]) - float(a @ b / (a.norm() * b.norm()))) < 1e-6


def test_control_similarity_in_bfloat16_would_be_seen() -> None:
    tokens = torch.randn(2, 50, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    low = torch.cosine_similarity(tokens[:1], tokens[1:], dim=-1).float()
    assert (neighbour_similarity(tokens) - low).abs().max() > 1e-4


@pytest.mark.parametrize(("values", "least", "starts"), [
    ([], 8, [0]),
    ([0.5], 1, [0, 1]),
    ([0.95, 0.5, 0.97], 1, [0, 2]),
    ([0.95, 0.5, 0.97], 2, [0, 2]),
    ([0.95, 0.5, 0.97], 3, [0, 1, 2]),
    ([0.95, 0.5, 0.97], 9, [0, 1, 2, 3]),
    ([0.1, 0.2, 0.3], 2, [0, 1, 2, 3]),
    ([0.95, 0.95, 0.99], 2, [0, 1]),
])  # fmt: skip
def test_cuts_are_below_the_threshold_and_as_many_as_asked_for(
    values: list[float], least: int, starts: list[int]
) -> None:
    parts = cut(torch.tensor(values), 0.9, least)
    assert [part.start for part in parts] == starts
    assert [frame for part in parts for frame in part] == list(range(len(values) + 1))


def test_frames_are_compared_by_their_mean_tokens() -> None:
    tokens = torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(0))
    means = tokens.double().mean(1)
    expected = [float(torch.cosine_similarity(means[f], means[f + 1], dim=0)) for f in range(4)]
    torch.testing.assert_close(frame_similarity(tokens).double(), torch.tensor(expected).double(), atol=1e-6, rtol=1e-6)
    assert frame_similarity(tokens[:1]).shape == (0,)
