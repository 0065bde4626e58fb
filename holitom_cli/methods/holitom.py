"""HoliTom: merge over time, then over space, then once more inside the language model (arXiv 2505.21334)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from holitom_cli.algebra.merge import density_peaks, merge_into_centres, top_mask
from holitom_cli.algebra.segments import neighbour_similarity, segment
from holitom_cli.methods import Method
from holitom_cli.methods.inner import Inner
from holitom_cli.methods.tools.settings import Share, budget, check, check_ratio, share_of
from holitom_cli.methods.tools.tokens import marked
from holitom_cli.types import Reduction, VideoFeatures, VisualTokens


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
        """Merge over time and space (sections 3.2 and 3.3); one small transfer decides all shapes."""
        if video.attention is None:
            raise ValueError("HoliTom needs the attention that each patch receives in the tower")
        tokens, (frames, patches, _) = video.tokens, video.tokens.shape
        # 1. Segments, from which cells change from frame to frame.
        unchanged = (neighbour_similarity(tokens) > self.tau).cpu()
        segments, saved = segment(unchanged, self.max_window)
        ratio = share_of(self.retain_ratio, frames, patches)
        plan = _plan(unchanged, segments, saved, ratio).to(tokens.device)
        # 2. Changing cells: those that receive the most attention stay as they are.
        kept = top_mask(video.attention.masked_fill(~plan.dynamic, -torch.inf), plan.dynamic_count)
        origin = marked(kept, len(plan.dynamic_row))
        source = torch.full_like(plan.dynamic, -1, dtype=torch.int64)
        source.view(-1)[origin] = plan.dynamic_row
        anchor = source.new_empty(plan.total)  # the frame and cell where each row stands, as one index
        anchor[plan.dynamic_row] = origin
        # 3. Static cells: averaged over time, then clustered in space.
        blended, goes_to, centre = self._merge_static(tokens, plan)
        source = torch.where(plan.dynamic, source, goes_to[plan.group])
        anchor[plan.static_row] = plan.start[centre // patches] * patches + centre % patches
        embeds = tokens.flatten(0, 1)[anchor]
        embeds[plan.static_row] = blended.to(embeds.dtype)
        # 4. The account of every original token.
        size = source.new_zeros(plan.total + 1)
        size.scatter_add_(0, torch.where(source < 0, plan.total, source).view(-1), torch.ones_like(source).view(-1))
        stages = (("temporal merge", frames * patches - saved), ("spatial merge", plan.total))
        return VisualTokens(embeds, anchor // patches, anchor % patches, size[:-1], source, segments, stages)

    def reductions(self, depth: int) -> Mapping[int, Reduction]:
        """Merge once inside (section 3.4), by the last prompt token's attention in the layer before."""
        return Inner(self.inner_layer, self.inner_ratio).reductions(depth)

    def most_tokens(self, frames: int, patches: int) -> int:
        """The share to keep, plus what rounding up in every frame and segment can add."""
        return min(frames * patches, math.ceil(budget(self.retain_ratio, frames, patches, math.ceil) + 1.5 * frames))

    def _merge_static(self, tokens: Tensor, plan: _Plan) -> tuple[Tensor, Tensor, Tensor]:
        """Cluster the static cells of the G segments.

        Returns:
            The merged rows (R, D) float32, the row that each cell goes to (G, P), and the (segment, cell) of
            each row as one index (R,).
        """
        if not plan.merged:
            nothing = plan.static_row
            return (
                tokens.new_empty(0, tokens.shape[-1]),
                plan.dynamic.new_full((1, 1), -1, dtype=torch.int64),
                nothing,
            )
        means = torch.stack([tokens[s.start : s.stop].mean(0, dtype=torch.float32) for s in plan.merged])
        clusters = density_peaks(means, plan.static, plan.static_count, self.neighbours)
        centre = marked(clusters.centre, len(plan.static_row))
        row = torch.full_like(clusters.member_of, -1)
        row.view(-1)[centre] = plan.static_row
        goes_to = row.gather(1, clusters.member_of).masked_fill(~plan.static, -1)
        blended = merge_into_centres(means, plan.static, clusters, self.beta).flatten(0, 1)
        return blended[centre], goes_to, centre


class _Plan(NamedTuple):
    """How many rows each frame and segment keeps, and which. G segments have more than one frame."""

    total: int  # rows in all, N
    merged: list[range]  # the G segments
    dynamic: Tensor  # (F, P) bool, cells that change within their segment
    dynamic_count: Tensor  # (F,) how many of them to keep
    dynamic_row: Tensor  # rows that they become, frame by frame
    static: Tensor  # (G, P) bool, cells that stay the same over the segment
    static_count: Tensor  # (G,) how many centres they become
    static_row: Tensor  # rows that they become, segment by segment
    start: Tensor  # (G,) first frame
    group: Tensor  # (F,) which of the G segments a frame is in; 0 for a frame on its own

    def to(self, device: torch.device) -> _Plan:
        """The same plan with its tensors on `device`."""
        moved: dict[str, Any] = {
            name: item.to(device) for name, item in self._asdict().items() if isinstance(item, Tensor)
        }
        return self._replace(**moved)


def _plan(unchanged: Tensor, segments: tuple[range, ...], saved: int, retain_ratio: float) -> _Plan:
    """Share the budget out: unchanged (F-1, P) bool on the CPU."""
    frames, patches = len(unchanged) + 1, unchanged.shape[1]
    original = frames * patches
    ratio = min(retain_ratio / ((original - saved) / original), 1)  # in this order: rounding up is sensitive
    merged = [s for s in segments if len(s) > 1]
    static = torch.stack([unchanged[s.start : s.stop - 1].all(0) for s in merged]) if merged else unchanged[:0]
    group = torch.zeros(frames, dtype=torch.int64)
    dynamic = torch.ones(frames, patches, dtype=torch.bool)
    for index, s in enumerate(merged):
        group[s.start : s.stop] = index
        dynamic[s.start : s.stop] = ~static[index]
    dynamic_count = [math.ceil(count * ratio) for count in dynamic.sum(1).tolist()]
    static_count = [round(count * ratio) for count in static.sum(1).tolist()]
    is_static: list[bool] = []  # by row: a segment's static rows, then its frames' rows
    centres = iter(static_count)
    for s in segments:
        is_static += [True] * (next(centres) if len(s) > 1 else 0)
        is_static += [False] * sum(dynamic_count[s.start : s.stop])
    kinds = torch.tensor(is_static, dtype=torch.bool)
    return _Plan(
        total=len(is_static),
        merged=merged,
        dynamic=dynamic,
        dynamic_count=torch.tensor(dynamic_count),
        dynamic_row=(~kinds).nonzero()[:, 0],
        static=static,
        static_count=torch.tensor(static_count, dtype=torch.int64),
        static_row=kinds.nonzero()[:, 0],
        start=torch.tensor([s.start for s in merged], dtype=torch.int64),
        group=group,
    )
