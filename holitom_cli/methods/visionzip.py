"""VisionZip: tokens that receive attention, and the rest merged into evenly strided ones (arXiv 2412.04467)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from holitom_cli.algebra.merge import member_means, top_mask
from holitom_cli.methods import Method
from holitom_cli.methods.tools.settings import Share, by_frame, check, check_ratio
from holitom_cli.methods.tools.tokens import account, attention_of, sources
from holitom_cli.types import VideoFeatures, VisualTokens


@dataclass(frozen=True)
class VisionZip(Method):
    """Keeps dominant tokens of every frame and merges the others (VisionZip, arXiv 2412.04467).

    A frame keeps retain_ratio * P tokens, rounded so that the clip's number is exact. 54 of 64 are dominant: those that
    receive the most attention in the tower. Contextual ones are taken at even steps from what is left; every other
    token goes to the one whose key in the tower's last layer is most cosine-similar, and the mean of those that came is
    added to it.

    The paper takes the attention of a class token, which this tower has not: here it is the mean over all patches.
    It merges before the projector, here after the pool.
    """

    status: ClassVar[str] = "simplified"
    needs_attention: ClassVar[bool] = True
    needs_keys: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {"dominant": 54 / 64}}

    retain_ratio: Annotated[Share, "share of the visual tokens to keep"] = 0.15
    dominant: Annotated[float, "share of the kept tokens that are chosen by attention"] = 54 / 64

    def __post_init__(self) -> None:
        check_ratio(self.retain_ratio)
        check(0 <= self.dominant <= 1, "dominant", self.dominant, "from 0 to 1")

    def compress(self, video: VideoFeatures) -> VisualTokens:
        """Per frame, dominant tokens in order, then contextual ones in order: (F, P, D) -> (N, D)."""
        if video.keys is None:
            raise ValueError("VisionZip needs the tower's keys.")
        attention, (frames, patches, _) = attention_of(video), video.tokens.shape
        counts = by_frame(self.retain_ratio, frames, patches)
        dominant = torch.tensor([round(count * self.dominant) for count in counts], device=attention.device)
        contextual = torch.tensor(counts, device=attention.device) - dominant
        # 1. Which tokens stay.
        chosen = top_mask(attention, dominant)
        targets = _strided(~chosen, contextual)
        # 2. Where the others go; nowhere in a frame without contextual tokens.
        unit = F.normalize(video.keys.float(), dim=-1)
        likeness = (unit @ unit.transpose(1, 2)).masked_fill(~targets[:, None], -torch.inf)
        place = torch.arange(frames * patches, device=attention.device).view(frames, patches)
        nearest = place[:, :1] + likeness.argmax(2)
        goes_to = torch.where(chosen | targets, place, torch.where(contextual[:, None] > 0, nearest, -1)).view(-1)
        # 3. Rows, and what is added to them.
        order = (2 * place[:, :1] + targets * patches + torch.arange(patches, device=place.device)).view(-1)
        order = order.masked_fill(~(chosen | targets).view(-1), 2 * frames * patches)
        places = order.argsort(stable=True)[: sum(counts)]
        source = sources(goes_to, places)
        tokens = video.tokens.flatten(0, 1)
        came = torch.where((chosen | targets).view(-1), -1, source)
        embeds = tokens[places].float() + member_means(tokens, came, len(places))
        return account(video, embeds, places, source, (("dominant and contextual", len(places)),))

    def most_tokens(self, frames: int, patches: int) -> int:
        """The exact number."""
        return sum(by_frame(self.retain_ratio, frames, patches))


def _strided(left: Tensor, count: Tensor) -> Tensor:
    """Mark `count` (F,) of the left tokens (F, P) at even steps from the first one."""
    rank = left.cumsum(1) - 1
    step = (left.sum(1) // count.clamp_min(1)).clamp_min(1)[:, None]
    return left & (rank % step == 0) & (rank // step < count[:, None])
