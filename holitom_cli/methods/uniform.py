"""Control: tokens at even steps, whatever they show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from holitom_cli.methods import Method
from holitom_cli.methods.tools.settings import Share, budget, check_ratio
from holitom_cli.methods.tools.tokens import keep
from holitom_cli.types import VideoFeatures, VisualTokens


@dataclass(frozen=True)
class Uniform(Method):
    """Keeps tokens at even steps through the clip (control, no paper).

    The clip's F * P tokens, in reading order, are cut into as many equal stretches as there are tokens to keep, and
    the middle one of each stays as it is. What a method gains over this it gains by looking.
    """

    status: ClassVar[str] = "control"

    retain_ratio: Annotated[Share, "share of the visual tokens to keep"] = 0.15

    def __post_init__(self) -> None:
        check_ratio(self.retain_ratio)

    def compress(self, video: VideoFeatures) -> VisualTokens:
        """Pick N of the F * P tokens (F, P, D) -> (N, D)."""
        frames, patches, _ = video.tokens.shape
        count = self.most_tokens(frames, patches)
        steps = 2 * torch.arange(count, device=video.tokens.device) + 1
        return keep(video, steps * (frames * patches) // (2 * count), "uniform")

    def most_tokens(self, frames: int, patches: int) -> int:
        """The exact number."""
        return budget(self.retain_ratio, frames, patches)
