"""The GPU's kernels against plain torch, at the true shapes.

    python -m tests.gpu.kernels

Prints a line for each: how far the two are apart, and how far something else is, which has to be more. Ends with JSON;
the exit code is 1 where a kernel is too far off.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from holitom_cli.model import kernels
from holitom_cli.model.layers import _turned

_BOUND = 1e-2  # relative, in bfloat16: three digits
_HEADS, _KV_HEADS, _WIDTH = 28, 4, 128

Compared = tuple[Tensor, Tensor, Tensor]  # by the kernel, by plain torch, of something else


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def sums_and_norms() -> Compared:
    states, change, norm = drawn(16, 729, 1152), drawn(16, 729, 1152), nn.LayerNorm(1152).to("cuda", torch.bfloat16)
    return kernels.add_norm(states, change, norm)[1], norm(states + change), norm(states)


def gates() -> Compared:
    from transformers import Qwen2Config
    from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

    both = drawn(1, 990, 2 * 18944)
    mlp = Qwen2MLP(Qwen2Config(hidden_size=8, intermediate_size=8))
    gate, up = both.chunk(2, -1)
    return kernels.gated(both, mlp), mlp.act_fn(gate) * up, mlp.act_fn(up) * gate


def turns() -> Compared:
    qkv, rope = drawn(1, 991, (_HEADS + 2 * _KV_HEADS) * _WIDTH), (drawn(1, 991, _WIDTH), drawn(1, 991, _WIDTH))
    keys, values = (torch.zeros(1, _KV_HEADS, 1100, _WIDTH, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    query = kernels.turn(qkv, rope, keys, values, torch.zeros(1, dtype=torch.int64, device="cuda"), _HEADS)
    parts = qkv.unflatten(-1, (-1, _WIDTH)).transpose(1, 2)
    expected = _turned(parts[:, : _HEADS + _KV_HEADS], rope)
    stored = torch.cat((query, keys[:, :, :991], values[:, :, :991]), 1)
    return stored, torch.cat((expected, parts[:, _HEADS + _KV_HEADS :]), 1), parts


def attends() -> Compared:
    at = torch.tensor([0, 700, 6302], device="cuda")
    query, keys, values = drawn(3, _HEADS, 1, _WIDTH), *(drawn(3, _KV_HEADS, 6400, _WIDTH) for _ in range(2))
    known = [(keys[row : row + 1, :, : last + 1], values[row : row + 1, :, : last + 1]) for row, last in enumerate(at)]
    plain = [
        nn.functional.scaled_dot_product_attention(query[row : row + 1], *one, enable_gqa=True)
        for row, one in enumerate(known)
    ]
    found = kernels.attend(query, keys, values, at)
    return found, torch.cat(plain), kernels.attend(query, keys, values, at.flip(0))


def receives() -> Compared:
    query, key = 3 * drawn(4, 729, 16, 72), drawn(4, 729, 16, 72)  # peaked, as attention is
    scale = 72**-0.5
    plain = kernels.plain_received(query, key, scale)
    return kernels.received(query, key, scale), plain, kernels.plain_received(key, query, scale)


def compared() -> Iterator[tuple[str, float, float]]:
    """Names, relative differences, and those of the controls."""
    parts: tuple[Callable[[], Compared], ...] = (sums_and_norms, gates, turns, attends, receives)
    for part in parts:
        found, plain, other = (one.float() for one in part())
        size = plain.norm()
        yield part.__name__, float((found - plain).norm() / size), float((other - plain).norm() / size)


def main() -> int:
    """Compare all of them."""
    torch.manual_seed(0)
    if not kernels.runs_on(drawn(1)):
        print("There is no GPU that Triton compiles for.")
        return 1
    found = list(compared())
    for name, off, control in found:
        print(f"{name:16} {off:.1e}, something else {control:.1e}")
    print(json.dumps({name: {"relative_error": off, "control": control} for name, off, control in found}))
    return int(any(not off < _BOUND < control for _, off, control in found))


if __name__ == "__main__":
    with torch.inference_mode():
        sys.exit(main())
