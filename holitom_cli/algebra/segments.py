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

    parts: tuple[range, ...]  # of frames
    saved: int  # tokens, by merging over time
    static: BoolArray  # (S, P) cells that stay the same over each segment; none over a single frame
    bounds: IntArray  # (S, 2) the parts again: the first frame of each and the first behind it


def segment(unchanged: BoolArray, max_window: int) -> Segments:
    """Cut a clip where merging unchanged cells over time saves the most tokens.

    A window of w + 1 frames saves w tokens for each cell that is static throughout it. The dynamic
    programme over frames is exact; where savings are equal, the shorter window wins.

    Args:
        unchanged: (F-1, P), whether a cell equals the same cell of the next frame.
        max_window: longest window in frames.
    """
    frames = len(unchanged) + 1
    frame = np.arange(frames)[:, None]
    until = _until(unchanged, frame)
    gains = _window_gains(until, frame, max_window - 1) * frames
    start = [0, *range(frames)]  # of the last segment among the first i frames
    best = np.zeros(frames + 1 + gains.shape[1], dtype=np.int64)  # savings, then that start: ties prefer the later one
    saved = 0  # by the frames before, times `frames`
    for first, longer in enumerate(gains):
        windows = best[first + 2 : first + 2 + len(longer)]
        np.maximum(windows, longer + (saved + first), out=windows)
        begin = best.item(first + 1) % frames
        most = best.item(first + 1) - begin
        if most > saved:
            saved, start[first + 1] = most, begin
    parts = _backtrack(start)
    bounds = np.array([(part.start, part.stop) for part in parts])
    begun, last = bounds[:, :1], bounds[:, 1:] - 1
    return Segments(tuple(parts), saved // frames, (until[begun[:, 0]] >= last) & (last > begun), bounds)


def _until(unchanged: BoolArray, frame: IntArray) -> IntArray:
    """The last frame until which a cell stays as it is in each frame (F, 1): (F-1, P) -> (F, P)."""
    until = np.empty((len(frame), unchanged.shape[1]), dtype=np.int64)
    until[:-1] = np.where(unchanged, len(unchanged), frame[:-1])
    until[-1] = len(unchanged)
    np.minimum.accumulate(until[::-1], 0, out=until[::-1])
    return until


def _window_gains(until: IntArray, frame: IntArray, most: int) -> IntArray:
    """Tokens that windows of 1, 2, ... steps would save: (F, P) of `_until` -> (F, W) by [first frame, steps - 1].

    Windows longer than `most` steps, or than any cell is static, are left out.
    """
    longest = int((until.max(1) - frame[:, 0]).max())
    if longest > most:
        until, longest = np.minimum(until, frame + most), most
    bins = until + frame * longest  # frame * (longest + 1) + steps
    histogram = np.bincount(bins.reshape(-1), minlength=len(until) * (longest + 1)).reshape(-1, longest + 1)
    at_least = histogram[:, :0:-1].cumsum(1)[:, ::-1]  # cells static for so many steps from a frame on
    gains: IntArray = at_least * np.arange(1, longest + 1)
    return gains


def _backtrack(start: list[int]) -> list[range]:
    segments: list[range] = []
    end = len(start) - 1
    while end > 0:
        segments.append(range(start[end], end))
        end = start[end]
    return segments[::-1]
