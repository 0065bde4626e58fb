"""Triton's kernels for packed weights, which `quantise` describes; imported where there is Triton alone.

Numbers are summed in float32. A matrix's width is compiled in: a language model has two. Parameters of kernels have no
types, since Triton takes annotations for its own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 4  # of the matrix, for each program
_TILES = {8: 512, 4: 128}  # numbers, or words of eight, that a program reads of a row at a time: 16 bytes a thread
_WARPS = 1  # none waits for another: what it needs of the states, it reads itself
_UNPACKED_NUMBERS, _UNPACKED_WORDS, _UNPACKING_WARPS = 2048, 512, 4
_TOGETHER_ROWS, _TOGETHER_WARPS = 16, 2  # where tensor cores multiply
_FEWEST_STATES = 16  # that they multiply
_TOGETHER_TILES = {8: 4096, 4: 512}  # numbers or words, times states: what 48 KiB of shared memory hold three times


def few_rows(states: Tensor, values: Tensor, steps: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer (M, K) -> (M, N) of packed weights.

    Args:
        states: (M, K), M being so small that reading the weights is all the work.
        values: as `Packed.values`.
        steps: as `Packed.steps`.
        bias: (N,) or None.
    """
    states = states.contiguous()
    product = states.new_empty((len(states), len(values)))
    # Programs of the same rows of the matrix lie side by side: all but the first find them in the GPU's cache.
    grid = (len(states), triton.cdiv(len(values), _ROWS))
    added = states if bias is None else bias  # any memory: where there is no bias, it is not read
    with torch.cuda.device_of(states):
        if values.dtype == torch.int8:
            shape = *values.shape, bias is not None, _ROWS, _TILES[8]
            _few_rows_8[grid](states, values, steps, added, product, *shape, num_warps=_WARPS)
        else:
            shape = *values.shape, values.shape[1] // steps.shape[1], bias is not None, _ROWS, _TILES[4]
            _few_rows_4[grid](states, values, steps.view(torch.int32), added, product, *shape, num_warps=_WARPS)
    return product


