"""The baseline: every token is kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from holitom_cli.methods import Method
from holitom_cli.types import VideoFeatures, VisualTokens


@dataclass(frozen=True)
class Full(Method):
    """No compression: every visual token enters the language model (LLaVA-OneVision, arXiv 2408.03326)."""

    def compress(self, video: VideoFeatures) -> VisualTokens:
        """Pass all F * P tokens on, frame by frame."""
        frames, patches, _ = video.tokens.shape
        index = torch.arange(frames * patches, device=video.tokens.device)
        return VisualTokens(
            embeds=video.tokens.flatten(0, 1),
            frame=index // patches,
            cell=index % patches,
            size=torch.ones_like(index),
            source=index.view(frames, patches),
            segments=tuple(range(frame, frame + 1) for frame in range(frames)),
            stages=(),
        )
