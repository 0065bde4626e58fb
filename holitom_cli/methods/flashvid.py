"""FlashVID: diverse tokens that are attended to, the rest linked over time and clustered (ICLR 2026)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from holitom_cli.algebra.host import moved
from holitom_cli.algebra.merge import Wanted, member_means, merge_by_peaks
from holitom_cli.algebra.segments import cut, frame_similarity
from holitom_cli.methods import Method
from holitom_cli.methods.tools.settings import (
    Share,
    apportion,
    check,
    check_layer,
    check_ratio,
    inner_layer,
    share_of,
    spread,
)
from holitom_cli.methods.tools.tokens import attention_of, in_order, keep_rows
from holitom_cli.types import LayerView, Reduction, VideoFeatures, VisualTokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from holitom_cli.types import BoolArray, IntArray


@dataclass(frozen=True)
class FlashVID(Method):
    """Selects by attention and diversity and merges the rest over time and space (FlashVID, ICLR 2026).

    The budget is a mean over the layers: `expansion` times as many tokens enter, and `inner_keep` of them go on from
    layer 20 (of 28), by the last prompt token's attention. Frames share the tokens evenly. Of its own a frame takes
    ceil(selected * share) greedily: each time the one that is farthest from those taken, its
    cosine distances weighted by the attention it receives and its mean product with the mean tokens of its segment's
    frames. Every other token is linked to the most similar such token of the frame before in its segment, if its
    cosine is above `tau`, the best links first until as many are left as are wanted; what is linked is averaged. The
    averages of each frame are clustered by density peaks to what is left of the segment's budget, and a cluster is
    the mean of its averages.

    Segments are cut as FastVID's. The budget is met exactly, where the published code rounds up in each frame;
    linked tokens are averaged alike, where the code weighs them by their place in the chain; and no lots break ties.
    """

    status: ClassVar[str] = "from the paper"
    needs_attention: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "25": {"retain_ratio": 0.25},
        "20": {"retain_ratio": 0.20},
        "15": {"retain_ratio": 0.15},
        "10": {"retain_ratio": 0.10},
    }

    retain_ratio: Annotated[Share, "mean share of the visual tokens over all layers"] = 0.15
    expansion: Annotated[float, "times as many tokens enter the language model"] = 1.25
    selected: Annotated[float, "share of the tokens that are selected, not merged"] = 0.7
    tau: Annotated[float, "cosine above which a token is linked to one of the frame before"] = 0.8
    threshold: Annotated[float, "cosine below which frames are in two segments"] = 0.9
    segments: Annotated[int, "least number of segments"] = 8
    neighbours: Annotated[int, "nearest tokens that make a token's density"] = 7
    inner_layer: Annotated[
        int | str, "layer before which to drop inside: auto (round(depth * 20/28)), off or a number"
    ] = "auto"
    inner_keep: Annotated[float, "share of the visual tokens that stays there"] = 0.3

    def __post_init__(self) -> None:
        check_ratio(self.retain_ratio)
        check(self.expansion > 0, "expansion", self.expansion, "above 0")
        check(0 <= self.selected <= 1, "selected", self.selected, "from 0 to 1")
        check(-1 <= self.tau <= 1, "tau", self.tau, "a cosine from -1 to 1")
        check(-1 <= self.threshold <= 1, "threshold", self.threshold, "a cosine from -1 to 1")
        check(self.segments >= 1, "segments", self.segments, "at least 1")
        check(self.neighbours >= 1, "neighbours", self.neighbours, "at least 1")
        check_layer("inner_layer", self.inner_layer)
        check(0 < self.inner_keep <= 1, "inner_keep", self.inner_keep, "above 0 and at most 1")

    def compress(self, video: VideoFeatures) -> VisualTokens:
        """Select and merge: (F, P, D) -> (N, D) in order of position; two small transfers decide all shapes."""
        exact, (frames, patches, _) = video.tokens.float(), video.tokens.shape
        means = exact.mean(1)
        parts = cut(frame_similarity(means[:, None]).cpu(), self.threshold, self.segments)
        budgets = self._budgets(frames, patches)
        taken = [math.ceil(self.selected * count) for count in budgets]
        room = [count - of for count, of in zip(budgets, taken, strict=True)]
        centre, count, *links = moved(_plan(parts, taken, room, patches), exact.device)
        # 1. Selected tokens: their weight has in it the mean product with the means of the segment's frames.
        unit = F.normalize(exact, dim=-1)
        weight = attention_of(video) * (exact @ (centre @ means)[..., None])[..., 0]
        chosen = _max_min(1 - unit @ unit.transpose(1, 2), weight, count, max(taken))
        # 2. The others, linked over time and averaged.
        root, left = self._roots(unit, chosen, _Links(*links), max(map(len, parts)))
        del unit  # as large as the averages
        averages = member_means(exact.flatten(0, 1), root.masked_fill(chosen, -1).view(-1), frames * patches)
        # 3. On the host: how many clusters the averages of each frame make. Rows are first the selected tokens.
        there = torch.stack((chosen, left)).cpu().numpy()
        remaining = there[1].sum(1).tolist()
        planned = self._planned(there[0], there[1], np.array(_shared_out(parts, room, remaining)))
        places, first, *rest = moved(planned, exact.device)
        wanted = Wanted(*rest)
        # 4. The averages of each frame, clustered; what was linked goes where what it was linked to goes.
        merged = merge_by_peaks(averages.view_as(exact), wanted)
        row = wanted.row.flatten()
        embeds = exact.flatten(0, 1)[places].index_copy_(0, row, merged.blended.flatten(0, 1))
        places.index_copy_(0, row, (merged.cell + first).flatten())
        goes_to = merged.goes_to.flatten()[root.view(-1)]
        stages = (("selected and linked", sum(taken) + sum(remaining)), ("clusters", len(places) - 1))
        return in_order(video, embeds[:-1], places[:-1], goes_to, stages, parts)

    def reductions(self, depth: int) -> Mapping[int, Reduction]:
        """Drop once, by the last prompt token's attention in the layer before."""
        layer = inner_layer(self.inner_layer, depth, 20 / 28)
        return {} if layer is None else {layer: Reduction(self._drop)}

    def most_tokens(self, frames: int, patches: int) -> int:
        """The exact number, where the links leave as many."""
        return sum(self._budgets(frames, patches))

    def _budgets(self, frames: int, patches: int) -> list[int]:
        """How many tokens of each frame's share enter the language model."""
        mean = share_of(self.retain_ratio, frames, patches) * frames * patches
        return spread(min(max(1, round(mean * self.expansion)), frames * patches), frames)

    def _roots(self, unit: Tensor, chosen: Tensor, links: _Links, longest: int) -> tuple[Tensor, Tensor]:
        """Links of the tokens that were not selected.

        Args:
            unit: (F, P, D).
            chosen: (F, P), the selected tokens.
            links: where they may be.
            longest: segment, in frames.

        Returns:
            The place that each token's chain of links begins at, its own where it is not linked, and whether a chain
            begins there, both (F, P).
        """
        frames, patches, _ = unit.shape
        place = torch.arange(frames * patches, device=unit.device).view(frames, patches)
        likeness = (unit[1:] @ unit[:-1].transpose(1, 2)).masked_fill_(chosen[:-1, None], -torch.inf)
        best = likeness.max(2)
        score = torch.cat((torch.full_like(unit[:1, :, 0], -torch.inf), best.values))
        score.masked_fill_(chosen | links.begins[:, None] | (score <= self.tau), -torch.inf)
        order = score.view(-1).argsort(descending=True, stable=True)
        order = order[links.segment[order].argsort(stable=True)]  # by segment and, there, by score
        strongest = torch.empty_like(chosen).view(-1).scatter_(0, order, links.many).view_as(chosen)
        linked = strongest & (score > -torch.inf)
        before = torch.cat((place[:1], place[:-1, :1] + best.indices))
        root = torch.where(linked, before, place).view(-1)
        for _ in range((longest - 1).bit_length()):
            root = root[root]
        return root.view_as(chosen), ~(chosen | linked)

    def _planned(self, chosen: BoolArray, left: BoolArray, counts: IntArray) -> list[NDArray[Any]]:
        """What becomes of N rows, first the selected tokens, then the centres of clusters.

        Args:
            chosen: (F, P), the selected tokens.
            left: (F, P), the averages.
            counts: (F,), of clusters.

        Returns:
            The places of the selected tokens and room for the others' (N + 1,), the first place of each frame (F, 1),
            and what `Wanted` has.
        """
        frames, patches = chosen.shape
        selected = np.flatnonzero(chosen)
        ends = len(selected) + counts.cumsum()
        places = np.zeros(ends[-1] + 1, dtype=np.int64)
        places[: len(selected)] = selected
        first = np.arange(frames)[:, None] * patches
        wanted = Wanted.arrays(left, counts, ends - counts, int(ends[-1]), self.neighbours)
        return [places, first, *wanted]

    def _drop(self, view: LayerView) -> tuple[Tensor, Tensor]:
        return keep_rows(view, math.ceil(len(view.hidden) * self.inner_keep), view.attention[-1])