def several_rows(states: Tensor, values: Tensor, steps: Tensor, bias: Tensor | None) -> Tensor:
    """As `few_rows`, for so many rows in 16 bits that tensor cores are quicker: the weights are read once for all."""
    states = states.contiguous()
    product = states.new_empty((len(states), len(values)))
    grid = (triton.cdiv(len(values), _TOGETHER_ROWS),)
    held = max(_FEWEST_STATES, triton.next_power_of_2(len(states)))
    added = states if bias is None else bias  # any memory: where there is no bias, it is not read
    given, size = bias is not None, (held, _TOGETHER_ROWS)
    with torch.cuda.device_of(states):
        if values.dtype == torch.int8:
            shape = len(states), *values.shape, given, *size, _TOGETHER_TILES[8] // held
            _several_rows_8[grid](states, values, steps, added, product, *shape, num_warps=_TOGETHER_WARPS)
        else:
            shape = (
                len(states),
                *values.shape,
                values.shape[1] // steps.shape[1],
                given,
                *size,
                max(16, _TOGETHER_TILES[4] // held),
            )
            pairs = steps.view(torch.int32)
            _several_rows_4[grid](states, values, pairs, added, product, *shape, num_warps=_TOGETHER_WARPS)
    return product


def unpack(values: Tensor, steps: Tensor, weights: Tensor) -> None:
    """Write the matrix (N, K) that packed numbers stand for, each rounded once."""
    rows, columns = values.shape
    with torch.cuda.device_of(values):
        if values.dtype == torch.int8:
            grid = (rows, triton.cdiv(columns, _UNPACKED_NUMBERS))
            _unpack_8[grid](values, steps, weights, columns, _UNPACKED_NUMBERS, num_warps=_UNPACKING_WARPS)
        else:
            grid = (rows, triton.cdiv(columns, _UNPACKED_WORDS))
            sizes = columns, columns // steps.shape[1], _UNPACKED_WORDS
            _unpack_4[grid](values, steps.view(torch.int32), weights, *sizes, num_warps=_UNPACKING_WARPS)


def try_out() -> None:
    """Run every kernel on small numbers.

    Raises:
        Exception: Triton finds no compiler, or does not know the card.
    """
    states = torch.zeros((1, 128), device="cuda", dtype=torch.float16)
    words = torch.zeros((16, 16), device="cuda", dtype=torch.int32)
    pairs = torch.zeros((16, 1, 2), device="cuda", dtype=torch.bfloat16)
    numbers, steps = torch.zeros((16, 128), device="cuda", dtype=torch.int8), torch.zeros(16, device="cuda")
    for product in (few_rows, several_rows):
        product(states, words, pairs, None)
        product(states, numbers, steps, None)
    unpack(words, pairs, states.new_empty((16, 128)))
    unpack(numbers, steps, states.new_empty((16, 128)))
    torch.cuda.synchronize()


@triton.jit
def _few_rows_8(
    states,
    values,
    steps,
    bias,
    product,
    N,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    m = tl.program_id(0)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = rows < N
    total = tl.zeros((ROWS, TILE), tl.float32)
    for start in range(0, K, TILE):
        columns = start + tl.arange(0, TILE)
        here = columns < K
        entering = tl.load(states + m * K + columns, mask=here, other=0).to(tl.float32)
        at = values + rows[:, None].to(tl.int64) * K + columns[None, :]
        numbers = tl.load(at, mask=inside[:, None] & here[None, :], other=0)
        total += numbers.to(tl.float32) * entering[None, :]
    found = tl.sum(total, 1) * tl.load(steps + rows, mask=inside, other=0)
    if BIAS:
        found += tl.load(bias + rows, mask=inside, other=0).to(tl.float32)
    tl.store(product + m * N + rows, found.to(product.dtype.element_ty), mask=inside)


@triton.jit
def _few_rows_4(
    states,
    values,
    steps,
    bias,
    product,
    N,
    WORDS: tl.constexpr,
    GROUP_WORDS: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    m = tl.program_id(0)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = rows < N
    groups: tl.constexpr = TILE // GROUP_WORDS
    total = tl.zeros((ROWS, groups), tl.float32)
    for start in range(0, WORDS, TILE):
        word = start + tl.arange(0, TILE)
        here = word < WORDS
        at = values + rows[:, None].to(tl.int64) * WORDS + word[None, :]
        packed = tl.load(at, mask=inside[:, None] & here[None, :], other=0)
        upper = packed >> 20
        scaled = tl.zeros((ROWS, TILE), tl.float32)
        plain = tl.zeros((TILE,), tl.float32)
        for p in tl.static_range(8):
            entering = tl.load(states + m * WORDS * 8 + p * WORDS + word, mask=here, other=0).to(tl.float32)
            plain += entering
            # 2**23 + n is a float32 whose lowest bits are n. So four bits are a number without being converted, which
            # most cards are slow at, and without being shifted: what stands too high is made up for in the states.
            bits = ((packed if p < 5 else upper) & (15 << 4 * (p % 5))) | 0x4B000000
            number = bits.to(tl.float32, bitcast=True) - 8388608.0
            scaled += number * (entering * (1.0 / (1 << 4 * (p % 5))))[None, :]
        group = start // GROUP_WORDS + tl.arange(0, groups)
        at = steps + rows[:, None] * (WORDS // GROUP_WORDS) + group[None, :]
        pair = tl.load(at, mask=inside[:, None] & (group < WORDS // GROUP_WORDS)[None, :], other=0)
        # A bfloat16 is the upper half of a float32; the step is the first of the two.
        step, low = (pair << 16).to(tl.float32, bitcast=True), (pair & -65536).to(tl.float32, bitcast=True)
        sums = tl.sum(tl.reshape(scaled, (ROWS, groups, GROUP_WORDS)), 2)
        total += step * sums + low * tl.sum(tl.reshape(plain, (groups, GROUP_WORDS)), 1)[None, :]
    found = tl.sum(total, 1)
    if BIAS:
        found += tl.load(bias + rows, mask=inside, other=0).to(tl.float32)
    tl.store(product + m * N + rows, found.to(product.dtype.element_ty), mask=inside)


@triton.jit
def _several_rows_8(
    states,
    values,
    steps,
    bias,
    product,
    M,
    N,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    STATES: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < N
    m = tl.arange(0, STATES)
    there = m < M
    total = tl.zeros((STATES, ROWS), tl.float32)
    for start in range(0, K, TILE):
        columns = start + tl.arange(0, TILE)
        here = columns < K
        entering = tl.load(states + m[:, None] * K + columns[None, :], mask=there[:, None] & here[None, :], other=0)
        at = values + rows[:, None].to(tl.int64) * K + columns[None, :]
        numbers = tl.load(at, mask=inside[:, None] & here[None, :], other=0).to(entering.dtype)
        total = tl.dot(entering, tl.trans(numbers), total)
    total *= tl.load(steps + rows, mask=inside, other=0)[None, :]
    if BIAS:
        total += tl.load(bias + rows, mask=inside, other=0).to(tl.float32)[None, :]
    at = product + m[:, None] * N + rows[None, :]
    tl.store(at, total.to(product.dtype.element_ty), mask=there[:, None] & inside[None, :])


@triton.jit
def _several_rows_4(
    states,
    values,
    steps,
    bias,
    product,
    M,
    N,
    WORDS: tl.constexpr,
    GROUP_WORDS: tl.constexpr,
    BIAS: tl.constexpr,
    STATES: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < N
    m = tl.arange(0, STATES)
    there = m < M
    total = tl.zeros((STATES, ROWS), tl.float32)
    for start in range(0, WORDS, TILE):
        word = start + tl.arange(0, TILE)
        here = word < WORDS
        both = inside[:, None] & here[None, :]
        packed = tl.load(values + rows[:, None].to(tl.int64) * WORDS + word[None, :], mask=both, other=0)
        at = steps + rows[:, None] * (WORDS // GROUP_WORDS) + word[None, :] // GROUP_WORDS
        pair = tl.load(at, mask=both, other=0)
        step, low = (pair << 16).to(tl.float32, bitcast=True), (pair & -65536).to(tl.float32, bitcast=True)
        for p in tl.static_range(8):
            at = states + m[:, None] * WORDS * 8 + p * WORDS + word[None, :]
            entering = tl.load(at, mask=there[:, None] & here[None, :], other=0)
            weights = (((packed >> (4 * p)) & 15).to(tl.float32) * step + low).to(entering.dtype)
            total = tl.dot(entering, tl.trans(weights), total)
    if BIAS:
        total += tl.load(bias + rows, mask=inside, other=0).to(tl.float32)[None, :]
    at = product + m[:, None] * N + rows[None, :]
    tl.store(at, total.to(product.dtype.element_ty), mask=there[:, None] & inside[None, :])


@triton.jit
def _unpack_8(values, steps, weights, COLUMNS, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    here = column < COLUMNS
    number = tl.load(values + row * COLUMNS + column, mask=here, other=0).to(tl.float32)
    at = weights + row * COLUMNS + column
    tl.store(at, (number * tl.load(steps + row)).to(weights.dtype.element_ty), mask=here)


@triton.jit
def _unpack_4(values, steps, weights, WORDS, GROUP_WORDS: tl.constexpr, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * TILE + tl.arange(0, TILE)
    here = word < WORDS
    packed = tl.load(values + row * WORDS + word, mask=here, other=0)
    pair = tl.load(steps + row * (WORDS // GROUP_WORDS) + word // GROUP_WORDS, mask=here, other=0)
    step, low = (pair << 16).to(tl.float32, bitcast=True), (pair & -65536).to(tl.float32, bitcast=True)
    for p in tl.static_range(8):
        number = ((packed >> (4 * p)) & 15).to(tl.float32)
        at = weights + row * WORDS * 8 + p * WORDS + word
        tl.store(at, (number * step + low).to(weights.dtype.element_ty), mask=here)
