"""What a GPU would take many small steps for, each one kernel on an NVIDIA GPU.

Sums over all tokens of a clip read every token once and copy none. Clusters take three kernels instead of some thirty,
HoliTom's choice of tokens two instead of a long account made on the host.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from holitom_cli.algebra.host import IntArray
    from holitom_cli.algebra.merge import Wanted

_WIDE = 1024  # features of a token that a program adds up at a time
_TILE = 8192  # features of all tokens of a group that a program holds
_HELD = 8192  # distances between some tokens and all of a group, likewise


@cache
def _works(dtype: torch.dtype) -> bool:
    """Whether Triton compiles for this process's GPU (there is a Triton, a C compiler, a GPU that is not too old)."""
    try:
        neighbour_similarity(torch.zeros(2, 1, 16, device="cuda", dtype=dtype))
        torch.cuda.synchronize()
    except Exception:  # whatever it is, plain torch does the same
        return False
    return True


@cache
def _triton() -> Any:
    from holitom_cli.algebra import triton_kernels

    return triton_kernels


def runs_on(tokens: Tensor) -> bool:
    """Whether the kernels are for these tokens; float32 keeps to plain torch, which tests compare with."""
    return tokens.is_cuda and tokens.dtype in (torch.float16, torch.bfloat16) and _works(tokens.dtype)


def clusters_on(tokens: Tensor) -> bool:
    """Whether the kernels that choose among tokens, or means of them, are for these; of any precision."""
    return tokens.is_cuda and _works(torch.float16)


def neighbour_similarity(tokens: Tensor) -> Tensor:
    """Cosine of every cell with the same cell of the next frame: tokens (F, P, D) -> (F-1, P) float32."""
    frames, patches, width = tokens.shape
    out = torch.empty(max(0, frames - 1), patches, device=tokens.device)
    if out.numel():
        with torch.cuda.device_of(tokens):
            _triton().neighbour_similarity[(out.numel(),)](tokens.contiguous(), out, patches, WIDTH=width, BLOCK=_WIDE)
    return out


def steadiness(similarity: Tensor, threshold: float, max_window: int) -> tuple[Tensor, Tensor]:
    """As `segments.steadiness`, where `clusters_on` says so; cells are unchanged where their similarity is above it.

    Args:
        similarity: (F-1, P) float32.
        threshold: of that.
        max_window: longest window in frames.

    Returns:
        (F, P) int32, and (F, W) int16 for W as long as windows may be; 0 where no cell stays so long.
    """
    frames, patches = len(similarity) + 1, similarity.shape[1]
    most = min(max_window, frames) - 1
    until = torch.empty(frames, patches, dtype=torch.int32, device=similarity.device)
    steady = torch.zeros(frames, most, dtype=torch.int16, device=similarity.device)
    with torch.cuda.device_of(similarity):
        _triton().steadiness[(frames,)](
            similarity, float(threshold), until, steady, frames, most, P=patches, BLOCK=_block(patches)
        )
    return until, steady


def allot(
    attention: Tensor, until: Tensor, shares: Tensor, groups: int, most: int, total: int, neighbours: int
) -> list[Tensor]:
    """Choose the cells that stay as they are, and say what becomes of the static ones; where `clusters_on` says so.

    Args:
        attention: (F, P) float32.
        until: (F, P) int32, as of `steadiness`.
        shares: (F, 6) int64, of the segment of each frame: its first and its last frame; which of G groups its static
            cells are, -1 for none; its first row; how many rows its static cells get, and the others in each frame.
        groups: G.
        most: K, the most rows that static cells get.
        total: N, rows.
        neighbours: k at the most.

    Returns:
        (5, N + 1) int64, token and frame of each row, -1 to N - 1, cell, and 1; of static rows only the frame
        (F P,) int64, where the row of each token is found: among G P static cells, or behind them in -1, 0, ... N - 1
        and the rows, the base, the share and the nearest ones of `Wanted`.
    """
    frames, patches = attention.shape
    near = min(neighbours, patches)
    shapes = (5, total + 1), (frames * patches,), (groups, most), (groups, patches)
    found = [shares.new_empty(shape) for shape in shapes]
    found += [attention.new_empty(groups, width) for width in (patches, near)]
    sizes = {"P": patches, "NEAR": near, "BLOCK": _block(patches)}
    with torch.cuda.device_of(attention):
        _triton().allot[(frames,)](
            attention.contiguous(), until, shares, *found, groups, most, total, **sizes, ROWS=_rows(sizes["BLOCK"])
        )
    return found


