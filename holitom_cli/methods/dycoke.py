"""DyCoke: of four frames keep one whole, and of the others what has changed (arXiv 2411.15024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch

from holitom_cli.algebra.merge import top_mask
from holitom_cli.errors import MethodError
from holitom_cli.methods import Method
from holitom_cli.methods.tools.settings import Share, budget, check, check_instead, share_of, spread, tokens_in
from holitom_cli.methods.tools.tokens import keep, marked
from holitom_cli.types import Reduction, VideoFeatures, VisualTokens

_WINDOW_FRAMES = 4


@dataclass(frozen=True)
class DyCoke(Method):
    """Thins out frames by their neighbours, in windows of four (DyCoke's temporal part, arXiv 2411.15024).

    Of a window's frames the first stays whole. The second is compared with the first, the fourth with the third, and
    then the third with the first; each keeps the int(keep * P) cells that are least cosine-similar. A budget is met
    exactly by sharing what is left behind the whole frames among the others, so it has to be at least a quarter.

    The paper's second part prunes the cache while the answer is generated: `dycoke+dycoke-cache`. The published code
    leaves the third frame of the clip's last window whole, compares, for the second and fourth frames, those of the
    pair before, and puts a frame's tokens in the order of their similarity; here it is as the paper says, and tokens
    stay in reading order. At 25% nothing is left of three frames of four: docs/methods.md says what that costs.
    """

    status: ClassVar[str] = "simplified"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {"keep": 0.3}}

    keep: Annotated[float, "share of the cells that each compared frame keeps"] = 0.3
    retain_ratio: Annotated[Share | None, "share of the visual tokens to keep in all, instead of keep"] = None

    def __post_init__(self) -> None:
        check(0 <= self.keep <= 1, "keep", self.keep, "from 0 to 1")
        check_instead("keep", self.keep, type(self).keep, self.retain_ratio)

    def compress(self, video: VideoFeatures) -> VisualTokens:
        """Pick N of the F * P tokens (F, P, D) -> (N, D)."""
        frames, patches, _ = video.tokens.shape
        if self.retain_ratio is not None:
            _check_share(share_of(self.retain_ratio, frames, patches))
        counts = self._counts(frames, patches)
        number = torch.arange(frames, device=video.tokens.device)
        against = torch.where(number % _WINDOW_FRAMES == 2, number - 2, number - 1).clamp_min(0)
        tokens = video.tokens.float()
        similarity = torch.cosine_similarity(tokens, tokens[against], dim=-1)
        chosen = top_mask(-similarity, torch.tensor(counts, device=number.device))
        return keep(video, marked(chosen, sum(counts)), "temporal merge")

    def reductions(self, depth: int) -> Mapping[int, Reduction]:  # noqa: ARG002  # it acts before the model alone
        """Nothing inside; a budget that cannot be met is refused here, before anything is read."""
        if self.retain_ratio is not None and tokens_in(self.retain_ratio) is None:
            _check_share(float(self.retain_ratio))
        return {}

    def most_tokens(self, frames: int, patches: int) -> int:
        """The exact number."""
        return sum(self._counts(frames, patches))

    def _counts(self, frames: int, patches: int) -> list[int]:
        """How many cells each frame keeps."""
        whole = -(-frames // _WINDOW_FRAMES)
        thinned = frames - whole
        if self.retain_ratio is None or not thinned:
            shares = [int(self.keep * patches)] * thinned
        else:
            wanted = budget(self.retain_ratio, frames, patches) - whole * patches
            shares = spread(max(0, wanted), thinned)
        others = iter(shares)
        return [patches if frame % _WINDOW_FRAMES == 0 else next(others) for frame in range(frames)]


def _check_share(share: float) -> None:
    if share < 1 / _WINDOW_FRAMES:
        raise MethodError(
            f"DyCoke cannot keep {share:.1%}: one frame of {_WINDOW_FRAMES} stays whole.", "Ask for 25% or more."
        )
