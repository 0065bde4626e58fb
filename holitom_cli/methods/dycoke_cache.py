"""DyCoke's pruning of the cache, alone: to be composed with its first part, as dycoke+dycoke-cache (2411.15024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor, arange

from holitom_cli.errors import MethodError
from holitom_cli.methods import Method
from holitom_cli.methods.tools.settings import Share, check, check_depth, check_ratio, share_of, tokens_in
from holitom_cli.methods.tools.tokens import keep_all
from holitom_cli.types import CacheView, Reduction, VideoFeatures, VisualTokens


@dataclass(frozen=True)
class DyCokeCache(Method):
    """Prunes the cache that the answer is generated from (DyCoke's second part, arXiv 2411.15024; KD-TAO/DyCoke).

    From layer `cache_layer` on, the cache keeps int(n * cache_keep) of its n visual entries, in all of these layers the
    same ones: those that the last prompt token attended to most in the layer before, mean over heads. The layers before
    keep all. After DyCoke's first part, as in `dycoke+dycoke-cache`, it makes the whole method. A budget is the mean of
    what the layers keep.

    Simplified: it chooses once, for the token that begins the answer. The paper keeps every entry and chooses anew for
    each token, by that token's attention; where it hardly differs from the token's before (cosine from 0.9 on), the
    published code reads every entry. So here memory is saved that the paper's does not save, and a token that looks
    elsewhere does not find what it looks for.
    """

    status: ClassVar[str] = "simplified"
    prunes_cache: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {"cache_layer": 3, "cache_keep": 0.3}}

    cache_layer: Annotated[int, "first layer whose cache is pruned"] = 3
    cache_keep: Annotated[float, "share of the cached visual entries that stay in these layers"] = 0.3
    retain_ratio: Annotated[Share | None, "mean share of the cached visual entries over all layers, instead"] = None

    def __post_init__(self) -> None:
        check(self.cache_layer >= 1, "cache_layer", self.cache_layer, "at least 1")
        check(0 < self.cache_keep <= 1, "cache_keep", self.cache_keep, "above 0 and at most 1")
        if self.retain_ratio is not None:
            check_ratio(self.retain_ratio)

    def compress(self, video: VideoFeatures) -> VisualTokens:
        """Pass all F * P tokens on."""
        return keep_all(video)

    def reductions(self, depth: int) -> Mapping[int, Reduction]:
        """Nothing inside; what does not fit the depth is refused here, before anything is read."""
        check_depth("cache_layer", self.cache_layer, depth)
        if self.retain_ratio is not None and tokens_in(self.retain_ratio) is None:
            self._left(1, depth)  # raises where that is too little
        return {}

    def after_prefill(self, layers: Sequence[CacheView]) -> Sequence[Tensor]:
        """The entries that stay, (m,) ascending; at least one a layer."""
        scores = layers[self.cache_layer - 1].attention[-1]
        everything = arange(len(scores), device=scores.device)
        count = max(1, self._left(len(scores), len(layers)))
        best = scores.argsort(descending=True, stable=True)[:count].sort().values
        return [everything if index < self.cache_layer else best for index in range(len(layers))]

    def _left(self, entries: int, depth: int) -> int:
        """How many of its entries a pruned layer keeps; with a budget, so that the layers' mean is that."""
        if self.retain_ratio is None:
            return int(entries * self.cache_keep)
        mean, pruned = share_of(self.retain_ratio, 1, entries), depth - self.cache_layer
        if mean * depth <= self.cache_layer:
            raise MethodError(
                f"DyCoke's cache cannot average {mean:.1%} of the visual entries: all of them stay in the first "
                f"{self.cache_layer} of {depth} layers.",
                f"Ask for more than {self.cache_layer / depth:.1%}, or prune earlier: cache_layer=1.",
            )
        return round(entries * (mean * depth - self.cache_layer) / pruned)
