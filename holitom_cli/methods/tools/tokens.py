"""What methods return: which tokens stay, and the account of every original one."""

from __future__ import annotations

import torch
from torch import Tensor

from holitom_cli.types import LayerView, VideoFeatures, VisualTokens


def keep(video: VideoFeatures, places: Tensor, stage: str) -> VisualTokens:
    """Some of a clip's tokens as they are; the others are dropped.

    Args:
        video: the clip.
        places: (N,) int64, ascending, among the F * P tokens in reading order.
        stage: what the funnel calls this.
    """
    frames, patches, _ = video.tokens.shape
    source = torch.full((frames * patches,), -1, device=places.device)
    source[places] = torch.arange(len(places), device=places.device)
    return account(video, video.tokens.flatten(0, 1)[places], places, source, ((stage, len(places)),))


def keep_all(video: VideoFeatures) -> VisualTokens:
    """All of a clip's tokens, frame by frame: nothing happens before the language model."""
    frames, patches, _ = video.tokens.shape
    everything = torch.arange(frames * patches, device=video.tokens.device)
    return account(video, video.tokens.flatten(0, 1), everything, everything, ())


def marked(mask: Tensor, count: int) -> Tensor:
    """Flat indices of the `count` true entries, ascending; knowing the count spares a wait for the device."""
    return mask.flatten().to(torch.uint8).argsort(descending=True, stable=True)[:count]


def account(
    video: VideoFeatures,
    embeds: Tensor,
    places: Tensor,
    source: Tensor,
    stages: tuple[tuple[str, int], ...],
    segments: tuple[range, ...] | None = None,
) -> VisualTokens:
    """Tokens in reading order, with the account of where every original one went.

    Args:
        video: the clip.
        embeds: (N, D).
        places: (N,) int64, where each stands among the F * P tokens.
        source: (F * P,) int64, the row that each original token went to, -1 if it was dropped.
        stages: rows of the funnel.
        segments: frames that were compressed together; each on its own if not given.
    """
    frames, patches, _ = video.tokens.shape
    size = source.new_zeros(len(places) + 1)
    size.scatter_add_(0, torch.where(source < 0, len(places), source), torch.ones_like(source))
    return VisualTokens(
        embeds=embeds.to(video.tokens.dtype),
        frame=places // patches,
        cell=places % patches,
        size=size[:-1],
        source=source.view(frames, patches),
        segments=segments or tuple(range(frame, frame + 1) for frame in range(frames)),
        stages=stages,
    )


def in_order(
    video: VideoFeatures,
    embeds: Tensor,
    places: Tensor,
    goes_to: Tensor,
    stages: tuple[tuple[str, int], ...],
    segments: tuple[range, ...],
) -> VisualTokens:
    """As `account`, of rows in any order.

    Args:
        video: the clip.
        embeds: (N, D).
        places: (N,) int64, where each stands among the F * P tokens.
        goes_to: (F * P,) int64, the row that each original token went to, -1 if it was dropped; those that rows stand
            for go to these, whatever it says. It is overwritten.
        stages: rows of the funnel.
        segments: frames that were compressed together.
    """
    number = torch.arange(len(places), device=places.device)
    order = places.argsort()
    turn = goes_to.new_full((len(places) + 1,), -1).index_copy_(0, order, number)  # the last one is for -1
    source = turn[goes_to.index_copy_(0, places, number)]
    return account(video, embeds[order], places[order], source, stages, segments)


def sources(goes_to: Tensor, places: Tensor) -> Tensor:
    """The row that each token went to, from the place that it went to.

    Args:
        goes_to: (F * P,) int64, a token's place for each, -1 if it was dropped.
        places: (N,) int64, the places of the tokens that stay, in reading order.

    Returns:
        (F * P,) int64, -1 if it was dropped.
    """
    row = torch.full_like(goes_to, -1)
    row[places] = torch.arange(len(places), device=places.device)
    return torch.where(goes_to < 0, -1, row[goes_to.clamp_min(0)])


def attention_of(video: VideoFeatures) -> Tensor:
    """The attention that each patch receives in the tower, (F, P) float32.

    Raises:
        ValueError: it was not asked for.
    """
    if video.attention is None:
        raise ValueError("The method needs the attention that each patch receives in the tower.")
    return video.attention


def keep_rows(view: LayerView, count: int, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Inside the language model: the rows with the highest scores as they are, in order; the others are dropped.

    Args:
        view: n rows.
        count: how many to keep, at least one.
        scores: (n,); equal ones go to the lower row.

    Returns:
        What a reduction returns: states (count, D) and into (n,).
    """
    kept = scores.argsort(descending=True, stable=True)[: max(1, count)].sort().values
    into = torch.full((len(scores),), -1, device=kept.device)
    into[kept] = kept
    return view.hidden[kept], into
