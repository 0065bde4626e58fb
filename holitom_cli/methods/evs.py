"""EVS: keep the tokens that differ most from the same cell of the frame before (arXiv 2510.14624)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch

from holitom_cli.algebra.merge import top_mask
from holitom_cli.algebra.segments import neighbour_similarity
from holitom_cli.methods import Method
from holitom_cli.methods.tools.settings import Share, budget, check_ratio
from holitom_cli.methods.tools.tokens import keep, marked
from holitom_cli.types import VideoFeatures, VisualTokens


@dataclass(frozen=True)
class EVS(Method):
    """Keeps what changes from frame to frame (Efficient Video Sampling, arXiv 2510.14624; as in vLLM).

    The first frame is kept whole; of the others, the tokens that are least cosine-similar to the same cell of the
    frame before, over the whole clip. It keeps floor(retain_ratio * F * P) tokens, but never fewer than one frame's.
    Equal similarities go to the earlier token.
    """

    status: ClassVar[str] = "matches the code"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {"retain_ratio": 0.25}}

    retain_ratio: Annotated[Share, "share of the visual tokens to keep"] = 0.15

    def __post_init__(self) -> None:
        check_ratio(self.retain_ratio)

    def compress(self, video: VideoFeatures) -> VisualTokens:
        """Pick N of the F * P tokens (F, P, D) -> (N, D)."""
        frames, patches, _ = video.tokens.shape
        count = self.most_tokens(frames, patches)
        change = 1 - neighbour_similarity(video.tokens)
        first = change.new_full((1, patches), torch.inf)
        scores = torch.cat((first, change)).view(1, -1)
        chosen = top_mask(scores, torch.tensor([count], device=scores.device))
        return keep(video, marked(chosen, count), "changes")

    def most_tokens(self, frames: int, patches: int) -> int:
        """The exact number."""
        return max(patches, budget(self.retain_ratio, frames, patches, math.floor))
