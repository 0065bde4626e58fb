"""Which neighbouring frames repeat each other, and where to cut a clip (HoliTom, arXiv 2505.21334)."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from holitom_cli.algebra import kernels

if TYPE_CHECKING:
    from holitom_cli.algebra.host import BoolArray, IntArray

_CHUNK_FRAMES = 32  # float32 copies of this many frames are held at a time


def neighbour_similarity(tokens: Tensor) -> Tensor:
    """Cosine of every cell with the same cell of the next frame: tokens (F, P, D) -> (F-1, P) float32."""
    if kernels.runs_on(tokens):
        return kernels.neighbour_similarity(tokens)
    starts = range(0, len(tokens) - 1, _CHUNK_FRAMES)
    chunks = [tokens[start : start + _CHUNK_FRAMES + 1].float() for start in starts]
    pairs = [torch.cosine_similarity(chunk[:-1], chunk[1:], dim=-1) for chunk in chunks]
    return torch.cat(pairs) if pairs else tokens.new_zeros(0, tokens.shape[1], dtype=torch.float32)


def frame_similarity(tokens: Tensor) -> Tensor:
    """Cosine of every frame's mean token with that of the next frame: tokens (F, P, D) -> (F-1,) float32."""
    means = tokens.mean(1, dtype=torch.float32)
    return torch.cosine_similarity(means[:-1], means[1:], dim=-1)


def cut(similarity: Tensor, threshold: float, least: int) -> tuple[range, ...]:
    """Cut a clip where neighbouring frames are alike least (FastVID, arXiv 2503.11187, section 3.2; FlashVID).

    Args:
        similarity: (F-1,) of every frame with the next, on the CPU.
        threshold: cuts are made wherever it is below this,
        least: and where it is lowest, until there are so many segments, if there are so many frames.

    Returns:
        The segments as ranges of frames.
    """
    below = int((similarity < threshold).sum())
    lowest = similarity.argsort(stable=True)[: max(below, least - 1)]
    bounds = [0, *(lowest.sort().values + 1).tolist(), len(similarity) + 1]
    return tuple(range(start, stop) for start, stop in pairwise(bounds))


class Segments(NamedTuple):
    """A clip in S segments."""

    bounds: IntArray  # (S, 2) the first frame of each and the first behind it
    cells: IntArray  # (S,) how many stay the same over each segment; none over a single frame
    saved: int  # tokens, by merging over time

    @property
    def parts(self) -> tuple[range, ...]:
        """The same as ranges of frames."""
        return tuple(range(start, stop) for start, stop in self.bounds.tolist())


def steadiness(unchanged: BoolArray, max_window: int) -> tuple[IntArray, IntArray]:
    """How long cells stay as they are; `kernels.steadiness` is the same on a GPU.

    Args:
        unchanged: (F-1, P), whether a cell equals the same cell of the next frame.
        max_window: longest window in frames.

    Returns:
        (F, P), for each frame and cell, the last frame until which the cell stays as it is there, as far as windows go;
        and (F, W), how many cells stay as they are for 1, 2, ... W steps from a frame on; none does for more.
    """
    frame = np.arange(len(unchanged) + 1)[:, None]
    until = np.empty((len(frame), unchanged.shape[1]), dtype=np.int64)
    until[:-1] = np.where(unchanged, len(unchanged), frame[:-1])
    until[-1] = len(unchanged)
    np.minimum.accumulate(until[::-1], 0, out=until[::-1])
    longest = int((until.max(1) - frame[:, 0]).max())
    if longest > max_window - 1:
        until, longest = np.minimum(until, frame + max_window - 1), max_window - 1
    bins = until + frame * longest  # frame * (longest + 1) + steps
    histogram = np.bincount(bins.reshape(-1), minlength=len(until) * (longest + 1)).reshape(-1, longest + 1)
    return until, histogram[:, :0:-1].cumsum(1)[:, ::-1]


def segment(steady: IntArray) -> Segments:
    """Cut a clip where merging unchanged cells over time saves the most tokens.

    A window of w + 1 frames saves w tokens for each cell that is static throughout it. The dynamic
    programme over frames is exact; where savings are equal, the shorter window wins.

    Args:
        steady: (F, W) how many cells stay as they are for 1, 2, ... W steps from a frame on; none does for more.
    """
    frames, windows = len(steady), np.count_nonzero(steady.any(0))
    gains = steady[:, :windows] * (np.arange(1, windows + 1) * frames)
    start = [0, *range(frames)]  # of the last segment among the first i frames
    best = np.zeros(frames + 1 + windows, dtype=np.int64)  # savings, then that start: ties prefer the later one
    saved = 0  # by the frames before, times `frames`
    for first, longer in enumerate(gains):
        reached = best[first + 2 : first + 2 + windows]
        np.maximum(reached, longer + (saved + first), out=reached)
        begin = best.item(first + 1) % frames
        most = best.item(first + 1) - begin
        if most > saved:
            saved, start[first + 1] = most, begin
    bounds = _backtrack(start)
    steps = bounds[:, 1] - bounds[:, 0] - 1
    merged, cells = steps > 0, np.zeros_like(steps)
    cells[merged] = steady[bounds[merged, 0], steps[merged] - 1]
    return Segments(bounds, cells, saved // frames)


def _backtrack(start: list[int]) -> IntArray:
    """The bounds (S, 2) of the segments, from that of the last one among the first i frames."""
    bounds: list[tuple[int, int]] = []
    end = len(start) - 1
    while end > 0:
        bounds.append((start[end], end))
        end = start[end]
    return np.array(bounds[::-1])
