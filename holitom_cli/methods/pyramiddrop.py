"""PyramidDrop: drop visual tokens at a quarter, half and three quarters of the language model (arXiv 2410.17247)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

from torch import Tensor

from holitom_cli.errors import MethodError
from holitom_cli.methods import Method
from holitom_cli.methods.tools.settings import Share, check, check_instead, share_of, tokens_in
from holitom_cli.methods.tools.tokens import keep_all, keep_rows
from holitom_cli.types import LayerView, Reduction, VideoFeatures, VisualTokens

_STAGES = 4


@dataclass(frozen=True)
class PyramidDrop(Method):
    """Drops visual tokens three times on their way through the language model (PyramidDrop, arXiv 2410.17247).

    Before the layers at a quarter, half and three quarters of the depth it keeps floor(n * keep**s), s = 1, 2, 3, of
    the n visual rows that entered, by the last prompt token's attention computed from that layer's own queries and
    keys. All tokens enter the model, so a budget is a mean over the layers, and has to be above a quarter.

    Differs from the published code in that the newline token is a row like any other.
    """

    status: ClassVar[str] = "from the paper"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {"keep": 0.5}}

    keep: Annotated[float, "share of the visual tokens that each stage passes on"] = 0.5
    retain_ratio: Annotated[Share | None, "mean share of the visual tokens over all layers, instead of keep"] = None

    def __post_init__(self) -> None:
        check(0 < self.keep <= 1, "keep", self.keep, "above 0 and at most 1")
        check_instead("keep", self.keep, type(self).keep, self.retain_ratio)

    def compress(self, video: VideoFeatures) -> VisualTokens:
        """Pass all F * P tokens on."""
        return keep_all(video)

    def reductions(self, depth: int) -> Mapping[int, Reduction]:
        """Drop at three layers, each by its own attention."""
        if depth < _STAGES:
            raise MethodError(f"PyramidDrop needs {_STAGES} layers, but this language model has {depth}.")
        bounds = [depth * stage // _STAGES for stage in range(_STAGES + 1)]
        if self.retain_ratio is not None and tokens_in(self.retain_ratio) is None:
            self._keep(bounds, 0)  # raises where that is too little
        return {bounds[s]: Reduction(partial(self._drop, bounds, s), layer="this") for s in range(1, _STAGES)}

    def _drop(self, bounds: Sequence[int], stage: int, view: LayerView) -> tuple[Tensor, Tensor]:
        entered = view.entered or len(view.hidden)
        return keep_rows(view, int(entered * self._keep(bounds, entered - 1) ** stage), view.attention[-1])

    def _keep(self, bounds: Sequence[int], visual: int) -> float:
        """What each stage passes on, so that the layers have `retain_ratio` of the tokens on average."""
        if self.retain_ratio is None:
            return self.keep
        mean, depth = share_of(self.retain_ratio, 1, max(1, visual)), bounds[-1]
        if mean * depth <= bounds[1]:
            raise MethodError(
                f"PyramidDrop cannot average {mean:.1%} of the visual tokens: all of them are in the first {bounds[1]} "
                f"of {depth} layers.",
                f"Ask for more than {bounds[1] / depth:.1%}.",
            )
        low, high = 0.0, 1.0
        for _ in range(60):  # halvings: as near as a float can be
            middle = (low + high) / 2
            layers = sum((bounds[s + 1] - bounds[s]) * middle**s for s in range(_STAGES))
            low, high = (middle, high) if layers < mean * depth else (low, middle)
        return high
