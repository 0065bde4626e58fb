"""HoliTom's merge inside the language model, alone: to be composed with others, as vidcom2+inner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from holitom_cli.algebra.merge import fold
from holitom_cli.methods import Method
from holitom_cli.methods.tools.settings import check, check_layer, inner_layer
from holitom_cli.methods.tools.tokens import keep_all
from holitom_cli.types import LayerView, Reduction, VideoFeatures, VisualTokens


@dataclass(frozen=True)
class Inner(Method):
    """The merge inside the language model of HoliTom, without what it does before (arXiv 2505.21334, section 3.4).

    Before one layer the visual tokens that the last prompt token attended to least, in the layer before, are folded
    into the kept ones that they resemble most. After another method, as in `vidcom2+inner`, it is what the paper adds
    to its rivals.
    """

    status: ClassVar[str] = "matches the code"

    inner_layer: Annotated[
        int | str, "layer before which to merge inside: auto (round(depth * 18/28)), off or a number"
    ] = "auto"
    inner_ratio: Annotated[float, "share of the visual tokens that the merge inside folds away"] = 0.5

    def __post_init__(self) -> None:
        check_layer("inner_layer", self.inner_layer)
        check(0 <= self.inner_ratio < 1, "inner_ratio", self.inner_ratio, "from 0 to below 1")

    def compress(self, video: VideoFeatures) -> VisualTokens:
        """Pass all F * P tokens on."""
        return keep_all(video)

    def reductions(self, depth: int) -> Mapping[int, Reduction]:
        """Merge once, by the last prompt token's attention in the layer before."""
        layer = inner_layer(self.inner_layer, depth, 18 / 28)
        return {} if layer is None else {layer: Reduction(self._fold_least_attended)}

    def _fold_least_attended(self, view: LayerView) -> tuple[Tensor, Tensor]:
        scores = view.attention[-1]
        count = max(1, round(len(scores) * (1 - self.inner_ratio)))  # one has to stay to fold the others into
        return fold(view.hidden, scores.argsort(descending=True, stable=True)[:count].sort().values)
