"""Triton's kernels behind `kernels`, which says what they compute; imported where there is Triton alone.

Sums are taken in float32 and in a fixed order, so that they are the same on every run.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def neighbour_similarity(tokens, out, patches, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Cosine of one cell of one frame with the same cell of the next."""
    cell = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    here = tokens + cell * WIDTH
    there = here + patches * WIDTH
    both = tl.zeros((BLOCK,), tl.float32)
    one = tl.zeros((BLOCK,), tl.float32)
    other = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, WIDTH, BLOCK):
        inside = first + column < WIDTH
        left = tl.load(here + first + column, inside, 0.0).to(tl.float32)
        right = tl.load(there + first + column, inside, 0.0).to(tl.float32)
        both += left * right
        one += left * left
        other += right * right
    lengths = tl.maximum(tl.sqrt(tl.sum(one, 0)), 1e-8) * tl.maximum(tl.sqrt(tl.sum(other, 0)), 1e-8)
    tl.store(out + cell, tl.sum(both, 0) / lengths)


@triton.jit
def segment_means(tokens, bounds, out, features, BLOCK: tl.constexpr):
    """Some features of one segment's mean, of a frame's that lie in a row."""
    group = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < features
    start, stop = tl.load(bounds + 2 * group), tl.load(bounds + 2 * group + 1)
    total = tl.zeros((BLOCK,), tl.float32)
    frame = start
    while frame < stop:
        total += tl.load(tokens + frame * features + column, inside, 0.0).to(tl.float32)
        frame += 1
    tl.store(out + group * features + column, total / (stop - start).to(tl.float32), inside)


@triton.jit
def densities(
    products, share, near, squared, spread, farthest, P: tl.constexpr, NEAR: tl.constexpr, BLOCK: tl.constexpr
):
    """Squared distances of one token to the others, their mean over the nearest, and the largest."""
    row, group = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < P
    start = products + group * P * P
    product = tl.load(start + row * P + column, inside, 0.0)
    norms = tl.load(start + column * (P + 1), inside, 0.0)
    norms = tl.where(tl.load(share + group * P + column, inside, 0.0) > 0, norms, float("inf"))  # else it is absent
    norm = tl.where(tl.load(share + group * P + row) > 0, tl.load(start + row * (P + 1)), float("inf"))
    away = tl.maximum(norm + norms - 2 * product, 0.0)
    tl.store(squared + (group * P + row) * P + column, away, inside)
    tl.store(farthest + group * P + row, tl.max(tl.where(away < float("inf"), away, 0.0), 0))
    total = 0.0
    for index in range(NEAR):
        least = tl.min(away, 0)
        total += tl.minimum(least, 1e30) * tl.load(near + group * NEAR + index)
        found = tl.min(tl.where(away == least, column, BLOCK), 0)
        away = tl.where(column == found, float("inf"), away)
    tl.store(spread + group * P + row, total)


@triton.jit
def scores(squared, spread, farthest, score, P: tl.constexpr, BLOCK: tl.constexpr):
    """How much one token is a centre."""
    row, group = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < P
    away = tl.load(squared + (group * P + row) * P + column, inside, float("inf"))
    spreads = tl.load(spread + group * P + column, inside, float("inf"))
    own = tl.load(spread + group * P + row)
    most = tl.max(tl.load(farthest + group * P + column, inside, 0.0), 0)
    separation = tl.minimum(tl.min(tl.where(spreads < own, away, float("inf")), 0), most)
    far = tl.where(separation > 0, tl.log(tl.maximum(separation, 1e-38)), -1e30)
    tl.store(score + group * P + row, far - 2 * own)


@triton.jit
def ranks(score, rank, P: tl.constexpr, BLOCK: tl.constexpr):
    """How many tokens have a higher score than one, or the same and a lower column."""
    row, group = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)
    every = tl.load(score + group * P + column, column < P, float("-inf"))
    own = tl.load(score + group * P + row)
    before = (every > own) | ((every == own) & (column < row))
    tl.store(rank + group * P + row, tl.sum(before.to(tl.int32), 0))


@triton.jit
def joins(squared, rank, centres, base, goes_to, P: tl.constexpr, BLOCK: tl.constexpr):
    """The row of the centre closest to one token; a centre's own."""
    row, group = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < P
    count = tl.load(centres + group)
    centre = inside & (tl.load(rank + group * P + column, inside, BLOCK) < count)
    away = tl.load(squared + (group * P + row) * P + column, inside, float("inf"))
    away = tl.where(centre, tl.where(column == row, -1.0, away), float("inf"))
    least = tl.min(away, 0)
    found = tl.min(tl.where(centre & (away == least), column, BLOCK), 0)
    slot = tl.sum((centre & (column < found)).to(tl.int64), 0)
    tl.store(goes_to + group * P + row, tl.load(base + group * P + row) + slot)


@triton.jit(do_not_specialize=["most"])
def blends(rank, centres, each, goes_to, rows, weights, blend, account, most, P: tl.constexpr, BLOCK: tl.constexpr):
    """What each token counts in one centre's cluster, the centre's column, and how many tokens there are."""
    slot, group = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < P
    centre = inside & (tl.load(rank + group * P + column, inside, BLOCK) < tl.load(centres + group))
    place = tl.cumsum(centre.to(tl.int32), 0)
    itself = centre & (place == slot + 1)
    at = group * most + slot
    member = inside & (tl.load(goes_to + group * P + column, inside, -1) == tl.load(rows + at))
    number = tl.sum(member.to(tl.int64), 0)
    others, own = tl.load(weights + 2 * number), tl.load(weights + 2 * number + 1)
    tl.store(blend + at * P + column, tl.where(itself, own, tl.where(member, others, 0.0)), inside)
    tl.store(account + at, tl.sum(tl.where(itself, column, 0).to(tl.int64), 0))
    tl.store(account + tl.num_programs(1) * most + at, number * tl.load(each + group))
