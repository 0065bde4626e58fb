"""Attention probabilities of a few query rows, from projections and cached keys: no attention matrix."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from holitom_cli.types import Reduction


def causal_mask(config: Any, hidden: Tensor) -> Tensor | None:
    """The mask for a whole prompt (1, 1, S, S), or None where the attention kernel is causal by itself."""
    if getattr(config, "_attn_implementation", "sdpa") == "sdpa":
        return None
    length = hidden.shape[1]
    return torch.full((length, length), -torch.inf, dtype=hidden.dtype, device=hidden.device).triu(1)[None, None]


def attention_to_span(
    layer: Any,
    entering: Tensor,
    rope: tuple[Tensor, Tensor],
    keys: Tensor | None,
    reduction: Reduction,
    span: range,
) -> Tensor:
    """Softmax attention that prompt tokens pay to the visual span in one decoder layer.

    Args:
        layer: the decoder layer.
        entering: (1, S, D) states entering it; of them those behind the span are enough where there are keys.
        rope: cosines and sines (1, S, d) of the S positions.
        keys: (1, Hkv, S, d) rotated keys of the layer, or None to compute them.
        reduction: which rows and how heads are joined.
        span: the visual tokens.

    Returns:
        (Q, len(span)) float32.
    """
    attention = layer.self_attn
    length = rope[0].shape[1]
    first = length - 1 if reduction.rows == "last" else span.stop
    if keys is None:
        keys = _heads(attention.k_proj, _normed(layer, entering), rope, attention.head_dim)
    asking = _normed(layer, entering[:, entering.shape[1] - length + first :])
    queries = _heads(attention.q_proj, asking, tuple(part[:, first:] for part in rope), attention.head_dim)
    # The rows of a group's heads lie behind one another, so that no key is repeated.
    grouped = queries[0].reshape(keys.shape[1], -1, attention.head_dim).float()  # (Hkv, group * Q, d)
    scores = (grouped @ keys[0].float().transpose(1, 2)).mul_(attention.scaling).view(-1, length - first, keys.shape[2])
    if first + 1 < length:  # the last row sees everything
        columns = torch.arange(keys.shape[2], device=scores.device)
        future = columns > torch.arange(first, length, device=scores.device)[:, None]
        scores.masked_fill_(future, -torch.inf)
    weights = scores.softmax(-1)[..., span.start : span.stop]  # (heads, Q, len(span))
    joined: Tensor = weights.mean(0) if reduction.heads == "mean" else weights.amax(0)
    return joined.to(entering.device)


def device_of(module: Any) -> torch.device:
    """Where a module computes: accelerate's execution device, or where its weights are."""
    hook = getattr(module, "_hf_hook", None)
    planned = getattr(hook, "execution_device", None)
    return next(module.parameters()).device if planned is None else torch.device(planned)


def _normed(layer: Any, states: Tensor) -> Tensor:
    """What a decoder layer's attention reads; in one kernel where its projections are joined, as `layers` has it."""
    norm = layer.input_layernorm
    if hasattr(layer.mlp, "gate_up"):
        return F.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)
    return norm(states.to(device_of(norm)))  # type: ignore[no-any-return]


def _heads(projection: Any, normed: Tensor, rope: tuple[Tensor, ...], head_dim: int) -> Tensor:
    """Project and rotate: (1, S, D) -> (1, heads, S, d)."""
    states: Tensor = projection(normed.to(device_of(projection))).unflatten(-1, (-1, head_dim)).transpose(1, 2)
    cos, sin = (part[:, None].to(states.device) for part in rope)
    first, second = states.chunk(2, -1)
    return states * cos + torch.cat((-second, first), -1) * sin
