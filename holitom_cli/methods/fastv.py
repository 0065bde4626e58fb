"""FastV: after two layers, drop the visual tokens that the last prompt token hardly looks at (arXiv 2403.06764)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

from torch import Tensor

from holitom_cli.errors import MethodError
from holitom_cli.methods import Method
from holitom_cli.methods.tools.settings import Share, check, check_depth, check_instead, share_of, tokens_in
from holitom_cli.methods.tools.tokens import keep_all, keep_rows
from holitom_cli.types import LayerView, Reduction, VideoFeatures, VisualTokens


@dataclass(frozen=True)
class FastV(Method):
    """Drops visual tokens early inside the language model, once (FastV, arXiv 2403.06764).

    Before layer `layer` it keeps round(n * (1 - drop)) of the n visual rows, those that the last prompt token attended
    to most in the layer before, mean over heads. All tokens enter the model, so a budget is a mean over the layers.

    Differs from the published code in that the layer looked at keeps its causal mask, and that the newline token is a
    row like any other.
    """

    status: ClassVar[str] = "from the paper"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"layer": 2, "drop": 0.5},
        "holitom-table": {"layer": 2, "drop": 0.8},  # as HoliTom's paper compares with it
    }

    layer: Annotated[int, "layer before which tokens are dropped"] = 2
    drop: Annotated[float, "share of the visual tokens to drop there"] = 0.5
    retain_ratio: Annotated[Share | None, "mean share of the visual tokens over all layers, instead of drop"] = None

    def __post_init__(self) -> None:
        check(self.layer >= 1, "layer", self.layer, "at least 1")
        check(0 <= self.drop < 1, "drop", self.drop, "from 0 to below 1")
        check_instead("drop", self.drop, type(self).drop, self.retain_ratio)

    def compress(self, video: VideoFeatures) -> VisualTokens:
        """Pass all F * P tokens on."""
        return keep_all(video)

    def reductions(self, depth: int) -> Mapping[int, Reduction]:
        """Drop once, by the last prompt token's attention in the layer before."""
        check_depth("layer", self.layer, depth)
        if self.retain_ratio is not None and tokens_in(self.retain_ratio) is None:
            self._share(depth, 0)  # raises where that is too little
        return {self.layer: Reduction(partial(self._drop, depth))}

    def _drop(self, depth: int, view: LayerView) -> tuple[Tensor, Tensor]:
        rows = len(view.hidden)
        return keep_rows(view, round(rows * self._share(depth, rows - 1)), view.attention[-1])

    def _share(self, depth: int, visual: int) -> float:
        """Of the rows, how many to keep, so that the layers have `retain_ratio` of them on average."""
        if self.retain_ratio is None:
            return 1 - self.drop
        mean = share_of(self.retain_ratio, 1, max(1, visual))
        left = (mean * depth - self.layer) / (depth - self.layer)
        if left <= 0:
            raise MethodError(
                f"FastV cannot average {mean:.1%} of the visual tokens: all of them are in the first {self.layer} of "
                f"{depth} layers.",
                f"Ask for more than {self.layer / depth:.1%}, or drop earlier: layer=1.",
            )
        return left
