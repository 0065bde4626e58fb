"""Which neighbouring frames repeat each other, and where to cut a clip (HoliTom, arXiv 2505.21334)."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from holitom_cli.algebra import kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

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


def segment(static: Tensor, max_window: int) -> tuple[tuple[range, ...], int]:
    """Cut a clip where merging unchanged cells over time saves the most tokens.

    A window of w + 1 frames saves w tokens for each cell that is static throughout it. The dynamic
    programme over frames is exact; where savings are equal, the shorter window wins.

    Args:
        static: (F-1, P) bool on the CPU, whether a cell equals the same cell of the next frame.
        max_window: longest window in frames.

    Returns:
        The segments as ranges of frames, and the number of tokens that merging over time saves.
    """
    frames = len(static) + 1
    gains = _window_gains(static.numpy(), max_window - 1) * frames
    saved = [0] * (frames + 1)  # by the first i frames
    start = [0, *range(frames)]  # of the last segment among the first i frames
    best = np.zeros(frames + 1 + gains.shape[1], dtype=np.int64)  # savings, then the start: ties prefer the later one
    for first in range(frames):
        windows = best[first + 2 : first + 2 + gains.shape[1]]
        np.maximum(windows, gains[first] + (saved[first] * frames + first), out=windows)
        most, begin = divmod(int(best[first + 1]), frames)
        better = most > saved[first]
        saved[first + 1] = most if better else saved[first]
        start[first + 1] = begin if better else first
    return tuple(_backtrack(start)), saved[-1]


def _window_gains(static: NDArray[np.bool_], most: int) -> NDArray[np.int64]:
    """Tokens that windows of 1, 2, ... steps would save: (F-1, P) -> (F, W) by [first frame, steps - 1].

    Windows longer than `most` steps, or than any cell is static, are left out.
    """
    lives = _lifetimes(static)
    longest = min(int(lives.max(initial=0)), most)
    bins = np.minimum(lives, longest) + np.arange(len(static))[:, None] * (longest + 1)
    histogram = np.bincount(bins.reshape(-1), minlength=(len(static) + 1) * (longest + 1)).reshape(-1, longest + 1)
    at_least = histogram[:, :0:-1].cumsum(1)[:, ::-1]  # cells static for so many steps from a frame on
    gains: NDArray[np.int64] = at_least * np.arange(1, longest + 1)
    return gains


def _lifetimes(static: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For how many steps from each frame on a cell stays static: (F-1, P) -> (F-1, P)."""
    here = np.arange(len(static))[:, None]
    change = np.where(static, len(static), here)
    lives: NDArray[np.int64] = np.minimum.accumulate(change[::-1], 0)[::-1] - here
    return lives


def _backtrack(start: list[int]) -> list[range]:
    segments: list[range] = []
    end = len(start) - 1
    while end > 0:
        segments.append(range(start[end], end))
        end = start[end]
    return segments[::-1]
