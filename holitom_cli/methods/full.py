"""The baseline: every token is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from holitom_cli.methods import Method
from holitom_cli.methods.tools.tokens import keep_all
from holitom_cli.types import VideoFeatures, VisualTokens


@dataclass(frozen=True)
class Full(Method):
    """No compression: every visual token enters the language model (LLaVA-OneVision, arXiv 2408.03326)."""

    status: ClassVar[str] = "control"

    def compress(self, video: VideoFeatures) -> VisualTokens:
        """Pass all F * P tokens on, frame by frame."""
        return keep_all(video)
