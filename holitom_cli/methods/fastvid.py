"""FastVID: per frame tokens by attention, per segment tokens by density in anchor frames (arXiv 2503.11187)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from holitom_cli.algebra.host import highest, moved
from holitom_cli.algebra.merge import Wanted, member_means, merge_by_peaks
from holitom_cli.algebra.segments import cut, frame_similarity
from holitom_cli.methods import Method
from holitom_cli.methods.tools.settings import Share, apportion, by_frame, check, check_ratio
from holitom_cli.methods.tools.tokens import attention_of, in_order
from holitom_cli.types import VideoFeatures, VisualTokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from holitom_cli.types import FloatArray, IntArray


@dataclass(frozen=True)
class FastVID(Method):
    """Dynamic density pruning (FastVID, arXiv 2503.11187).

    The clip is cut where neighbouring frames are less alike than `threshold`, and at the 7 lowest similarities. A
    frame's budget is retain_ratio * P, int(salient * budget) of them tokens that receive the most attention in the
    tower; what is left of the budgets of a segment goes, evenly, to its anchor frames, every 4th from its last one. In
    an anchor frame density peaks (4 neighbours) are anchors; every other token of the segment joins the most
    cosine-similar anchor: w anchor + (1 - w) mean of the m that joined, w = max(1 / (m + 1), own_weight).

    The paper compares frames, and takes attention, by the tower's pooling head, which the checkpoints that we read do
    not have: here it is the mean of a frame's tokens, and attention between patches. Where a share is so large that
    anchor frames have no room for their segment's budget, fewer are kept. Budgets are rounded once for the clip, not in
    each frame.
    """

    status: ClassVar[str] = "simplified"
    needs_attention: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "25": {"retain_ratio": 0.25},
        "20": {"retain_ratio": 0.20},
        "15": {"retain_ratio": 0.15},
        "10": {"retain_ratio": 0.10},
    }

    retain_ratio: Annotated[Share, "share of the visual tokens to keep"] = 0.15
    salient: Annotated[float, "share of the kept tokens that are chosen by attention"] = 0.6
    threshold: Annotated[float, "cosine below which frames are in two segments"] = 0.9
    segments: Annotated[int, "least number of segments"] = 8
    stride: Annotated[int, "frames from one anchor frame to the next"] = 4
    neighbours: Annotated[int, "nearest tokens that make a token's density"] = 4
    own_weight: Annotated[float, "least weight of an anchor against the mean of those that join it"] = 0.6

    def __post_init__(self) -> None:
        check_ratio(self.retain_ratio)
        check(0 <= self.salient <= 1, "salient", self.salient, "from 0 to 1")
        check(-1 <= self.threshold <= 1, "threshold", self.threshold, "a cosine from -1 to 1")
        check(self.segments >= 1, "segments", self.segments, "at least 1")
        check(self.stride >= 1, "stride", self.stride, "at least 1")
        check(self.neighbours >= 1, "neighbours", self.neighbours, "at least 1")
        check(0 <= self.own_weight <= 1, "own_weight", self.own_weight, "from 0 to 1")

    def compress(self, video: VideoFeatures) -> VisualTokens:
        """Choose, then merge: (F, P, D) -> (N, D) in order of position; one small transfer decides all shapes."""
        tokens, (frames, patches, _) = video.tokens.flatten(0, 1), video.tokens.shape
        # 1. On the host: segments, salient tokens of every frame, how many anchors the anchor frames have.
        together = torch.cat((frame_similarity(video.tokens), attention_of(video).flatten())).cpu()
        parts = cut(together[: frames - 1], self.threshold, self.segments)
        plan = self._plan(parts, together[frames - 1 :].view(frames, patches).numpy())
        places, frame, segment, *rest = moved([*plan[:3], *plan.peaks], tokens.device)
        wanted = Wanted(*rest)
        # 2. Anchors, whose rows are behind the salient tokens'; the last row is for anchors that frames do not have.
        peaks = merge_by_peaks(video.tokens[frame].float(), wanted)
        places.index_copy_(0, wanted.row.flatten(), (peaks.cell + frame[:, None] * patches).flatten())
        places = places[:-1]
        # 3. Every other token joins an anchor of its segment, which takes it in.
        joined = _join(video.tokens, places, segment, plan.reach).index_fill_(0, places, -1)
        members = torch.ones(len(places) + 1, device=tokens.device)  # the anchor itself is one
        members.scatter_add_(0, joined + 1, torch.ones_like(joined, dtype=members.dtype))
        weight = members[1:, None].reciprocal_().clamp_min_(self.own_weight)
        means = member_means(tokens, joined, len(places))
        embeds = means.lerp_(tokens[places].float(), weight)
        return in_order(video, embeds, places, joined, (("density pruning", len(places)),), parts)

    def most_tokens(self, frames: int, patches: int) -> int:
        """The number where anchor frames have room for all, and the most otherwise."""
        return sum(by_frame(self.retain_ratio, frames, patches))

    def _plan(self, parts: Sequence[range], attention: FloatArray) -> _Plan:
        """Share the budget out: attention (F, P)."""
        frames, patches = attention.shape
        counts = by_frame(self.retain_ratio, frames, patches)
        salient = [int(self.salient * count) for count in counts]
        chosen = highest(attention, np.ones_like(attention, dtype=bool), np.array(salient))
        others = np.ones(frames * patches, dtype=bool)
        others[chosen] = False
        anchors = self._anchors(parts, counts, salient, patches)
        frame = np.array(sorted(anchors))
        wanted = np.array([anchors[f] for f in frame.tolist()])
        ends = len(chosen) + wanted.cumsum()
        rows = int(ends[-1])
        places = np.zeros(rows + 1, dtype=np.int64)
        places[: len(chosen)] = chosen
        peaks = Wanted.arrays(others.reshape(frames, patches)[frame], wanted, ends - wanted, rows, self.neighbours)
        # By segment and then by frame: the rows that are its anchors.
        reach: list[range] = []
        for part in parts:
            start = reach[-1].stop if reach else len(chosen)
            reach += [range(start, start + sum(anchors.get(f, 0) for f in part))] * len(part)
        segment = np.array([i if reach[part.start] else -1 for i, part in enumerate(parts) for _ in part])
        return _Plan(places, frame, segment, peaks, reach)

    def _anchors(
        self, parts: Sequence[range], counts: Sequence[int], salient: Sequence[int], patches: int
    ) -> dict[int, int]:
        """How many anchors each anchor frame has."""
        wanted: dict[int, int] = {}
        for part in parts:
            frames = [frame for frame in part if (part[-1] - frame) % self.stride == 0]
            left = sum(counts[frame] - salient[frame] for frame in part)
            room = [patches - salient[frame] for frame in frames]
            wanted |= zip(frames, apportion(left, [1.0] * len(frames), room), strict=True)
        return wanted


class _Plan(NamedTuple):
    """What is kept, in N rows: first the salient tokens, then the anchors of G frames."""

    places: IntArray  # (N + 1,) of the salient tokens, and room for the anchors
    frame: IntArray  # (G,) anchor frames
    segment: IntArray  # (F,) of each frame, -1 where it has no anchors
    peaks: list[NDArray[Any]]  # the anchors, as `Wanted` has them
    reach: list[range]  # (F,) the rows that are the anchors of each frame's segment


_FRAMES_AT_ONCE = 32  # whose tokens are compared with all anchors of their segments at a time


def _join(tokens: Tensor, places: Tensor, segment: Tensor, reach: Sequence[range]) -> Tensor:
    """The row of the anchor that each token is most like, (F * P,), -1 in a segment without anchors.

    Args:
        tokens: (F, P, D).
        places: (N,) of each row.
        segment: (F,), as of `_Plan`.
        reach: the same.
    """
    patches, nearest = tokens.shape[1], []
    for first in range(0, len(tokens), _FRAMES_AT_ONCE):
        here = slice(first, first + _FRAMES_AT_ONCE)
        rows = range(reach[here][0].start, reach[here][-1].stop)
        if not rows:
            nearest.append(places.new_full((len(reach[here]) * patches,), -1))
            continue
        anchors = places[rows.start : rows.stop]
        centres = F.normalize(tokens.flatten(0, 1)[anchors].float(), dim=-1)
        likeness = F.normalize(tokens[here].float(), dim=-1) @ centres.T  # (L, P, anchors)
        mine = segment[here, None, None]
        likeness.masked_fill_(mine != segment[anchors // patches], -torch.inf)
        nearest.append((likeness.argmax(2) + rows.start).masked_fill_(mine[..., 0] < 0, -1).flatten())
    return torch.cat(nearest)
