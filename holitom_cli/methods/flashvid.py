"""FlashVID: diverse tokens that are attended to, the rest linked over time and clustered (ICLR 2026)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from holitom_cli.algebra.merge import density_peaks, member_means, top_mask
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
from holitom_cli.methods.tools.tokens import account, attention_of, keep_rows, marked, sources
from holitom_cli.types import LayerView, Reduction, VideoFeatures, VisualTokens


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
        attention, (frames, patches, _) = attention_of(video), video.tokens.shape
        parts = cut(frame_similarity(video.tokens).cpu(), self.threshold, self.segments)
        budgets = self._budgets(frames, patches)
        taken = [math.ceil(self.selected * count) for count in budgets]
        unit = F.normalize(video.tokens.float(), dim=-1)
        # 1. Selected tokens.
        weight = attention * _nearness(video.tokens.float(), parts)
        chosen = _max_min(1 - unit @ unit.transpose(1, 2), weight, torch.tensor(taken, device=unit.device), max(taken))
        # 2. The others, linked over time and averaged.
        room = [count - of for count, of in zip(budgets, taken, strict=True)]
        root = self._roots(unit, chosen, parts, room)
        left = ~chosen & (root == torch.arange(frames * patches, device=root.device).view(frames, patches))
        flat = torch.where(chosen, -1, root).view(-1)
        means = member_means(video.tokens.flatten(0, 1), flat, frames * patches).view(frames, patches, -1)
        # 3. The averages of each frame, clustered.
        remaining: list[int] = left.sum(1).tolist()
        counts = _shared_out(parts, room, remaining)
        wanted = torch.tensor(counts, device=root.device)
        clusters = density_peaks(means, left, wanted, self.neighbours)
        places = marked(chosen | clusters.centre, sum(taken) + sum(counts))
        # 4. Where every token went: itself, or the cluster of what it was linked to.
        first = torch.arange(frames, device=root.device)[:, None] * patches
        cluster = torch.where(left & (wanted[:, None] > 0), first + clusters.member_of, -1).view(-1)
        here = torch.arange(frames * patches, device=root.device)
        row = sources(torch.where(chosen.view(-1), here, cluster), places)  # of selected tokens and averages
        source = torch.where(chosen.view(-1), row, row[root.view(-1)])
        units = torch.where(chosen[..., None], video.tokens.float(), means).flatten(0, 1)
        embeds = member_means(units, row, len(places))
        stages = (("selected and linked", sum(taken) + sum(remaining)), ("clusters", len(places)))
        return account(video, embeds, places, source, stages, parts)

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

    def _roots(self, unit: Tensor, chosen: Tensor, parts: Sequence[range], room: Sequence[int]) -> Tensor:
        """The place that each token's chain of links begins at, its own where it is not linked: (F, P)."""
        frames, patches, _ = unit.shape
        place = torch.arange(frames * patches, device=unit.device).view(frames, patches)
        likeness = (unit[1:] @ unit[:-1].transpose(1, 2)).masked_fill(chosen[:-1, None], -torch.inf)
        best = likeness.max(2)
        score = torch.cat((torch.full_like(unit[:1, :, 0], -torch.inf), best.values))
        score[[part.start for part in parts]] = -torch.inf
        score = score.masked_fill(chosen | (score <= self.tau), -torch.inf)
        linked = torch.zeros_like(chosen)
        for part in parts:
            here = slice(part.start, part.stop)
            spare = (~chosen[here]).sum() - sum(room[here])  # so many may go
            strongest = top_mask(score[here].reshape(1, -1), spare.clamp_min(0)[None])
            linked[here] = strongest.view(-1, patches) & score[here].isfinite()
        before = torch.cat((place[:1], (place[:-1, :1] + best.indices)))
        root = torch.where(linked, before, place).view(-1)
        for _ in range(max(1, (frames - 1).bit_length())):
            root = root[root]
        return root.view(frames, patches)

    def _drop(self, view: LayerView) -> tuple[Tensor, Tensor]:
        return keep_rows(view, math.ceil(len(view.hidden) * self.inner_keep), view.attention[-1])


def _nearness(tokens: Tensor, parts: Sequence[range]) -> Tensor:
    """Mean product of every token with the mean tokens of its segment's frames: (F, P, D) -> (F, P)."""
    centres = torch.stack([tokens[part.start : part.stop].mean((0, 1)) for part in parts for _ in part])
    return (tokens @ centres[..., None])[..., 0]


def _max_min(distance: Tensor, weight: Tensor, count: Tensor, most: int) -> Tensor:
    """Mark `count` (F,) tokens of each frame, at most `most`, one after another (max-min diversity).

    Args:
        distance: (F, P, P).
        weight: (F, P), of the candidate.
        count: (F,) int64.
        most: the largest of them.
    """
    taken = torch.zeros_like(weight, dtype=torch.bool)
    weighted = distance * weight[:, None]  # (F, from, candidate)
    score = weighted.topk(min(2, weighted.shape[1]), dim=1, largest=False).values[:, -1]  # the nearest but itself
    for turn in range(most):
        best = score.masked_fill(taken, -torch.inf).argmax(1, keepdim=True)
        taken.scatter_(1, best, taken.gather(1, best) | (turn < count)[:, None])
        reached = weighted.take_along_dim(best[..., None], 1)[:, 0]
        score = reached if turn == 0 else torch.minimum(score, reached)
    return taken


def _shared_out(parts: Sequence[range], room: Sequence[int], left: Sequence[int]) -> list[int]:
    """How many clusters each frame makes: the room of its segment, in proportion to what is left in its frames."""
    counts: list[int] = []
    for part in parts:
        here = list(left[part.start : part.stop])
        counts += apportion(sum(room[part.start : part.stop]), [float(count) for count in here], here)
    return counts