def segment_means(tokens: Tensor, bounds: IntArray, there: Tensor) -> Tensor:
    """Mean of every cell over the frames of each of G segments.

    Args:
        tokens: (F, P, D).
        bounds: (G, 2), the first frame of each and the first behind it.
        there: the same on the device of the tokens, int64.

    Returns:
        (G, P, D) float32.
    """
    if not runs_on(tokens):
        return torch.stack([tokens[start:stop].mean(0, dtype=torch.float32) for start, stop in bounds.tolist()])
    features = tokens.shape[1] * tokens.shape[2]
    out = torch.empty(len(bounds), *tokens.shape[1:], device=tokens.device)
    with torch.cuda.device_of(tokens):
        _triton().segment_means[-(-features // _WIDE), len(bounds)](
            tokens.contiguous(), there, out, features, BLOCK=_WIDE
        )
    return out


def centred(tokens: Tensor, share: Tensor) -> Tensor:
    """Tokens less their mean, / sqrt(D); where `clusters_on` says so.

    Args:
        tokens: (G, P, D) float32.
        share: (G, P) float32, what each counts in the mean.
    """
    groups, patches, width = tokens.shape
    out, block = torch.empty_like(tokens), _block(patches)
    wide = max(_TILE // block, 4)
    with torch.cuda.device_of(tokens):
        _triton().centre[-(-width // wide), groups](
            tokens.contiguous(), share, out, width, width**-0.5, P=patches, BLOCK=block, WIDE=wide
        )
    return out


def _block(patches: int) -> int:
    """What a program has room for where it sees all tokens of a group."""
    return 1 << (patches - 1).bit_length()


def _rows(block: int) -> int:
    """How many tokens it compares with all of them at a time."""
    return min(32, max(1, _HELD // block))


def clusters(products: Tensor, wanted: Wanted) -> tuple[Tensor, Tensor, Tensor]:
    """Centres and who joins them; where `clusters_on` says so.

    Args:
        products: (G, P, P) float32, of the tokens' differences from their mean, / D.
        wanted: how many centres, and what is to become of them.

    Returns:
        what each token counts in each cluster (G, K, P), and the centres' columns with the clusters' sizes (2, G, K)
        and the row that each token becomes (G, P), as of `Merged`.
    """
    groups, patches = products.shape[:2]
    most, near = wanted.row.shape[1], wanted.near.shape[1]
    squared, goes_to = torch.empty_like(products), torch.empty_like(wanted.base)
    spread, farthest = products.new_empty(groups, patches), products.new_empty(groups, patches)
    blend = products.new_empty(groups, most, patches)
    account = wanted.row.new_empty(2, groups, most)
    sizes, made = {"P": patches, "BLOCK": _block(patches)}, _triton()
    with torch.cuda.device_of(products):
        made.densities[patches, groups](
            products, wanted.share, wanted.near, squared, spread, farthest, NEAR=near, **sizes
        )
        made.clusters[(groups,)](
            squared, spread, farthest, wanted.centres, wanted.each, wanted.base, wanted.row, wanted.weights,
            goes_to, blend, account, most, **sizes, ROWS=_rows(sizes["BLOCK"]), num_warps=8,
        )  # fmt: skip
    return blend, account, goes_to
