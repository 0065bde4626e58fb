"""Control: tokens drawn by lot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from holitom_cli.errors import MethodError
from holitom_cli.methods import Method
from holitom_cli.methods.tools.settings import Share, budget, check_ratio
from holitom_cli.methods.tools.tokens import keep
from holitom_cli.types import VideoFeatures, VisualTokens


@dataclass(frozen=True)
class Random(Method):
    """Keeps tokens drawn by lot from the whole clip (control, no paper).

    The lots are drawn on the CPU, so that a seed keeps the same tokens on every device; they stay as they are, in
    reading order. A question set on which this does as well as a method says nothing about the method.
    """

    status: ClassVar[str] = "control"

    retain_ratio: Annotated[Share, "share of the visual tokens to keep"] = 0.15
    seed: Annotated[int, "which lots are drawn"] = 0

    def __post_init__(self) -> None:
        check_ratio(self.retain_ratio)
        if not 0 <= self.seed < 2**63:
            raise MethodError(f"Setting seed is {self.seed}, but has to be from 0 to 2**63 - 1.", "Change seed.")

    def compress(self, video: VideoFeatures) -> VisualTokens:
        """Draw N of the F * P tokens (F, P, D) -> (N, D)."""
        frames, patches, _ = video.tokens.shape
        order = torch.randperm(frames * patches, generator=torch.Generator().manual_seed(self.seed))
        drawn = order[: self.most_tokens(frames, patches)].sort().values
        return keep(video, drawn.to(video.tokens.device), "random")

    def most_tokens(self, frames: int, patches: int) -> int:
        """The exact number."""
        return budget(self.retain_ratio, frames, patches)
