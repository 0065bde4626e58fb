"""What a GPU would take many small steps for, each one kernel on an NVIDIA GPU.

Sums over all tokens of a clip read every token once and copy none; clusters take five kernels instead of some thirty.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from holitom_cli.algebra.merge import Wanted

_WIDE = 1024  # features of a token that a program adds up at a time


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
    """Whether `clusters` is for these means of tokens."""
    return tokens.is_cuda and _works(torch.float16)


def neighbour_similarity(tokens: Tensor) -> Tensor:
    """Cosine of every cell with the same cell of the next frame: tokens (F, P, D) -> (F-1, P) float32."""
    frames, patches, width = tokens.shape
    out = torch.empty(max(0, frames - 1), patches, device=tokens.device)
    if out.numel():
        with torch.cuda.device_of(tokens):
            _triton().neighbour_similarity[(out.numel(),)](tokens.contiguous(), out, patches, WIDTH=width, BLOCK=_WIDE)
    return out


def segment_means(tokens: Tensor, segments: Sequence[range], bounds: Tensor) -> Tensor:
    """Mean of every cell over the frames of each of G segments.

    Args:
        tokens: (F, P, D).
        segments: of frames.
        bounds: (G, 2) int64, their first and their last frame + 1, on the device of the tokens.

    Returns:
        (G, P, D) float32.
    """
    if not runs_on(tokens):
        return torch.stack([tokens[part.start : part.stop].mean(0, dtype=torch.float32) for part in segments])
    features = tokens.shape[1] * tokens.shape[2]
    out = torch.empty(len(segments), *tokens.shape[1:], device=tokens.device)
    with torch.cuda.device_of(tokens):
        _triton().segment_means[-(-features // _WIDE), len(segments)](
            tokens.contiguous(), bounds, out, features, BLOCK=_WIDE
        )
    return out


def clusters(products: Tensor, wanted: Wanted) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centres and who joins them; where `clusters_on` says so.

    Args:
        products: (G, P, P) float32, of the tokens' differences from their mean, / D.
        wanted: how many centres, and what is to become of them.

    Returns:
        what each token counts in each cluster (G, K, P), and the centres' columns (G, K), the clusters' sizes (G, K)
        and the row that each token becomes (G, P), as of `Merged`.
    """
    groups, patches = products.shape[:2]
    most, near = wanted.row.shape[1], wanted.near.shape[1]
    squared = torch.empty_like(products)
    # Each by itself, since a tensor that starts elsewhere in another would be compiled for again.
    spread, farthest, score = (products.new_empty(groups, patches) for _ in range(3))
    rank = torch.empty(groups, patches, dtype=torch.int32, device=products.device)
    goes_to = torch.empty_like(wanted.base)
    blend = products.new_empty(groups, most, patches)
    cell, size = torch.empty_like(wanted.row), torch.empty_like(wanted.row)
    sizes = {"P": patches, "BLOCK": 1 << (patches - 1).bit_length()}
    every, made = (patches, groups), _triton()
    with torch.cuda.device_of(products):
        made.densities[every](products, wanted.absent, wanted.near, squared, spread, farthest, NEAR=near, **sizes)
        made.scores[every](squared, spread, farthest, score, **sizes)
        made.ranks[every](score, rank, **sizes)
        made.joins[every](squared, rank, wanted.centres, wanted.base, goes_to, **sizes)
        made.blends[most, groups](
            rank, wanted.centres, goes_to, wanted.row, wanted.weights, blend, cell, size, most, **sizes
        )
    return blend, cell, size, goes_to
