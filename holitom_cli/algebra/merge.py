"""Merging tokens: density peaks, weighted centres, and folding by halves."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from holitom_cli.algebra import kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from holitom_cli.algebra.host import BoolArray, IntArray


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
        valid: (G, P) bool, the tokens that take part. On the CPU, the choice among a device's tokens is made there.
        centres: (G,) int64, how many centres each group gets, at most its valid tokens; where `valid` is.
        neighbours: k at the most.
    """
    width = min(neighbours, tokens.shape[1])
    k = centres.clamp(1, width)[:, None]
    near = (torch.arange(width, device=valid.device) < k) / k
    share = valid / valid.sum(1, keepdim=True).clamp_min(1)
    absent = torch.zeros_like(share).masked_fill_(~valid, torch.inf)
    products = _products(tokens, share.to(tokens.device)).to(valid.device)
    squared, scores = _peaks(products, absent, near)
    centre = top_mask(scores, centres)
    closest = squared.masked_fill(~centre[:, None, :], torch.inf).argmin(2)
    itself = torch.arange(tokens.shape[1], device=valid.device).expand_as(closest)
    return Clusters(centre, torch.where(centre, itself, closest))


class Wanted(NamedTuple):
    """What can be said of the clusters of G groups before anybody has looked at the tokens, in rows R of a result.

    All of it is made on the host, so that a GPU has few steps to take. `T` of a group's P tokens take part; up to
    K centres are chosen in each.
    """

    centres: Tensor  # (G,) int64, how many each group gets
    each: Tensor  # (G,) int64, what each of a group's tokens counts in the size of its cluster
    row: Tensor  # (G, K) int64, the row that each centre becomes, R for those that a group does not have
    base: Tensor  # (G, P) int64, the row of the group's first centre, -1 without one; far below for the absent
    share: Tensor  # (G, P) float32, 1 / T for the tokens that take part, 0 for the others
    near: Tensor  # (G, w) float32, 1 / k for the first k nearest tokens, those of a density, then 0
    weights: Tensor  # (P + 1, 2) float32, what a member and a centre count, by the number of a cluster's tokens

    @staticmethod
    def arrays(
        valid: BoolArray,
        centres: IntArray,
        first_row: IntArray,
        rows: int,
        neighbours: int,
        own_weight: float | None = None,
        each: IntArray | None = None,
    ) -> list[NDArray[Any]]:
        """All parts, for `host.moved`.

        Args:
            valid: (G, P), the tokens that take part.
            centres: (G,), how many each group gets, at most its valid tokens; those of a group without any go to -1.
            first_row: (G,), the row of the first one; the others follow.
            rows: R.
            neighbours: k at the most.
            own_weight: of a centre against the mean of its cluster's others; one without others stays as it is.
                Without it a cluster is the mean of them all.
            each: (G,), what each of a group's tokens counts in the size of its cluster; 1 without it.
        """
        patches = valid.shape[1]
        column, width = np.arange(centres.max(initial=1)), min(neighbours, patches)
        k = np.minimum(np.maximum(centres, 1), width)[:, None]
        tokens = valid.sum(1, keepdims=True)
        first = np.where(centres > 0, first_row, -1)[:, None]
        return [
            centres,
            np.ones_like(centres) if each is None else each,
            np.where(column < centres[:, None], first + column, rows),
            np.where(valid, first, -(2**40)),
            valid * np.reciprocal(np.maximum(tokens, 1), dtype=np.float32),
            (np.arange(width) < k) * np.reciprocal(k, dtype=np.float32),
            blend_weights(patches, own_weight),
        ]

    def groups(self, part: slice) -> Wanted:
        """Some of the groups."""
        if part.start == 0 and part.stop >= len(self.centres):
            return self  # most often
        return Wanted._make([*(field[part] for field in self[:-1]), self.weights])


_FOLDED_AT_ONCE = 2048  # rows of a matrix as wide as all visual tokens


@cache
def blend_weights(patches: int, own_weight: float | None) -> NDArray[np.float32]:
    """What a member and a centre count in a cluster's mean, by how many tokens there are: (P + 1, 2); see `Wanted`."""
    if own_weight is None:
        return (1 / np.arange(patches + 1).clip(1)[:, None]).repeat(2, 1).astype(np.float32)
    others = np.arange(-1, patches).clip(1)
    weights = np.stack(((1 - own_weight) / others, np.full(patches + 1, own_weight)), 1).astype(np.float32)
    weights[:2, 1] = 1
    return weights


class Merged(NamedTuple):
    """What became of G groups, each of them in up to K clusters."""

    blended: Tensor  # (G, K, D) float32, each centre with the others of its cluster
    account: Tensor  # (2, G, K) int64, column of each centre, ascending; and the size of its cluster, itself included
    goes_to: Tensor  # (G, P) int64, the row that each token that takes part becomes

    @property
    def cell(self) -> Tensor:
        """(G, K), meaningless for the centres that a group does not have, as their size is."""
        return self.account[0]


