"""HoliTom: merge over time, then over space, then once more inside the language model (arXiv 2505.21334)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from holitom_cli.algebra.merge import density_peaks, merge_into_centres
from holitom_cli.algebra.segments import neighbour_similarity, segment
from holitom_cli.methods import Method
from holitom_cli.methods.inner import Inner
from holitom_cli.methods.tools.settings import Share, budget, check, check_ratio, share_of
from holitom_cli.methods.tools.tokens import marked
from holitom_cli.types import Reduction, VideoFeatures, VisualTokens

if TYPE_CHECKING:
    from holitom_cli.types import BoolArray, FloatArray, IntArray


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
        # 1. On the host: segments, from which cells change from frame to frame, and what each keeps of its budget.
        unchanged, attention = _on_host(neighbour_similarity(tokens) > self.tau, video.attention)
        segments, saved = segment(unchanged, self.max_window)
        share = share_of(self.retain_ratio, frames, patches)
        plan = _plan(unchanged.numpy(), attention.numpy(), segments, saved, share)
        source, anchor, static_row, start, group, static, static_count = plan.on(tokens.device)
        # 2. Changing cells: those that receive the most attention stay as they are. Static ones: averaged over time,
        #    then clustered in space.
        blended = tokens[:0, 0]
        if plan.merged:
            cells = static.view(-1, patches).bool()
            blended, goes_to, centre = self._merge_static(tokens, plan.merged, cells, static_count, static_row)
            source = torch.where(source == _STATIC, goes_to[group].flatten(), source)
            anchor[static_row] = start[centre // patches] * patches + centre % patches
        embeds = tokens.flatten(0, 1)[anchor]
        embeds[static_row] = blended.to(embeds.dtype)
        # 3. The account of every original token.
        size = source.new_zeros(len(anchor) + 1)
        size.scatter_add_(0, torch.where(source < 0, len(anchor), source), torch.ones_like(source))
        stages = (("temporal merge", frames * patches - saved), ("spatial merge", len(anchor)))
        place = source.view(frames, patches)
        return VisualTokens(embeds, anchor // patches, anchor % patches, size[:-1], place, segments, stages)

    def reductions(self, depth: int) -> Mapping[int, Reduction]:
        """Merge once inside (section 3.4), by the last prompt token's attention in the layer before."""
        return Inner(self.inner_layer, self.inner_ratio).reductions(depth)

    def most_tokens(self, frames: int, patches: int) -> int:
        """The share to keep, plus what rounding up in every frame and segment can add."""
        return min(frames * patches, math.ceil(budget(self.retain_ratio, frames, patches, math.ceil) + 1.5 * frames))

    def _merge_static(
        self, tokens: Tensor, merged: list[range], static: Tensor, count: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cluster the static cells of G segments.

        Args:
            tokens: (F, P, D).
            merged: the segments.
            static: (G, P) bool.
            count: (G,) int64 centres of each.
            rows: (R,) int64 the rows that they become.

        Returns:
            The merged rows (R, D) float32, the row that each cell goes to (G, P), -1 for none, and the (segment, cell)
            of each as one index (R,).
        """
        means = torch.stack([tokens[s.start : s.stop].mean(0, dtype=torch.float32) for s in merged])
        clusters = density_peaks(means, static, count, self.neighbours)
        centre = marked(clusters.centre, len(rows))
        row = torch.full_like(clusters.member_of, -1)
        row.view(-1)[centre] = rows
        goes_to = row.gather(1, clusters.member_of).masked_fill(~static, -1)
        blended = merge_into_centres(means, static, clusters, self.beta).flatten(0, 1)
        return blended[centre], goes_to, centre


_STATIC = -2  # where static cells go is not known on the host


class _Plan(NamedTuple):
    """What of each frame and segment is kept. G segments have more than one frame."""

    merged: list[range]  # the G segments
    source: IntArray  # (F P,) row that each token goes to, -1 = dropped, or _STATIC
    anchor: IntArray  # (N,) token that stands where each row does; 0 for static ones
    static_row: IntArray  # rows that static cells become, segment by segment
    start: IntArray  # (G,) first frame
    group: IntArray  # (F,) which of the G segments a frame is in; 0 for a frame on its own
    static: IntArray  # (G P,) 1 for cells that stay the same over the segment
    static_count: IntArray  # (G,) how many centres they become

    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        """Everything but the segments, moved to a device at once."""
        parts = self[1:]
        together = torch.from_numpy(np.concatenate(parts)).to(device)
        moved: tuple[Tensor, ...] = together.split([len(part) for part in parts])
        return moved


def _on_host(unchanged: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the CPU, for one wait: (F-1, P) bool, (F, P) float32."""
    together = torch.cat((unchanged.float(), attention)).cpu()
    return together[: len(unchanged)] > 0, together[len(unchanged) :]


def _plan(
    unchanged: BoolArray, attention: FloatArray, segments: tuple[range, ...], saved: int, retain_ratio: float
) -> _Plan:
    """Share the budget out: unchanged (F-1, P), attention (F, P)."""
    frames, patches = attention.shape
    original = frames * patches
    ratio = min(retain_ratio / ((original - saved) / original), 1)  # in this order: rounding up is sensitive
    merged = [s for s in segments if len(s) > 1]
    group = np.zeros(frames, dtype=np.int64)
    static = np.zeros((len(merged), patches), dtype=bool)
    changing = np.ones((frames, patches), dtype=bool)
    for index, s in enumerate(merged):
        group[s.start : s.stop] = index
        static[index] = unchanged[s.start : s.stop - 1].all(0)
        changing[s.start : s.stop] = ~static[index]
    changing_count = np.ceil(changing.sum(1) * ratio).astype(np.int64)
    static_count = np.round(static.sum(1) * ratio).astype(np.int64)
    is_static = _kinds(segments, changing_count, static_count)
    source = np.where(changing, -1, _STATIC).reshape(-1)
    chosen = _highest(np.where(changing, attention, -np.inf), changing_count)
    anchor = np.zeros(len(is_static), dtype=np.int64)
    anchor[~is_static] = chosen
    source[chosen] = np.flatnonzero(~is_static)
    start = np.array([s.start for s in merged], dtype=np.int64)
    rows = np.flatnonzero(is_static)
    return _Plan(merged, source, anchor, rows, start, group, static.astype(np.int64).reshape(-1), static_count)


def _kinds(segments: tuple[range, ...], changing_count: IntArray, static_count: IntArray) -> BoolArray:
    """By row, whether it is static: first a segment's static rows, then its frames' rows."""
    kinds: list[bool] = []
    centres = iter(static_count.tolist())
    for s in segments:
        kinds += [True] * (next(centres) if len(s) > 1 else 0)
        kinds += [False] * int(changing_count[s.start : s.stop].sum())
    return np.array(kinds, dtype=bool)


def _highest(scores: FloatArray, count: IntArray) -> IntArray:
    """Flat indices, ascending, of the highest scores of each row, so many; equal scores go to the lower column."""
    order = np.argsort(-scores, axis=1, kind="stable")
    mask = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(mask, order, np.arange(scores.shape[1]) < count[:, None], 1)
    return np.flatnonzero(mask)
