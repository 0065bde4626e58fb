"""FastVID: per frame tokens by attention, per segment tokens by density in anchor frames (arXiv 2503.11187)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from holitom_cli.algebra.merge import density_peaks, member_means, top_mask
from holitom_cli.algebra.segments import cut, frame_similarity
from holitom_cli.methods import Method
from holitom_cli.methods.tools.settings import Share, apportion, by_frame, check, check_ratio
from holitom_cli.methods.tools.tokens import account, attention_of, marked, sources
from holitom_cli.types import VideoFeatures, VisualTokens


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
        """Choose, then merge: (F, P, D) -> (N, D) in order of position; one small transfer decides the segments."""
        attention, (frames, patches, _) = attention_of(video), video.tokens.shape
        parts = cut(frame_similarity(video.tokens).cpu(), self.threshold, self.segments)
        counts = by_frame(self.retain_ratio, frames, patches)
        salient = [int(self.salient * count) for count in counts]
        # 1. Salient tokens of every frame, anchors of the anchor frames.
        chosen = top_mask(attention, torch.tensor(salient, device=attention.device))
        wanted = self._anchors(parts, counts, salient, patches)
        busy = [frame for frame, count in enumerate(wanted) if count]
        anchors = torch.zeros_like(chosen)
        if busy:
            tokens, count = video.tokens[busy].float(), torch.tensor([wanted[frame] for frame in busy])
            anchors[busy] = density_peaks(tokens, ~chosen[busy], count.to(chosen.device), self.neighbours).centre
        # 2. Every other token joins an anchor of its segment.
        goes_to = self._join(video.tokens, parts, chosen, anchors, wanted)
        places = marked(chosen | anchors, sum(salient) + sum(wanted))
        source = sources(goes_to, places)
        # 3. Anchors take in what joined them.
        tokens = video.tokens.flatten(0, 1)
        joined = torch.where((chosen | anchors).view(-1), -1, source)
        members = torch.zeros(len(places) + 1, device=source.device)
        members.scatter_add_(0, joined + 1, torch.ones_like(joined, dtype=members.dtype))
        weight = (1 / (members[1:, None] + 1)).clamp_min(self.own_weight)
        means = member_means(tokens, joined, len(places))
        own = tokens[places].float()
        embeds = torch.where(members[1:, None] > 0, weight * own + (1 - weight) * means, own)
        return account(video, embeds, places, source, (("density pruning", len(places)),), parts)

    def most_tokens(self, frames: int, patches: int) -> int:
        """The number where anchor frames have room for all, and the most otherwise."""
        return sum(by_frame(self.retain_ratio, frames, patches))

    def _anchors(
        self, parts: Sequence[range], counts: Sequence[int], salient: Sequence[int], patches: int
    ) -> list[int]:
        """How many anchors each frame has."""
        wanted = [0] * len(counts)
        for part in parts:
            frames = [frame for frame in part if (part[-1] - frame) % self.stride == 0]
            left = sum(counts[frame] - salient[frame] for frame in part)
            room = [patches - salient[frame] for frame in frames]
            for frame, count in zip(frames, apportion(left, [1.0] * len(frames), room), strict=True):
                wanted[frame] = count
        return wanted

    def _join(
        self, tokens: Tensor, parts: Sequence[range], chosen: Tensor, anchors: Tensor, wanted: Sequence[int]
    ) -> Tensor:
        """The place that each token goes to, (F * P,); -1 in a segment without anchors."""
        frames, patches, _ = tokens.shape
        place = torch.arange(frames * patches, device=tokens.device).view(frames, patches)
        goes_to = torch.where(chosen, place, -1)
        for part in parts:
            here = slice(part.start, part.stop)
            if not (total := sum(wanted[here])):
                continue
            centres = part.start * patches + marked(anchors[here], total)
            unit = F.normalize(tokens[here].float(), dim=-1)
            likeness = unit @ F.normalize(tokens.flatten(0, 1)[centres].float(), dim=-1).T  # (L, P, anchors)
            nearest = torch.where(anchors[here], place[here], centres[likeness.argmax(2)])
            goes_to[here] = torch.where(chosen[here], place[here], nearest)
        return goes_to.view(-1)
