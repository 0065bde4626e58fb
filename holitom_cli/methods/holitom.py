"""HoliTom: merge over time, then over space, then once more inside the language model (arXiv 2505.21334)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from holitom_cli.algebra import kernels
from holitom_cli.algebra.host import highest, moved
from holitom_cli.algebra.kernels import segment_means
from holitom_cli.algebra.merge import Wanted, blend_weights, merge_by_peaks
from holitom_cli.algebra.segments import Segments, neighbour_similarity, segment, steadiness
from holitom_cli.methods import Method
from holitom_cli.methods.inner import Inner
from holitom_cli.methods.tools.settings import Share, budget, check, check_ratio, share_of
from holitom_cli.types import Reduction, VideoFeatures, VisualTokens

if TYPE_CHECKING:
    from holitom_cli.algebra.host import BoolArray
    from holitom_cli.types import FloatArray, IntArray


@dataclass(frozen=True)
class HoliTom(Method):
    """Holistic token merging, training-free (arXiv 2505.21334; code: cokeshao/HoliTom).

    Before the language model the clip is cut into segments where merging unchanged cells over time saves
    the most tokens. Cells that are static over a segment are averaged over time and clustered in space; of
    the others, those that receive the most attention in the tower are kept. Inside, before layer
    `inner_layer`, the visual tokens that the last prompt token attends to least are folded into the kept
    ones that they resemble most.

    Differs from the published code on purpose: the layer before the inner merge keeps its causal mask (there
    it is lost as a side effect of asking for attention weights), and nothing random breaks ties.
    """

    status: ClassVar[str] = "matches the code"

    retain_ratio: Annotated[Share, "share of the visual tokens to keep before the language model"] = 0.15
    tau: Annotated[float, "cosine above which a cell counts as unchanged from one frame to the next"] = 0.8
    beta: Annotated[float, "weight of a cluster's centre against the mean of its other members"] = 0.6
    neighbours: Annotated[int, "nearest tokens that make a token's density"] = 7
    max_window: Annotated[int, "longest segment in frames"] = 1024
    inner_layer: Annotated[
        int | str, "layer before which to merge inside: auto (round(depth * 18/28)), off or a number"
    ] = "auto"
    inner_ratio: Annotated[float, "share of the visual tokens that the merge inside folds away"] = 0.5

    needs_attention: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "25": {"retain_ratio": 0.25, "tau": 0.8},
        "20": {"retain_ratio": 0.20, "tau": 0.8},
        "15": {"retain_ratio": 0.15, "tau": 0.8},
        "10": {"retain_ratio": 0.10, "tau": 0.65},
    }

    def __post_init__(self) -> None:
        check_ratio(self.retain_ratio)
        check(-1 <= self.tau <= 1, "tau", self.tau, "a cosine from -1 to 1")
        check(0 <= self.beta <= 1, "beta", self.beta, "from 0 to 1")
        check(self.neighbours >= 1, "neighbours", self.neighbours, "at least 1")
        check(self.max_window >= 1, "max_window", self.max_window, "at least 1 frame")
        Inner(self.inner_layer, self.inner_ratio)  # checks them

    def compress(self, video: VideoFeatures) -> VisualTokens:
        """Merge over time and space (sections 3.2 and 3.3); one small transfer to the host decides all shapes."""
        if video.attention is None:
            raise ValueError("HoliTom needs the attention that each patch receives in the tower")
        tokens, (frames, patches, _) = video.tokens, video.tokens.shape
        # 1. Segments, from which cells change from frame to frame, and all that follows from them.
        plan = (_plan_there if kernels.clusters_on(tokens) else _plan_here)(tokens, video.attention, self)
        rows, segments = plan.rows, plan.segments
        # 2. Changing cells: those that receive the most attention stay as they are. Static ones: averaged over time,
        #    then clustered in space. The row behind the last one is for clusters that some segments do not have.
        embeds, goes_to = tokens.flatten(0, 1).index_select(0, rows[0]), []
        for first in range(0, len(plan.groups), _GROUPS_AT_ONCE):
            part = slice(first, first + _GROUPS_AT_ONCE)
            here = plan.wanted.groups(part)
            merged = merge_by_peaks(segment_means(tokens, plan.groups[part], plan.bounds[part]), here)
            row = here.row.flatten()
            embeds.index_copy_(0, row, merged.blended.flatten(0, 1).to(embeds.dtype))
            rows[3:].index_copy_(1, row, merged.account.flatten(1))
            goes_to.append(merged.goes_to.flatten())
        # 3. The account of every original token.
        frame, _, cell, size = rows[1:, :-1]
        place = torch.cat((*goes_to, rows[2])).index_select(0, plan.lookup).view(frames, patches)
        stages = (("temporal merge", frames * patches - segments.saved), ("spatial merge", len(embeds) - 1))
        return VisualTokens(embeds[:-1], frame, cell, size, place, segments.parts, stages)

    def reductions(self, depth: int) -> Mapping[int, Reduction]:
        """Merge once inside (section 3.4), by the last prompt token's attention in the layer before."""
        return Inner(self.inner_layer, self.inner_ratio).reductions(depth)

    def most_tokens(self, frames: int, patches: int) -> int:
        """The share to keep, plus what rounding up in every frame and segment can add."""
        return min(frames * patches, math.ceil(budget(self.retain_ratio, frames, patches, math.ceil) + 1.5 * frames))


_GROUPS_AT_ONCE = 32  # segments whose means, (G, P, D) float32, exist at a time


