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


@triton.jit(do_not_specialize=["frames", "most"])
def steadiness(similarity, threshold, until, steady, frames, most, P: tl.constexpr, BLOCK: tl.constexpr):
    """How many cells of one frame stay as they are for 1, 2, ... steps, and until which frame each does."""
    first = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < P
    stays = inside.to(tl.int32)
    last = stays * 0 + first
    step, count = 1, 1
    while (step <= most) & (first + step < frames) & (count > 0):
        here = tl.load(similarity + (first + step - 1).to(tl.int64) * P + column, inside, float("-inf"))
        stays = tl.where(here > threshold, stays, 0)
        last += stays
        count = tl.sum(stays, 0)
        tl.store(steady + first.to(tl.int64) * most + step - 1, count)
        step += 1
    tl.store(until + first.to(tl.int64) * P + column, last, inside)


@triton.jit
def ranks(score, inside, P: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """How many score higher, or the same in a lower column; some at a time. Far up for those outside."""
    column, some = tl.arange(0, BLOCK), tl.arange(0, ROWS)
    rank = tl.where(inside, 0, BLOCK)
    for first in range(0, P, ROWS):
        row = first + some
        here = row[:, None] == column[None, :]
        own = tl.sum(tl.where(here, score[None, :], 0.0), 1)[:, None]
        before = (score[None, :] > own) | ((score[None, :] == own) & (column[None, :] < row[:, None]))
        rank += tl.sum(tl.where(here, tl.sum(before.to(tl.int32), 1)[:, None], 0), 0)
    return rank


@triton.jit(do_not_specialize=["groups", "most", "total"])
def allot(
    attention, until, shares, rows, lookup, places, base, share, near, groups, most, total,
    P: tl.constexpr, NEAR: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """What of one frame is kept; of the first one of a segment, what becomes of its static cells, too."""
    frame = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < P
    start, last, group = tl.load(shares + 6 * frame), tl.load(shares + 6 * frame + 1), tl.load(shares + 6 * frame + 2)
    first_row, centres = tl.load(shares + 6 * frame + 3), tl.load(shares + 6 * frame + 4)
    each = tl.load(shares + 6 * frame + 5)
    # 1. The changing cells that receive the most attention; what is no number is least, as for `host.highest`.
    static = inside & (tl.load(until + start * P + column, inside, -1) >= last) & (last > start)
    score = tl.load(attention + frame * P + column, inside, 0.0)
    score = tl.where(score > -1e38, score, -1e38)
    chosen = ranks(tl.where(inside & (static == 0), score, float("-inf")), inside, P, BLOCK, ROWS) < each
    row = first_row + centres + (frame - start) * each + tl.cumsum(chosen.to(tl.int32), 0) - 1
    width = total + 1
    tl.store(rows + row, frame * P + column, chosen)
    tl.store(rows + width + row, frame, chosen)
    tl.store(rows + 2 * width + row + 1, row, chosen)
    tl.store(rows + 3 * width + row, column, chosen)
    tl.store(rows + 4 * width + row, 1, chosen)
    # 2. Where the row of each cell is found.
    behind = groups * P
    elsewhere = tl.where(static & (centres > 0), group * P + column, behind)
    tl.store(lookup + frame * P + column, tl.where(chosen, behind + 1 + row, elsewhere), inside)
    if frame == 0:
        tl.store(rows + total, 0)  # the row behind the last one is looked up, too
        tl.store(rows + 2 * width, -1)
    # 3. The rows of static cells.
    if (frame == start) & (centres > 0):
        there = column < centres
        row = first_row + column
        tl.store(rows + row, 0, there)
        tl.store(rows + width + row, frame, there)
        tl.store(rows + 2 * width + row + 1, row, there)
        tl.store(places + group * most + column, tl.where(there, row, total), column < most)
        tl.store(base + group * P + column, tl.where(static, first_row, -(1 << 40)), inside)
        tokens = tl.sum(static.to(tl.int32), 0).to(tl.float32)
        tl.store(share + group * P + column, tl.where(static, tl.div_rn(1.0, tokens), 0.0), inside)
        nearest = tl.minimum(centres, NEAR)
        part = tl.div_rn(1.0, nearest.to(tl.float32))
        tl.store(near + group * NEAR + column, tl.where(column < nearest, part, 0.0), column < NEAR)


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
def centre(tokens, share, out, width, scale, P: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """Some features of one group's tokens, less their mean."""
    group = tl.program_id(1).to(tl.int64)
    cell = tl.arange(0, BLOCK)[:, None]
    column = tl.program_id(0) * WIDE + tl.arange(0, WIDE)[None, :]
    inside = (cell < P) & (column < width)
    at = (group * P + cell) * width + column
    here = tl.load(tokens + at, inside, 0.0)
    part = tl.load(share + group * P + cell, cell < P, 0.0)
    tl.store(out + at, (here - tl.sum(here * part, 0)[None, :]) * scale, inside)


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


@triton.jit(do_not_specialize=["most"])
def clusters(
    squared, spread, farthest, centres, each, base, rows, weights, goes_to, blend, account, most,
    P: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The centres of one group, who joins them, and what each token counts in a cluster; some rows at a time."""
    group = tl.program_id(0).to(tl.int64)
    column, some = tl.arange(0, BLOCK), tl.arange(0, ROWS)
    inside = column < P
    squared += group * P * P
    # 1. How much each token is a centre.
    spreads = tl.load(spread + group * P + column, inside, float("inf"))
    most_away = tl.max(tl.load(farthest + group * P + column, inside, 0.0), 0)
    score = tl.where(inside, 0.0, float("-inf"))
    for first in range(0, P, ROWS):
        row = first + some
        own = tl.load(spread + group * P + row, row < P, 0.0)
        away = tl.load(squared + row[:, None] * P + column[None, :], (row < P)[:, None] & inside[None, :], float("inf"))
        denser = spreads[None, :] < own[:, None]
        separation = tl.minimum(tl.min(tl.where(denser, away, float("inf")), 1), most_away)
        far = tl.where(separation > 0, tl.log(tl.maximum(separation, 1e-38)), -1e30) - 2 * own
        far = tl.where(far == far, far, float("-inf")).to(tl.float32)  # what is no number would be higher than all
        score += tl.sum(tl.where(row[:, None] == column[None, :], far[:, None], 0.0), 0)
    # 2. The highest scores; of equals those in lower columns.
    centre = ranks(score, inside, P, BLOCK, ROWS) < tl.load(centres + group)
    slot = tl.cumsum(centre.to(tl.int32), 0) - 1
    # 3. The row of the centre closest to each token; a centre's own.
    goes = tl.load(base + group * P + column, inside, -1)
    for first in range(0, P, ROWS):
        row = first + some
        here = row[:, None] == column[None, :]
        away = tl.load(squared + row[:, None] * P + column[None, :], (row < P)[:, None] & centre[None, :], float("inf"))
        away = tl.where(here & centre[None, :], -1.0, away)
        least = tl.min(away, 1)[:, None]
        found = tl.min(tl.where(centre[None, :] & (away == least), column[None, :], BLOCK), 1)[:, None]
        joined = tl.sum(tl.where(column[None, :] == found, slot[None, :], 0), 1)
        goes += tl.sum(tl.where(here, joined[:, None], 0), 0)
    tl.store(goes_to + group * P + column, goes, inside)
    # 4. The clusters.
    first = 0
    while first < most:
        number = first + some
        at = group * most + number
        wanted = number < most
        member = goes[None, :] == tl.load(rows + at, wanted, -2)[:, None]
        member = member & inside[None, :]
        size = tl.sum(member.to(tl.int64), 1)
        others, own = tl.load(weights + 2 * size), tl.load(weights + 2 * size + 1)
        itself = centre[None, :] & (slot[None, :] == number[:, None])
        counts = tl.where(itself, own[:, None], tl.where(member, others[:, None], 0.0))
        tl.store(blend + at[:, None] * P + column[None, :], counts, wanted[:, None] & inside[None, :])
        cell = tl.sum(tl.where(itself, column[None, :], 0).to(tl.int64), 1)
        tl.store(account + at, cell, wanted)
        tl.store(account + tl.num_programs(0) * most + at, size * tl.load(each + group), wanted)
        first += ROWS
