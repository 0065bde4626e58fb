"""Steps between matrix products, each one kernel on an NVIDIA GPU.

Plain torch reads and writes the same states several times, and takes the host longer to launch than the GPU to run. It
defines what comes out, and runs wherever Triton does not: here, or where `suits` and `runs_on` are asked.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from holitom_cli.errors import reason

_KEYS = 64  # that one program of decoding attention looks at
_GROUP_ROWS = 16  # the fewest rows that tensor cores multiply


@cache
def trouble() -> str:
    """Why Triton compiles nothing for this process's GPU (no Triton, no C compiler, an old GPU); empty if it does."""
    try:
        tried = torch.zeros(1, 32, device="cuda", dtype=torch.float16)
        _triton().gated[1, 1](tried, torch.empty_like(tried), 16, BLOCK=16)
        torch.cuda.synchronize()
    except Exception as error:  # whatever it is, plain torch does the same
        return reason(error)
    return ""


@cache
def _triton() -> Any:
    from holitom_cli.model import triton_kernels

    return triton_kernels


def runs_on(states: Tensor) -> bool:
    """Whether Triton's kernels are for these states; float32 keeps to plain torch, which tests compare with."""
    return states.is_cuda and states.dtype in _halves() and not trouble()


@cache
def _halves() -> tuple[torch.dtype, ...]:
    """Number formats that this process's GPU multiplies; bfloat16 came with the A100."""
    return (torch.float16, torch.bfloat16) if torch.cuda.get_device_capability() >= (8, 0) else (torch.float16,)


def add_norm(states: Tensor, change: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    """A sum (..., C) and its layer norm by an nn.LayerNorm."""
    if not runs_on(states):
        total = states + change
        return total, norm(total)
    states = states.contiguous()  # as patches come from their embedding, they may lie channel by channel
    total, normed = torch.empty_like(states), torch.empty_like(states)
    width = states.shape[-1]
    grid = (states.numel() // width,)
    with torch.cuda.device_of(states):
        _triton().add_norm[grid](
            states, change.contiguous(), norm.weight, norm.bias, total, normed, width, norm.eps, BLOCK=_power(width)
        )
    return total, normed


def gated(gate_up: Tensor, mlp: Any) -> Tensor:
    """The first half of the features through an MLP's activation, times the second: (..., 2 I) -> (..., I)."""
    if not (runs_on(gate_up) and mlp.config.hidden_act == "silu"):
        gate, up = gate_up.chunk(2, -1)
        return mlp.act_fn(gate) * up  # type: ignore[no-any-return]
    width = gate_up.shape[-1] // 2
    out = gate_up.new_empty(*gate_up.shape[:-1], width)
    block = 1024
    with torch.cuda.device_of(gate_up):
        _triton().gated[out.numel() // width, -(-width // block)](gate_up.contiguous(), out, width, BLOCK=block)
    return out


def suits(states: Tensor, head_dim: int, group: int) -> bool:
    """Whether `turn` and `attend` are for these states, with heads so wide, so many to a head of keys."""
    return runs_on(states) and head_dim >= 16 and head_dim == _power(head_dim) and group <= _GROUP_ROWS


def turn(qkv: Tensor, rope: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, at: Tensor, heads: int) -> Tensor:
    """Turn queries and keys by their positions, and store keys and values.

    Where `suits` says so.

    Args:
        qkv: (B, S, (heads + 2 Hkv) d) queries, keys and values of all heads.
        rope: cosines and sines (B, S, d).
        keys: (B, Hkv, slots, d), written; values alike.
        values: as keys.
        at: (B,) int64 slot of each row's first token.
        heads: of the queries.

    Returns:
        turned queries (B, heads, S, d).
    """
    batch, length = qkv.shape[:2]
    kv_heads, _, width = keys.shape[1:]
    query = qkv.new_empty(batch, length, heads, width)
    cos, sin = (part.contiguous() for part in rope)
    with torch.cuda.device_of(qkv):
        _triton().turn[batch * length, heads + 2 * kv_heads](
            qkv, cos, sin, query, keys, values, at, length, *keys.stride()[:2],
            HEADS=heads, KV_HEADS=kv_heads, HALF=width // 2, num_warps=1,
        )  # fmt: skip
    return query.transpose(1, 2)


def attend(query: Tensor, keys: Tensor, values: Tensor, at: Tensor) -> Tensor:
    """Attention of one new token of each row to all that is stored up to its own slot.

    Where `suits` says so. Blocks of keys are looked at side by side: head by head, few cores would have work.

    Args:
        query: (B, heads, 1, d).
        keys: (B, Hkv, slots, d); values alike.
        values: as keys.
        at: (B,) int64 the token's own slot.

    Returns:
        (B, heads, 1, d).
    """
    batch, heads, _, width = query.shape
    kv_heads, slots = keys.shape[1:3]
    parts = -(-slots // _KEYS)
    kept = (batch * kv_heads, parts, _GROUP_ROWS)
    sums, most = (torch.empty(kept, device=query.device) for _ in range(2))
    mixed = torch.empty(*kept, width, device=query.device)
    out = query.new_empty(batch, heads, 1, width)
    shape = {"GROUP": heads // kv_heads, "ROWS": _GROUP_ROWS, "WIDTH": width}
    with torch.cuda.device_of(query):
        _triton().attend_part[batch * kv_heads, parts](
            query, keys, values, at, sums, most, mixed, *keys.stride()[:2], parts, width**-0.5,
            KV_HEADS=kv_heads, BLOCK=_KEYS, **shape,
        )  # fmt: skip
        _triton().attend_whole[(batch * heads,)](sums, most, mixed, out, parts, BLOCK=_power(parts), **shape)
    return out


def received(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Attention probability that each token receives, mean over heads and queries.

    Where `runs_on` says so: the maps (f, heads, T, T) are never written.

    Args:
        query: (f, T, heads, d), contiguous; key alike.
        key: as query.
        scale: of the scores.

    Returns:
        (f, T) float32.
    """
    frames, tokens, heads, width = query.shape
    rows = 64
    blocks = -(-tokens // rows)
    out = torch.empty(frames, heads * blocks, tokens, device=query.device)
    with torch.cuda.device_of(query):
        _triton().received[blocks, frames * heads](
            query, key, out, heads, width, *query.stride()[:2], scale,
            TOKENS=tokens, ROWS=rows, BLOCK=64, WIDTH=max(16, _power(width)),
        )  # fmt: skip
    return out.sum(1) / (heads * tokens)


def plain_received(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """The same from whole maps of all frames given, in float32."""
    scores = query.transpose(1, 2).float() @ key.permute(0, 2, 3, 1).float() * scale
    return scores.softmax(-1).mean(1).mean(1)


def _power(number: int) -> int:
    """The power of two from a number on."""
    return 1 << (number - 1).bit_length()
