"""Triton's kernels behind `kernels`, which says what they compute; imported where there is Triton alone.

Sums are taken in float32. Numbers that differ from prompt to prompt are never compiled in.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_norm(states, change, weight, bias, total, normed, width, eps, BLOCK: tl.constexpr):
    """One row: states + change, and its layer norm."""
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, BLOCK)
    inside = column < width
    summed = tl.load(states + row + column, inside, 0.0).to(tl.float32)
    summed += tl.load(change + row + column, inside, 0.0).to(tl.float32)
    rounded = summed.to(total.dtype.element_ty)
    tl.store(total + row + column, rounded, inside)
    exact = rounded.to(tl.float32)
    mean = tl.sum(exact) / width
    off = tl.where(inside, exact - mean, 0.0)
    scale = tl.rsqrt(tl.sum(off * off) / width + eps)
    by = tl.load(weight + column, inside, 0.0).to(tl.float32)
    shift = tl.load(bias + column, inside, 0.0).to(tl.float32)
    tl.store(normed + row + column, (off * scale * by + shift).to(normed.dtype.element_ty), inside)


@triton.jit
def gated(gate_up, out, width, BLOCK: tl.constexpr):
    """A piece of a row: silu(gate) * up."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up + row * 2 * width + column, inside, 0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, inside, 0.0).to(tl.float32)
    tl.store(out + row * width + column, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["length", "batch_stride", "head_stride"])
def turn(
    qkv, cos, sin, query, keys, values, at, length, batch_stride, head_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """One head of one token: turned queries to `query`, turned keys and values to their slots."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, step = token // length, token % length
    one = tl.arange(0, HALF)
    other = one + HALF
    source = qkv + (token * (HEADS + 2 * KV_HEADS) + head) * 2 * HALF
    left, right = tl.load(source + one).to(tl.float32), tl.load(source + other).to(tl.float32)
    angle = token * 2 * HALF
    if head < HEADS + KV_HEADS:
        cos_one, cos_other = tl.load(cos + angle + one).to(tl.float32), tl.load(cos + angle + other).to(tl.float32)
        sin_one, sin_other = tl.load(sin + angle + one).to(tl.float32), tl.load(sin + angle + other).to(tl.float32)
        turned = left * cos_one - right * sin_one
        right = right * cos_other + left * sin_other
        left = turned
    if head < HEADS:
        target = query + (token * HEADS + head) * 2 * HALF
    else:
        slot = (tl.load(at + row) + step) * 2 * HALF
        if head < HEADS + KV_HEADS:
            target = keys + row * batch_stride + (head - HEADS) * head_stride + slot
        else:
            target = values + row * batch_stride + (head - HEADS - KV_HEADS) * head_stride + slot
    tl.store(target + one, left.to(query.dtype.element_ty))
    tl.store(target + other, right.to(query.dtype.element_ty))


@triton.jit(do_not_specialize=["batch_stride", "head_stride", "parts"])
def attend_part(
    query, keys, values, at, sums, most, mixed, batch_stride, head_stride, parts,
    scale, GROUP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What one token's queries of a group of heads find in a block of keys: largest score, sum of weights, values."""
    group, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    batch = group // KV_HEADS
    row, feature = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    slot = part * BLOCK + tl.arange(0, BLOCK)
    there = slot <= tl.load(at + batch)
    mine = row < GROUP
    asked = tl.load(query + (group * GROUP + row[:, None]) * WIDTH + feature[None, :], mine[:, None], 0.0)
    start = batch * batch_stride + (group % KV_HEADS) * head_stride
    place = start + slot[:, None] * WIDTH + feature[None, :]
    known = tl.load(keys + place, there[:, None], 0.0)
    scores = tl.dot(asked, tl.trans(known)) * scale
    scores = tl.where(there[None, :], scores, float("-inf"))
    top = tl.maximum(tl.max(scores, 1), -1e30)  # finite also where no key is there
    weights = tl.exp(scores - top[:, None])
    found = tl.dot(weights.to(known.dtype), tl.load(values + place, there[:, None], 0.0))
    out = (group * parts + part) * ROWS + row
    tl.store(most + out, top)
    tl.store(sums + out, tl.sum(weights, 1))
    tl.store(mixed + out[:, None] * WIDTH + feature[None, :], found)


@triton.jit(do_not_specialize=["parts"])
def attend_whole(
    sums, most, mixed, out, parts,
    GROUP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head of one token: what it finds in all blocks of keys."""
    head = tl.program_id(0).to(tl.int64)
    group, row = head // GROUP, head % GROUP
    part, feature = tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    inside = part < parts
    place = (group * parts + part) * ROWS + row
    top = tl.load(most + place, inside, float("-inf"))
    share = tl.exp(top - tl.max(top, 0))
    total = tl.sum(share * tl.load(sums + place, inside, 0.0), 0)
    found = tl.load(mixed + place[:, None] * WIDTH + feature[None, :], inside[:, None], 0.0)
    whole = tl.sum(found * share[:, None], 0) / total
    tl.store(out + head * WIDTH + feature, whole.to(out.dtype.element_ty))


@triton.jit
def received(
    query, keys, out, heads, width, frame_stride, token_stride, scale,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Attention that all tokens receive from a block of queries of one head."""
    block, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    start = (pair // heads) * frame_stride + (pair % heads) * width
    feature = tl.arange(0, WIDTH)
    used = feature < width
    row = block * ROWS + tl.arange(0, ROWS)
    asking = row < TOKENS
    place = start + row[:, None] * token_stride + feature[None, :]
    asked = tl.load(query + place, asking[:, None] & used[None, :], 0.0)
    top = tl.full((ROWS,), -1e30, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for first in range(0, TOKENS, BLOCK):
        column = first + tl.arange(0, BLOCK)
        there = column < TOKENS
        place = start + column[:, None] * token_stride + feature[None, :]
        known = tl.load(keys + place, there[:, None] & used[None, :], 0.0)
        scores = tl.where(there[None, :], tl.dot(asked, tl.trans(known)) * scale, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(scores - higher[:, None]), 1)
        top = higher
    for first in range(0, TOKENS, BLOCK):
        column = first + tl.arange(0, BLOCK)
        there = column < TOKENS
        place = start + column[:, None] * token_stride + feature[None, :]
        known = tl.load(keys + place, there[:, None] & used[None, :], 0.0)
        scores = tl.dot(asked, tl.trans(known)) * scale
        weights = tl.where(asking[:, None], tl.exp(scores - top[:, None]) / total[:, None], 0.0)
        tl.store(out + (pair * tl.num_programs(0) + block) * TOKENS + column, tl.sum(weights, 0), there)