class _Links(NamedTuple):
    """Where links may be, and how many."""

    begins: Tensor  # (F,) bool, first frames of segments
    segment: Tensor  # (F * P,) int64, of each token
    many: Tensor  # (F * P,) bool: of tokens in order of segments and likeness, those that may be linked


def _plan(parts: Sequence[range], taken: Sequence[int], room: Sequence[int], patches: int) -> list[NDArray[Any]]:
    """What can be said of frames before their tokens are looked at.

    Returns:
        What each frame counts in the mean of its segment, (F, F) float32, how many of its tokens are selected, (F,),
        and what `_Links` has.
    """
    length = np.array([len(part) for part in parts])
    start = length.cumsum() - length
    segment = np.repeat(np.arange(len(parts)), length)
    same = segment[:, None] == segment
    spare = np.add.reduceat(patches - np.array(taken) - room, start)  # so many of a segment may go
    tokens = np.arange(len(segment) * patches)
    by_token = np.repeat(segment, patches)
    return [
        (same / length[segment]).astype(np.float32),
        np.array(taken),
        np.isin(np.arange(len(segment)), start),
        by_token,
        tokens - (start * patches)[by_token] < spare[by_token],
    ]


def _max_min(distance: Tensor, weight: Tensor, count: Tensor, most: int) -> Tensor:
    """Mark `count` (F,) tokens of each frame, at most `most`, one after another (max-min diversity).

    Args:
        distance: (F, P, P); it is overwritten.
        weight: (F, P), of the candidate.
        count: (F,) int64.
        most: the largest of them.
    """
    frames, patches = weight.shape
    weighted = distance.mul_(weight[:, None])  # (F, from, candidate)
    score = weighted.topk(min(2, patches), dim=1, largest=False).values[:, -1:].contiguous()  # the nearest but itself
    weighted.diagonal(dim1=1, dim2=2).fill_(-torch.inf)  # what was taken is never the best again
    picks = count.new_empty(most, frames, 1)
    rows = picks[..., None].expand(-1, -1, -1, patches)
    reached = torch.empty_like(score)  # (F, 1, P)
    for turn, (best, row) in enumerate(zip(picks, rows, strict=True)):  # three launches each, a third of all there are
        torch.argmax(score, 2, out=best)
        torch.gather(weighted, 1, row, out=reached)
        if turn == 0:
            score.copy_(reached)
        else:
            torch.minimum(score, reached, out=score)
    turns = torch.arange(most, device=count.device)[:, None]
    order = picks[..., 0].masked_fill_(turns >= count, patches)  # (most, F)
    taken = torch.zeros(frames, patches + 1, dtype=torch.bool, device=count.device)
    return taken.scatter_(1, order.T, True)[:, :patches]


def _shared_out(parts: Sequence[range], room: Sequence[int], left: Sequence[int]) -> list[int]:
    """How many clusters each frame makes: the room of its segment, in proportion to what is left in its frames."""
    counts: list[int] = []
    for part in parts:
        here = list(left[part.start : part.stop])
        counts += apportion(sum(room[part.start : part.stop]), [float(count) for count in here], here)
    return counts
