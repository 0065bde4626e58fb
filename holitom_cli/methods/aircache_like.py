"""AirCache-like: after the prefill, a cache with the visual entries that the question looks at (arXiv 2503.23956)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from holitom_cli.methods import Method
from holitom_cli.methods.tools.settings import Share, apportion, check, check_ratio, share_of
from holitom_cli.methods.tools.tokens import keep_all
from holitom_cli.types import CacheView, VideoFeatures, VisualTokens


@dataclass(frozen=True)
class AirCacheLike(Method):
    """Prunes the cache once the prompt is read, as AirCache does in outline (arXiv 2503.23956).

    In each layer a visual entry scores the mean attention that elite text tokens paid to it: those to which the last
    prompt token paid at least `elite` of what it paid to any. A layer's budget grows with the strength of its scores
    (their sum) and with their skewness; the entries with the highest scores stay. The prefill is that of all tokens:
    memory and time are saved while the answer is generated.

    Established: elite text tokens, budgets by strength and skewness, 10% of the entries. Assumed: how the elite is
    chosen, and that a layer's weight is the mean of its strength and its skewness, each divided by the layers' mean.
    """

    status: ClassVar[str] = "assumed in part"
    prunes_cache: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"10": {"retain_ratio": 0.1}}

    retain_ratio: Annotated[Share, "share of the cached visual entries to keep, mean of the layers"] = 0.1
    elite: Annotated[float, "least attention to an elite text token, of the most to any"] = 0.5

    def __post_init__(self) -> None:
        check_ratio(self.retain_ratio)
        check(0 <= self.elite <= 1, "elite", self.elite, "from 0 to 1")

    def compress(self, video: VideoFeatures) -> VisualTokens:
        """Pass all F * P tokens on."""
        return keep_all(video)

    def after_prefill(self, layers: Sequence[CacheView]) -> Sequence[Tensor]:
        """The entries that stay, at least one a layer; one small transfer decides how many."""
        scores = [self._scores(view) for view in layers]
        sums = torch.stack([torch.stack((score.sum(), _skewness(score))).cpu() for score in scores])  # (layers, 2)
        weights = (sums / sums.mean(0).clamp_min(torch.finfo(sums.dtype).tiny)).mean(1).tolist()
        sizes = [len(score) for score in scores]
        share = share_of(self.retain_ratio, 1, round(sum(sizes) / len(sizes)))
        wanted = round(share * sum(sizes)) - len(sizes)
        counts = apportion(max(0, wanted), weights, [size - 1 for size in sizes])
        return [
            score.argsort(descending=True, stable=True)[: count + 1].sort().values
            for score, count in zip(scores, counts, strict=True)
        ]

    def _scores(self, view: CacheView) -> Tensor:
        """Mean attention from the elite, (n,)."""
        elite = (view.text >= self.elite * view.text.amax()).to(view.attention.dtype)
        return elite @ view.attention / elite.sum()


def _skewness(scores: Tensor) -> Tensor:
    """How far a few scores stand out: the third standardised moment, 0 where it is negative or there is no spread."""
    centred = scores - scores.mean()
    spread = centred.square().mean().sqrt()
    return (centred.pow(3).mean() / spread.pow(3)).nan_to_num(0, 0, 0).clamp_min(0)
