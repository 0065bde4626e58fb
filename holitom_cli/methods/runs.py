"""Runs: what each frame attends to, and what stays as it is only once. Our own, measured against HoliTom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from holitom_cli.algebra.merge import member_means
from holitom_cli.algebra.segments import neighbour_similarity
from holitom_cli.methods import Method
from holitom_cli.methods.inner import Inner
from holitom_cli.methods.tools.settings import Share, budget, check, check_ratio
from holitom_cli.methods.tools.tokens import account, attention_of, sources
from holitom_cli.types import Reduction, VideoFeatures, VisualTokens


@dataclass(frozen=True)
class Runs(Method):
    """Keeps what the tower attends to in each frame, but what stays the same only once. No paper's: our own.

    Of all steps of a cell from one frame to the next, the share `still` that changes least, by cosine, counts as
    unchanged: so the threshold is the clip's own, not one that suits one tower. Cosines above 0.99 count as unchanged
    in any case, since clips can stand still for longer. A cell's tokens in consecutive frames without a change are a
    run. All frames propose their tokens in turns, each time the one that receives the next most
    attention; in the same turn the one with more attention comes first. A run is in with the first of its tokens that
    is proposed, until there are as many runs as the budget has tokens. Each becomes one token, its mean, and stands
    where it begins; the other runs are dropped. So every frame has a say, and what still things save goes to others.
    Inside the language model follows HoliTom's merge (arXiv 2505.21334, section 3.4).

    The budget is exact, but for clips that have fewer runs. Chosen and measured on generated clips with a small model;
    docs/methods.md has the figures, and what else gains as much.
    """

    status: ClassVar[str] = "our own"
    needs_attention: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"15": {"retain_ratio": 0.15}, "10": {"retain_ratio": 0.10}}

    retain_ratio: Annotated[Share, "share of the visual tokens to keep before the language model"] = 0.15
    still: Annotated[float, "share of the cells' steps from frame to frame that counts as unchanged"] = 0.5
    inner_layer: Annotated[
        int | str, "layer before which to merge inside: auto (round(depth * 18/28)), off or a number"
    ] = "auto"
    inner_ratio: Annotated[float, "share of the visual tokens that the merge inside folds away"] = 0.5

    def __post_init__(self) -> None:
        check_ratio(self.retain_ratio)
        check(0 <= self.still <= 1, "still", self.still, "from 0 to 1")
        Inner(self.inner_layer, self.inner_ratio)  # checks them

    def compress(self, video: VideoFeatures) -> VisualTokens:
        """Merge runs and pick N of them: (F, P, D) -> (N, D)."""
        frames, patches, _ = video.tokens.shape
        begins = _beginnings(neighbour_similarity(video.tokens), self.still)
        turn = _turns(attention_of(video))
        # The turn at which each run is proposed first; what is no run's beginning never is.
        never = frames * patches
        proposed = torch.full_like(begins, never).scatter_reduce_(0, begins, turn, "amin")
        runs = int((proposed < never).sum())
        places = proposed.argsort(stable=True)[: min(runs, budget(self.retain_ratio, frames, patches))].sort().values
        source = sources(begins, places)
        embeds = member_means(video.tokens.flatten(0, 1), source, len(places))
        return account(video, embeds, places, source, (("runs", runs), ("attended", len(places))))

    def reductions(self, depth: int) -> Mapping[int, Reduction]:
        """Merge once inside, as HoliTom does."""
        return Inner(self.inner_layer, self.inner_ratio).reductions(depth)

    def most_tokens(self, frames: int, patches: int) -> int:
        """The exact number where there are as many runs."""
        return budget(self.retain_ratio, frames, patches)


_SAME = 0.99  # a cosine of tokens that differ by noise alone


def _beginnings(similarity: Tensor, still: float) -> Tensor:
    """The place where each token's run begins: (F - 1, P) of neighbours -> (F * P,) int64 among the F * P tokens."""
    steps, patches = similarity.shape
    place = torch.arange((steps + 1) * patches, device=similarity.device).view(-1, patches)
    begins = place.clone()
    if unchanged := round(still * similarity.numel()):
        least = similarity.flatten().sort(descending=True).values[unchanged - 1].clamp_max(_SAME)
        begins[1:].masked_fill_(similarity >= least, 0)
    return begins.cummax(0).values.flatten()


def _turns(attention: Tensor) -> Tensor:
    """When each token is proposed: (F, P) -> (F * P,) int64, 0 first; equal ones go to the earlier frame and cell."""
    rank = attention.argsort(dim=1, descending=True, stable=True).argsort(dim=1).flatten()
    by_attention = attention.flatten().argsort(descending=True, stable=True)
    order = by_attention[rank[by_attention].argsort(stable=True)]
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
