"""PruneVid: scenes, static cells averaged, the rest clustered, then chosen by the question (arXiv 2412.16117)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from holitom_cli.algebra.host import moved
from holitom_cli.algebra.merge import Wanted, density_peaks, merge_by_peaks, segment_sums
from holitom_cli.methods import Method
from holitom_cli.methods.tools.settings import (
    Share,
    apportion,
    budget,
    check,
    check_instead,
    check_layer,
    inner_layer,
)
from holitom_cli.methods.tools.tokens import keep_rows
from holitom_cli.types import LayerView, Reduction, VideoFeatures, VisualTokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from holitom_cli.types import BoolArray, IntArray


@dataclass(frozen=True)
class PruneVid(Method):
    """Merges over time and space, then prunes by the question (PruneVid, arXiv 2412.16117).

    Frames are clustered by density peaks (a quarter as many clusters, 7 neighbours) and made into scenes that are
    contiguous. Cells whose mean pairwise cosine over a scene is above `tau` are static and averaged over it. The static
    cells of a scene and the others of each frame are clustered by density peaks to int(cluster_ratio * n) of n, at
    least one, and a cluster is its members' mean. Before layer 10 (of 28), the `inner_keep` share of the rows stays
    that has the highest attention, the maximum over heads and over the text after the video.

    With a budget, the clusters are shared out in proportion to the cells, so that it is met exactly. The authors'
    code breaks ties between densities by chance; here the lower index wins.
    """

    status: ClassVar[str] = "from the paper"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {"cluster_ratio": 0.5, "inner_keep": 0.4}}

    cluster_ratio: Annotated[float, "clusters for each cell"] = 0.5
    retain_ratio: Annotated[Share | None, "share of the visual tokens to keep, instead of cluster_ratio"] = None
    tau: Annotated[float, "mean cosine above which a cell is static over a scene"] = 0.8
    scenes: Annotated[float, "clusters of frames for each frame"] = 0.25
    neighbours: Annotated[int, "nearest frames or tokens that make a density"] = 7
    inner_layer: Annotated[
        int | str, "layer before which to prune inside: auto (round(depth * 10/28)), off or a number"
    ] = "auto"
    inner_keep: Annotated[float, "share of the visual tokens that stays there"] = 0.4

    def __post_init__(self) -> None:
        check(0 < self.cluster_ratio <= 1, "cluster_ratio", self.cluster_ratio, "above 0 and at most 1")
        check_instead("cluster_ratio", self.cluster_ratio, type(self).cluster_ratio, self.retain_ratio)
        check(-1 <= self.tau <= 1, "tau", self.tau, "a cosine from -1 to 1")
        check(0 < self.scenes <= 1, "scenes", self.scenes, "above 0 and at most 1")
        check(self.neighbours >= 1, "neighbours", self.neighbours, "at least 1")
        check_layer("inner_layer", self.inner_layer)
        check(0 < self.inner_keep <= 1, "inner_keep", self.inner_keep, "above 0 and at most 1")

    def compress(self, video: VideoFeatures) -> VisualTokens:
        """Per scene its static tokens, then frame by frame: (F, P, D) -> (N, D); two small transfers."""
        exact, (frames, patches, width) = video.tokens.float(), video.tokens.shape
        # 1. Scenes, and what is static in those of several frames.
        parts = self._scenes(exact)
        length = torch.tensor([len(part) for part in parts], device=exact.device)
        still = _mean_cosine(exact, length) > self.tau
        # 2. On the host: groups of cells, of S scenes and then of F frames, and how many clusters each becomes.
        plan = self._plan(parts, still.cpu().numpy())
        lookup, rows, *rest = moved([plan.lookup, plan.rows, *plan.wanted], exact.device)
        wanted = Wanted(*rest)
        cells = torch.cat((segment_sums(exact, length) / length[:, None, None], exact))
        del exact  # as large as the cells
        merged = merge_by_peaks(cells, wanted)
        # 3. Rows in reading order, each the mean of its cluster. The one behind them is for clusters that groups lack.
        row = wanted.row.flatten()
        embeds = video.tokens.new_empty(rows.shape[1], width)
        embeds.index_copy_(0, row, merged.blended.flatten(0, 1).to(embeds.dtype))
        rows[1:].index_copy_(1, row, merged.account.flatten(1))
        frame, cell, size = rows[:, :-1]
        source = merged.goes_to.flatten()[lookup].view(frames, patches)
        stages = (("static cells averaged", plan.cells), ("clusters", len(embeds) - 1))
        return VisualTokens(embeds[:-1], frame, cell, size, source, tuple(parts), stages)

    def reductions(self, depth: int) -> Mapping[int, Reduction]:
        """Prune once, by the largest attention that any head of any text token paid in the layer before."""
        layer = inner_layer(self.inner_layer, depth, 10 / 28)
        return {} if layer is None else {layer: Reduction(self._prune, rows="all", heads="max")}

    def most_tokens(self, frames: int, patches: int) -> int:
        """The exact number with a budget; else as if every cell moved, and one more for each group."""
        if self.retain_ratio is not None:
            return budget(self.retain_ratio, frames, patches)
        return min(frames * patches, frames * int(self.cluster_ratio * patches) + 2 * frames)

    def _scenes(self, tokens: Tensor) -> list[range]:
        """Contiguous scenes, from clusters of frames."""
        means = tokens.mean(1)[None]  # (1, F, D)
        frames = means.shape[1]
        centres = torch.tensor([max(1, int(frames * self.scenes))])
        every = torch.ones(1, frames, dtype=torch.bool)
        labels = _contiguous(density_peaks(means, every, centres, self.neighbours).member_of[0].tolist())
        return [range(part[0], part[-1] + 1) for part in _runs(labels)]

    def _plan(self, parts: Sequence[range], still: BoolArray) -> _Plan:
        """What becomes of the cells, of which `still` (S, P) says the static ones of scenes of several frames."""
        length = np.array([len(part) for part in parts])
        start, scene = length.cumsum() - length, np.repeat(np.arange(len(parts)), length)
        static = (still & (length > 1)[:, None])[scene]  # (F, P)
        valid = np.concatenate((static[start], ~static))
        frames, patches = static.shape
        cells = valid.sum(1)
        counts = np.array(self._counts(cells.tolist(), frames, patches))
        # A scene is read just before its first frame.
        order = np.concatenate((start + np.arange(len(parts)), np.arange(frames) + scene + 1)).argsort()
        first_row = np.empty_like(counts)
        first_row[order] = counts[order].cumsum() - counts[order]
        total = int(counts.sum())
        rows = np.zeros((3, total + 1), dtype=np.int64)
        rows[0, :-1] = np.repeat(np.concatenate((start, np.arange(frames)))[order], counts[order])
        each = np.concatenate((length, np.ones(frames, dtype=np.int64)))  # for so many frames a group's cells stand
        group = np.where(static, scene[:, None], len(parts) + np.arange(frames)[:, None])
        lookup = (group * patches + np.arange(patches)).reshape(-1)
        wanted = Wanted.arrays(valid, counts, first_row, total, self.neighbours, each=each)
        return _Plan(lookup, rows, wanted, int(cells.sum()))

    def _counts(self, sizes: Sequence[int], frames: int, patches: int) -> list[int]:
        """How many clusters each group of cells makes."""
        if self.retain_ratio is None:
            return [min(size, max(1, int(self.cluster_ratio * size))) for size in sizes]
        return apportion(budget(self.retain_ratio, frames, patches), [float(size) for size in sizes], list(sizes))

    def _prune(self, view: LayerView) -> tuple[Tensor, Tensor]:
        return keep_rows(view, round(len(view.hidden) * self.inner_keep), view.attention.amax(0))


class _Plan(NamedTuple):
    """What becomes of the cells, in N rows; there are G = S + F groups of them."""

    lookup: IntArray  # (F P,) where each token is among the cells of all groups
    rows: IntArray  # (3, N + 1) frame, and room for cell and size
    wanted: list[NDArray[Any]]  # as `Wanted` has it
    cells: int  # in all groups


def _mean_cosine(tokens: Tensor, length: Tensor) -> Tensor:
    """Mean cosine of every cell between all pairs of frames of scenes of `length` (S,): (F, P, D) -> (S, P)."""
    total = segment_sums(F.normalize(tokens, dim=-1), length).square_().sum(-1)
    return (total - length[:, None]) / (length * (length - 1))[:, None]


def _runs(labels: Sequence[int]) -> list[list[int]]:
    """Positions of equal neighbours, together."""
    return [[position for position, _ in run] for _, run in groupby(enumerate(labels), key=lambda pair: pair[1])]


def _contiguous(labels: list[int]) -> list[int]:
    """Give each cluster one run of frames: its longest; other runs, and single frames, go to a neighbour.

    Of the two neighbours the longer run takes them, the left one if both are as long; runs that were given away
    already count as their new cluster's.
    """
    runs = _runs(labels)
    longest: dict[int, int] = {}
    for run in runs:
        longest[labels[run[0]]] = max(longest.get(labels[run[0]], 0), len(run))
    refined: list[int | None] = list(labels)
    for run in runs:
        if len(run) == 1 or len(run) < longest[labels[run[0]]]:
            refined[run[0] : run[-1] + 1] = [None] * len(run)
    position = 0
    while position < len(refined):
        stop = position
        while stop < len(refined) and refined[stop] is None:
            stop += 1
        if stop > position:
            refined[position:stop] = [_neighbour(refined, position, stop)] * (stop - position)
        position = max(stop, position + 1)
    return [0 if label is None else label for label in refined]


def _neighbour(labels: Sequence[int | None], start: int, stop: int) -> int:
    """The label of the longer run beside labels[start:stop]."""
    left, right = labels[:start], labels[stop:]
    before = next((i for i, label in enumerate(reversed(left)) if label != left[-1]), len(left))
    after = next((i for i, label in enumerate(right) if label != right[0]), len(right))
    if not before and not after:
        return 0
    label = left[-1] if before >= after else right[0]
    return 0 if label is None else label
