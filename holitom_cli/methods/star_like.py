"""STAR-like: drop by the tower's attention before the language model, by the question's inside (arXiv 2505.12359)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from holitom_cli.algebra.merge import top_mask
from holitom_cli.methods import Method
from holitom_cli.methods.tools.settings import Share, by_frame, check, check_layer, check_ratio, inner_layer
from holitom_cli.methods.tools.tokens import attention_of, keep, keep_rows, marked
from holitom_cli.types import LayerView, Reduction, VideoFeatures, VisualTokens


@dataclass(frozen=True)
class StarLike(Method):
    """Drops in two stages, as STAR does in outline (arXiv 2505.12359); its layer and shares are assumed.

    Every frame keeps the retain_ratio * P tokens (rounded so that the clip's number is exact) that receive the most
    attention from the other visual tokens.
    Before one layer inside, the rows with the highest attention from the text after the video stay, by the mean over
    its tokens and over heads.

    Established: that the stages are these, and what each is scored by. Assumed: that the layer is the middle one and
    that half of the rows stay there; that attention is that of the tower's last layer.
    """

    status: ClassVar[str] = "assumed in part"
    needs_attention: ClassVar[bool] = True

    retain_ratio: Annotated[Share, "share of the visual tokens to keep before the language model"] = 0.15
    inner_layer: Annotated[int | str, "layer before which to drop inside: auto (half of them), off or a number"] = (
        "auto"
    )
    inner_keep: Annotated[float, "share of the visual tokens that stays there"] = 0.5

    def __post_init__(self) -> None:
        check_ratio(self.retain_ratio)
        check_layer("inner_layer", self.inner_layer)
        check(0 < self.inner_keep <= 1, "inner_keep", self.inner_keep, "above 0 and at most 1")

    def compress(self, video: VideoFeatures) -> VisualTokens:
        """Pick N of the F * P tokens (F, P, D) -> (N, D)."""
        frames, patches, _ = video.tokens.shape
        counts = by_frame(self.retain_ratio, frames, patches)
        attention = attention_of(video)
        chosen = top_mask(attention, torch.tensor(counts, device=attention.device))
        return keep(video, marked(chosen, sum(counts)), "by attention")

    def reductions(self, depth: int) -> Mapping[int, Reduction]:
        """Drop once, by the attention that all text tokens pay in the layer before."""
        layer = inner_layer(self.inner_layer, depth, 1 / 2)
        return {} if layer is None else {layer: Reduction(self._drop, rows="all")}

    def most_tokens(self, frames: int, patches: int) -> int:
        """The exact number."""
        return sum(by_frame(self.retain_ratio, frames, patches))

    def _drop(self, view: LayerView) -> tuple[Tensor, Tensor]:
        return keep_rows(view, round(len(view.hidden) * self.inner_keep), view.attention.mean(0))
