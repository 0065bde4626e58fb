"""VidCom2: more tokens for frames that stand out, and of each frame those that stand out (arXiv 2505.14454)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from holitom_cli.algebra.merge import top_mask
from holitom_cli.methods import Method
from holitom_cli.methods.tools.settings import Share, apportion, budget, check, check_ratio
from holitom_cli.methods.tools.tokens import keep, marked
from holitom_cli.types import VideoFeatures, VisualTokens

_WIDTHS = tuple(2.0**power for power in range(-3, 2))


@dataclass(frozen=True)
class VidCom2(Method):
    """Keeps tokens unlike the rest of their frame and of the clip (VidCom2, arXiv 2505.14454).

    Of the half of the channels that vary least, normalised, each token's similarity to the clip's centre and to its
    frame's is a sum of Gaussians of five widths. A frame's uniqueness, minus its mean similarity to the clip's centre,
    goes through a softmax to w; of each frame the share min(r (1 + w - mean w), 1) is kept, the tokens of the lowest
    summed similarity. The code rounds that in each frame; here the shares are rounded so that the clip's number is
    exact.
    """

    status: ClassVar[str] = "matches the code"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "25": {"retain_ratio": 0.25},
        "15": {"retain_ratio": 0.15},
    }

    retain_ratio: Annotated[Share, "share of the visual tokens to keep"] = 0.15
    temperature: Annotated[float, "of the softmax over frames"] = 0.01
    channels: Annotated[float, "share of the channels to look at, those that vary least"] = 0.5

    def __post_init__(self) -> None:
        check_ratio(self.retain_ratio)
        check(self.temperature > 0, "temperature", self.temperature, "above 0")
        check(0 < self.channels <= 1, "channels", self.channels, "above 0 and at most 1")

    def compress(self, video: VideoFeatures) -> VisualTokens:
        """Pick N of the F * P tokens (F, P, D) -> (N, D); one small transfer decides all shapes."""
        to_clip, to_frame = self._similarities(video.tokens)
        counts = self._counts(to_clip)
        chosen = top_mask(-(to_clip + to_frame), torch.tensor(counts, device=to_clip.device))
        return keep(video, marked(chosen, sum(counts)), "outliers")

    def most_tokens(self, frames: int, patches: int) -> int:
        """The exact number."""
        return budget(self.retain_ratio, frames, patches)

    def _similarities(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """To the clip's centre and to the frame's: (F, P, D) -> two of (F, P) float32."""
        exact = tokens.float()
        variance = exact.flatten(0, 1).var(0, unbiased=False)
        looked_at = variance.argsort(stable=True)[: max(1, int(len(variance) * self.channels))]
        unit = F.normalize(exact[..., looked_at], dim=-1)
        centres = unit.mean((0, 1), keepdim=True), unit.mean(1, keepdim=True)
        clip, frame = ((unit - centre).square().sum(-1) for centre in centres)
        return _gaussians(clip), _gaussians(frame)

    def _counts(self, to_clip: Tensor) -> list[int]:
        """How many tokens each frame keeps."""
        frames, patches = to_clip.shape
        weight = (-to_clip.mean(1) / self.temperature).softmax(0)
        stand_out = (1 + weight - weight.mean()).tolist()
        return apportion(budget(self.retain_ratio, frames, patches), stand_out, [patches] * frames)


def _gaussians(squared: Tensor) -> Tensor:
    return torch.stack([(-squared / (2 * width)).exp() for width in _WIDTHS]).sum(0)
