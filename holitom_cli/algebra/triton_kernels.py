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