class _Shares(NamedTuple):
    """How many rows of N each of S segments gets: first its static ones, then those of each of its frames."""

    length: IntArray  # (S,) frames
    centres: IntArray  # (S,) rows of its static cells together
    each: IntArray  # (S,) rows of the changing cells in each of its frames
    first_row: IntArray  # (S,)
    total: int  # N


def _shares(segments: Segments, patches: int, retain_ratio: float | str) -> _Shares:
    """Share the budget out."""
    length = segments.bounds[:, 1] - segments.bounds[:, 0]
    frames = int(length.sum())
    original = frames * patches
    share = share_of(retain_ratio, frames, patches)
    ratio = min(share / ((original - segments.saved) / original), 1)  # in this order: rounding up is sensitive
    centres = np.rint(segments.cells * ratio).astype(np.int64)
    each = np.ceil((patches - segments.cells) * ratio).astype(np.int64)
    rows = centres + each * length
    ends = rows.cumsum()
    return _Shares(length, centres, each, ends - rows, int(ends[-1]))


class _Plan(NamedTuple):
    """What of each frame and segment is kept, in N rows; G segments have static cells of which some are kept."""

    segments: Segments
    groups: IntArray  # (G, 2) the first frame of each of the G segments, and the first behind it
    bounds: Tensor  # (G, 2) the same on the device, as the rest
    wanted: Wanted  # what becomes of their static cells
    rows: Tensor  # (5, N + 1) token and frame of each row, -1 to N - 1, cell, and 1; of static rows only the frame
    lookup: Tensor  # (F P,) where the row of each token is found: among G P cells, or behind them in -1, 0, ... N - 1


def _plan_here(tokens: Tensor, attention: Tensor, method: HoliTom) -> _Plan:
    """All of it on the host; tokens (F, P, D), attention (F, P)."""
    similarity, scores = _on_host(neighbour_similarity(tokens), attention)
    until, steady = steadiness(similarity > method.tau, method.max_window)
    segments = segment(steady)
    shares = _shares(segments, scores.shape[1], method.retain_ratio)
    length, centres, each, first_row, total = shares
    start, last = segments.bounds[:, 0], segments.bounds[:, 1:] - 1
    static = (until[start] >= last) & (last > start[:, None])
    segment_of = np.arange(len(length)).repeat(length)
    chosen = highest(scores, ~static[segment_of], each[segment_of])
    row = np.arange(len(chosen)) + centres.cumsum().repeat(each * length)
    busy = np.flatnonzero(centres)
    these = static[busy], centres[busy], first_row[busy]
    wanted = Wanted.arrays(*these, total, method.neighbours, method.beta, length[busy])
    groups, rows = segments.bounds[busy], _rows(start, shares, chosen, row, scores.shape[1])
    found = moved([groups, rows, _lookup(static, busy, segment_of, chosen, row), *wanted], tokens.device)
    return _Plan(segments, groups, found[0], Wanted(*found[3:]), *found[1:3])


def _rows(start: IntArray, shares: _Shares, chosen: IntArray, row: IntArray, patches: int) -> IntArray:
    """The rows of a plan, from the first frame of each segment and the row of each chosen token."""
    rows = np.zeros((5, shares.total + 1), dtype=np.int64)
    rows[1, :-1] = start.repeat(shares.centres + shares.each * shares.length)
    rows[2], rows[4] = np.arange(-1, shares.total), 1
    rows[0, row] = chosen
    rows[1, row], rows[3, row] = np.divmod(chosen, patches)
    return rows


def _lookup(static: BoolArray, busy: IntArray, segment_of: IntArray, chosen: IntArray, row: IntArray) -> IntArray:
    """The lookup of a plan: static cells (S, P) find their row where the clusters of their segment write it."""
    patches, behind = static.shape[1], len(busy) * static.shape[1]
    places = np.full(static.shape, behind)
    places[busy] = np.where(static[busy], np.arange(behind).reshape(-1, patches), behind)
    lookup = places[segment_of].reshape(-1)
    lookup[chosen] = behind + 1 + row
    return lookup


def _on_host(similarity: Tensor, attention: Tensor) -> tuple[FloatArray, FloatArray]:
    """Both on the CPU, for one wait: (F-1, P) and (F, P) float32."""
    together = torch.cat((similarity, attention)).cpu().numpy()
    return together[: len(similarity)], together[len(similarity) :]


def _plan_there(tokens: Tensor, attention: Tensor, method: HoliTom) -> _Plan:
    """The same with only the segments on the host, and what each of them gets."""
    until, steady = kernels.steadiness(neighbour_similarity(tokens), method.tau, method.max_window)
    segments = segment(steady.cpu().numpy())
    length, centres, each, first_row, total = _shares(segments, tokens.shape[1], method.retain_ratio)
    busy = np.flatnonzero(centres)
    group = np.full_like(centres, -1)
    group[busy] = np.arange(len(busy))
    start, stop = segments.bounds.T
    shares = np.array((start, stop - 1, group, first_row, centres, each)).T.repeat(length, 0)
    groups = segments.bounds[busy]
    weights = blend_weights(tokens.shape[1], method.beta)
    known = moved([shares, groups, centres[busy], length[busy], weights], tokens.device)
    most = int(centres.max())
    rows, lookup, *found = kernels.allot(attention, until, known[0], len(groups), most, total, method.neighbours)
    return _Plan(segments, groups, known[1], Wanted._make([*known[2:4], *found, known[4]]), rows, lookup)
