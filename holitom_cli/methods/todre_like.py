"""ToDRE-like: tokens unlike each other, and none at all late in the language model (arXiv 2505.18757)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from holitom_cli.methods import Method
from holitom_cli.methods.tools.settings import Share, by_frame, check_layer, check_ratio, inner_layer
from holitom_cli.methods.tools.tokens import keep, marked
from holitom_cli.types import LayerView, Reduction, VideoFeatures, VisualTokens


@dataclass(frozen=True)
class ToDRELike(Method):
    """Keeps diverse tokens and drops them all late, as ToDRE does in outline (arXiv 2505.18757); when is assumed.

    In every frame tokens are taken one after another, retain_ratio * P of them, exact over the clip: first the one
    whose cosine distances to all others add up to most, then always the one whose distances to those taken do. Before
    one layer inside, all visual tokens are dropped; the newline token stays.

    Established: greedy max-sum diversity, 10% of the tokens, and that all visual tokens go at a late layer. Assumed:
    that frames are treated one by one, where the greedy choice begins, and that the layer is always the one at three
    quarters of the depth, where the paper looks for the layer by the attention that text pays to the tokens.
    """

    status: ClassVar[str] = "assumed in part"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"10": {"retain_ratio": 0.1}}

    retain_ratio: Annotated[Share, "share of the visual tokens to keep before the language model"] = 0.1
    inner_layer: Annotated[
        int | str, "layer before which all are dropped: auto (three quarters of the depth), off or a number"
    ] = "auto"

    def __post_init__(self) -> None:
        check_ratio(self.retain_ratio)
        check_layer("inner_layer", self.inner_layer)

    def compress(self, video: VideoFeatures) -> VisualTokens:
        """Pick N of the F * P tokens (F, P, D) -> (N, D), all frames at a time, one token after another."""
        frames, patches, _ = video.tokens.shape
        counts = by_frame(self.retain_ratio, frames, patches)
        unit = F.normalize(video.tokens.float(), dim=-1)
        distance = 1 - unit @ unit.transpose(1, 2)  # (F, P, P)
        budget = torch.tensor(counts, device=unit.device)
        return keep(video, marked(_max_sum(distance, budget, max(counts)), sum(counts)), "diversity")

    def reductions(self, depth: int) -> Mapping[int, Reduction]:
        """Drop all visual tokens once."""
        layer = inner_layer(self.inner_layer, depth, 3 / 4)
        return {} if layer is None else {layer: Reduction(_drop_all)}

    def most_tokens(self, frames: int, patches: int) -> int:
        """The exact number."""
        return sum(by_frame(self.retain_ratio, frames, patches))


def _max_sum(distance: Tensor, count: Tensor, most: int) -> Tensor:
    """Mark `count` (F,) tokens of each frame, at most `most`, by distance (F, P, P) to those taken: (F, P) bool."""
    taken = torch.zeros(distance.shape[:2], dtype=torch.bool, device=distance.device)
    score = distance.sum(1)
    for turn in range(most):
        best = score.masked_fill(taken, -torch.inf).argmax(1, keepdim=True)
        taken.scatter_(1, best, taken.gather(1, best) | (turn < count)[:, None])
        added = distance.take_along_dim(best[..., None], 1)[:, 0]
        score = added if turn == 0 else score + added
    return taken


def _drop_all(view: LayerView) -> tuple[Tensor, Tensor]:
    """Keep the newline token alone."""
    last = len(view.hidden) - 1
    into = torch.full((last + 1,), -1, device=view.hidden.device)
    into[last] = last
    return view.hidden[last:], into
