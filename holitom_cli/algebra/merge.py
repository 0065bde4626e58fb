"""Merging tokens: density peaks, weighted centres, and folding by halves."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Clusters(NamedTuple):
    """Which tokens of each of G groups are centres, and the centre that every token belongs to."""

    centre: Tensor  # (G, P) bool
    member_of: Tensor  # (G, P) int64 column of the centre; a centre belongs to itself


def top_mask(scores: Tensor, count: Tensor) -> Tensor:
    """Mark the highest scores of each row; equal scores go to the lower column.

    Args:
        scores: (R, P); the caller gives -inf to columns that must not be marked.
        count: (R,) int64, how many to mark.

    Returns:
        (R, P) bool.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    columns = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, columns)
    return rank < count[:, None]


def density_peaks(tokens: Tensor, valid: Tensor, centres: Tensor, neighbours: int) -> Clusters:
    """Choose centres that are dense and far from anything denser (DPC-KNN; HoliTom, section 3.3).

    Distances are Euclidean / sqrt(D). The density of a token is exp(-m), m its mean squared distance to
    the k nearest tokens, itself included, k = min(neighbours, centres); a centre scores density * distance
    to the nearest denser token. Scores are compared as logarithms: the order is the same, without underflow.

    Args:
        tokens: (G, P, D) float32.
        valid: (G, P) bool, the tokens that take part.
        centres: (G,) int64, how many centres each group gets, at most its valid tokens.
        neighbours: k at the most.
    """
    squared = _squared_distances(tokens, valid)
    spread = _mean_nearest(squared, centres, neighbours)
    both = valid[:, :, None] & valid[:, None, :]
    denser = (spread[:, None, :] < spread[:, :, None]) & both
    farthest = squared.masked_fill(~both, 0).amax(dim=(1, 2))[:, None]
    nearest_denser = squared.masked_fill(~denser, torch.inf).amin(2)
    separation = torch.where(nearest_denser.isinf(), farthest, nearest_denser)
    scores = (separation.log() / 2 - spread).clamp_min(torch.finfo(torch.float32).min)
    centre = top_mask(scores.masked_fill(~valid, -torch.inf), centres)
    closest = squared.masked_fill(~centre[:, None, :], torch.inf).argmin(2)
    itself = torch.arange(tokens.shape[1], device=tokens.device).expand_as(closest)
    return Clusters(centre, torch.where(centre, itself, closest))


def merge_into_centres(tokens: Tensor, valid: Tensor, clusters: Clusters, own_weight: float) -> Tensor:
    """Blend each centre with the mean of its other members: own_weight * centre + (1 - own_weight) * mean.

    Args:
        tokens: (G, P, D) float32.
        valid: (G, P) bool, the tokens that take part.
        clusters: from `density_peaks`.
        own_weight: of the centre itself.

    Returns:
        (G, P, D) float32, meaningful at the columns of centres; a centre without members is unchanged.
    """
    joins = F.one_hot(clusters.member_of, tokens.shape[1]).transpose(1, 2).to(tokens.dtype)  # (G, centre, member)
    joins = joins * (valid & ~clusters.centre)[:, None, :]
    members = joins.sum(2, keepdim=True)
    mean = joins @ tokens / members.clamp_min(1)
    return torch.where(members > 0, own_weight * tokens + (1 - own_weight) * mean, tokens)


def member_means(tokens: Tensor, row: Tensor, rows: int) -> Tensor:
    """Mean of the tokens that go to each row, the same on every run and device.

    Args:
        tokens: (T, D).
        row: (T,) int64, where each goes, -1 for nowhere.
        rows: R.

    Returns:
        (R, D) float32; zeros where nothing goes.
    """
    order = row.argsort(stable=True)
    members = torch.zeros(rows + 1, dtype=torch.int64, device=row.device)
    members.scatter_add_(0, row + 1, torch.ones_like(row))
    sums = torch.segment_reduce(tokens[order].float(), "sum", lengths=members, unsafe=True)[1:]
    return sums / members[1:, None].clamp_min(1)


def fold(states: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Fold every dropped row into the most cosine-similar kept row, one after another, each time by halves.

    kept = (kept + dropped) / 2, repeated for m rows in position order, is a weighted sum: 2**-m for the
    kept row, 2**-(m - j + 1) for the j-th dropped one. All similarities are taken before any fold
    (HoliTom, section 3.4).

    Args:
        states: (n, D).
        kept: (m,) int64, ascending.

    Returns:
        The kept states (m, D) in the dtype of `states`, and into (n,) int64, the kept row that each row
        went to.
    """
    exact = states.float()
    unit = F.normalize(exact, dim=-1)
    slot = (unit @ unit[kept].T).argmax(1)  # (n,) index into kept
    slot = slot.index_copy(0, kept, torch.arange(len(kept), device=states.device))
    weights = exact.new_zeros(len(kept), len(states))
    weights.scatter_(0, slot[None], torch.exp2(-_halvings(slot, kept).float())[None])
    return (weights @ exact).to(states.dtype), kept[slot]


def _halvings(slot: Tensor, kept: Tensor) -> Tensor:
    """How often each row is halved: by its own fold and all later ones into its slot; (n,) int64."""
    dropped = torch.ones_like(slot).index_fill_(0, kept, 0)
    folds = torch.zeros_like(kept).scatter_add_(0, slot, dropped)  # (m,) into each slot
    order = slot.argsort(stable=True)  # slot by slot, in position order
    from_here = dropped[order].flip(0).cumsum(0).flip(0)  # folds from each row on, in its slot and later ones
    later_slots = folds.flip(0).cumsum(0).flip(0) - folds
    halved = torch.empty_like(slot).scatter_(0, order, from_here - later_slots[slot[order]])
    return torch.where(dropped.bool(), halved, folds[slot])


def _squared_distances(tokens: Tensor, valid: Tensor) -> Tensor:
    """Squared Euclidean distance / D between the tokens of a group: (G, P, D) -> (G, P, P)."""
    count = valid.sum(1).clamp_min(1)[:, None, None]
    centred = (tokens - (tokens * valid[:, :, None]).sum(1, keepdim=True) / count) * valid[:, :, None]
    norms = centred.square().sum(-1)  # centred first: the difference of large squares would lose digits
    squared = norms[:, :, None] + norms[:, None, :] - 2 * centred @ centred.transpose(1, 2)
    squared.diagonal(dim1=1, dim2=2).zero_()
    return (squared.clamp_min(0) / tokens.shape[-1]).masked_fill(~valid[:, None, :], torch.inf)


def _mean_nearest(squared: Tensor, centres: Tensor, neighbours: int) -> Tensor:
    """Mean squared distance to the k nearest tokens, itself included: (G, P, P) -> (G, P)."""
    width = min(neighbours, squared.shape[-1])
    nearest = squared.topk(width, dim=-1, largest=False).values
    k = centres.clamp(1, width)[:, None, None]
    counted = torch.arange(width, device=squared.device) < k
    return nearest.where(counted, 0).sum(-1) / k[:, :, 0]