def merge_by_peaks(tokens: Tensor, wanted: Wanted) -> Merged:
    """Choose centres as `density_peaks` does, and blend each with the mean of the others that are closest to it.

    Args:
        tokens: (G, P, D) float32.
        wanted: how many centres, and what is to become of them.
    """
    if kernels.clusters_on(tokens):
        centred = kernels.centred(tokens, wanted.share)
        products = centred @ centred.transpose(1, 2)
        blend, account, goes_to = kernels.clusters(products, wanted)
        return Merged(blend @ tokens, account, goes_to)
    products = _products(tokens, wanted.share)
    lacking = torch.arange(wanted.row.shape[1], device=tokens.device) >= wanted.centres[:, None]  # (G, K)
    absent = torch.zeros_like(wanted.share).masked_fill_(wanted.share == 0, torch.inf)
    squared, scores = _peaks(products, absent, wanted.near)
    best = scores.argsort(dim=1, descending=True, stable=True)[:, : lacking.shape[1]]
    cell = best.masked_fill_(lacking, tokens.shape[1] - 1).sort(dim=1).values
    squared.diagonal(dim1=1, dim2=2).fill_(-1)  # a centre belongs to itself, not to one that equals it
    away = squared.gather(2, cell[:, None, :].expand(-1, tokens.shape[1], -1))
    goes_to = away.masked_fill_(lacking[:, None], torch.inf).argmin(2).add_(wanted.base)
    joins = goes_to[:, None, :] == wanted.row[:, :, None]  # (G, K, P)
    number = joins.sum(2)
    member, itself = wanted.weights[number].split(1, 2)
    blend = (joins * member).scatter_(2, cell[:, :, None], itself)
    return Merged(blend @ tokens, torch.stack((cell, number * wanted.each[:, None])), goes_to)


def _products(tokens: Tensor, share: Tensor) -> Tensor:
    """Products / D of the tokens' differences from their mean: (G, P, D) float32, share as of `Wanted` -> (G, P, P)."""
    centred = tokens - share[:, None] @ tokens  # the difference of large squares would lose digits
    scale = 1 / tokens.shape[-1]
    return torch.baddbmm(tokens.new_empty(1), centred, centred.transpose(1, 2), beta=0, alpha=scale)


def _peaks(products: Tensor, absent: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances / D and the scores of being a centre; the arguments are as of `_products` and `Wanted`.

    Returns:
        (G, P, P) float32, infinite to and from tokens that take no part, and (G, P) float32, lowest for these.
    """
    norms = products.diagonal(dim1=1, dim2=2) + absent
    squared = (norms[:, :, None] + norms[:, None, :]).sub_(products, alpha=2).clamp_min_(0)
    nearest = squared.topk(near.shape[1], dim=-1, largest=False).values.clamp_max_(1e30)  # 0 * inf would be NaN
    spread = nearest @ near[:, :, None]  # (G, P, 1)
    denser = spread.transpose(1, 2) < spread
    farthest = squared.nan_to_num(posinf=0).amax(dim=(1, 2))[:, None]
    separation = torch.where(denser, squared, torch.inf).amin(2).minimum(farthest)
    # Twice the score. Tokens that equal a denser one are last among those that take part, in their own order.
    return squared, separation.log_().clamp_min_(-1e30).sub_(spread[:, :, 0], alpha=2)


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
    count = torch.zeros(rows + 1, dtype=torch.int64, device=row.device)
    count.scatter_add_(0, row + 1, torch.ones_like(row))
    return segment_sums(tokens[order].float(), count)[1:] / count[1:, None].clamp_min(1)


def segment_sums(values: Tensor, lengths: Tensor) -> Tensor:
    """Sums of neighbours, in their order: values (T, ...) float32, lengths (S,) int64 that add up to T -> (S, ...)."""
    sums: Tensor = torch.segment_reduce(values, "sum", lengths=lengths, unsafe=True)
    return sums


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
    centres = unit[kept].T
    slots = [(part @ centres).argmax(1) for part in unit.split(_FOLDED_AT_ONCE)]
    numbers = torch.arange(len(kept), device=states.device)
    slot = (slots[0] if len(slots) == 1 else torch.cat(slots)).index_copy_(0, kept, numbers)  # (n,) index into kept
    folded = [
        _fold_into(exact, slot, *those).to(states.dtype)
        for those in zip(numbers.split(_FOLDED_AT_ONCE), kept.split(_FOLDED_AT_ONCE), strict=True)
    ]
    return folded[0] if len(folded) == 1 else torch.cat(folded), kept[slot]


def _fold_into(exact: Tensor, slot: Tensor, numbers: Tensor, kept: Tensor) -> Tensor:
    """What becomes of some kept rows (k,), numbered as in `slot`: weighted sums of all rows (k, D)."""
    weights = torch.empty(len(kept), len(exact), device=exact.device)
    torch.eq(numbers[:, None], slot, out=weights)  # which row goes where
    weights.index_fill_(1, kept, 0)
    folds = weights.cumsum(1)  # into each slot, up to each row
    total = folds[:, -1:].clone()
    weights *= folds.sub_(total).exp2_()  # twice what is right, in powers of two and so exactly
    weights.scatter_(1, kept[:, None], torch.exp2(1 - total))
    return torch.addmm(exact.new_empty(1), weights, exact, beta=0, alpha=0.5)
