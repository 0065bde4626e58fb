"""Attention probabilities of a few query rows, from projections and cached keys: no attention matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from holitom_cli.types import Reduction


def causal_mask(config: Any, hidden: Tensor) -> Tensor | None:
    """The mask for a whole prompt (1, 1, S, S), or None where the attention kernel is causal by itself."""
    if config._attn_implementation == "sdpa":
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
    norm = layer.input_layernorm
    if keys is None:
        keys = _heads(attention.k_proj, norm(entering.to(device_of(norm))), rope, attention.head_dim)
    asking = norm(entering[:, entering.shape[1] - length + first :].to(device_of(norm)))
    queries = _heads(attention.q_proj, asking, tuple(part[:, first:] for part in rope), attention.head_dim)
    grouped = queries[0].unflatten(0, (keys.shape[1], -1)).float()  # (Hkv, group, Q, d)
    scores = grouped @ keys[0, :, None].float().transpose(-1, -2) * attention.scaling
    columns = torch.arange(scores.shape[-1], device=scores.device)
    future = columns > torch.arange(first, length, device=scores.device)[:, None]
    weights = scores.masked_fill_(future, -torch.inf).softmax(-1)[..., span.start : span.stop].flatten(0, 1)
    joined: Tensor = weights.mean(0) if reduction.heads == "mean" else weights.amax(0)
    return joined.to(entering.device)


def device_of(module: Any) -> torch.device:
    """Where a module computes: accelerate's execution device, or where its weights are."""
    hook = getattr(module, "_hf_hook", None)
    planned = getattr(hook, "execution_device", None)
    return next(module.parameters()).device if planned is None else torch.device(planned)


def _heads(projection: Any, normed: Tensor, rope: tuple[Tensor, ...], head_dim: int) -> Tensor:
    """Project and rotate: (1, S, D) -> (1, heads, S, d)."""
    states: Tensor = projection(normed.to(device_of(projection))).unflatten(-1, (-1, head_dim)).transpose(1, 2)
    cos, sin = (part[:, None].to(states.device) for part in rope)
    first, second = states.chunk(2, -1)
    return states * cos + torch.cat((-second, first), -1) * sin
