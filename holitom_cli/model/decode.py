"""Generate tokens one at a time from a prefilled cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from holitom_cli.errors import GenerationError
from holitom_cli.model.cache import StaticCache
from holitom_cli.model.prefill import Prefill
from holitom_cli.types import Generation


def decode_one_token(language_model: Any, lm_head: Any, cache: StaticCache, token: Tensor, position: Tensor) -> Tensor:
    """Append one token to every row and return the logits of what follows.

    Args:
        language_model: a Qwen2 decoder.
        lm_head: makes logits of hidden states.
        cache: keys and values of all layers; every layer grows by one.
        token: (B,) int64.
        position: (B,) int64, original positions: the prompt's full length and up.

    Returns:
        (B, V) logits.
    """
    hidden = language_model.embed_tokens(token[:, None])
    rope = language_model.rotary_emb(hidden, position[:, None])
    mask, length = None, None
    for index, layer in enumerate(language_model.layers):
        if length is None or cache.keys[index].shape[2] != length:  # layers between two reductions share a mask
            mask, length = cache.mask(index, hidden.dtype), cache.keys[index].shape[2]
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rope, past_key_values=cache)
    cache.advance()
    logits: Tensor = lm_head(language_model.norm(hidden[:, -1]))
    return logits.to(token.device)


def choose(logits: Tensor, generation: Generation, generator: torch.Generator | None) -> Tensor:
    """The next token of each row: (B, V) -> (B,) int64; -1 where the logits are not finite."""
    scores = logits.float()
    if generation.temperature == 0:
        token = scores.argmax(-1)
    else:
        shares = (scores / generation.temperature).softmax(-1).nan_to_num(0.0).clamp_min(1e-30)
        token = torch.multinomial(_nucleus(shares, generation.top_p), 1, generator=generator)[:, 0]
    return torch.where(scores.isfinite().all(-1), token, -1)


def generate(
    language_model: Any, lm_head: Any, state: Prefill, generation: Generation, end_ids: frozenset[int]
) -> Iterator[int]:
    """Yield the ids of the answer, an end token included if one came, at most `max_new_tokens` of them.

    Raises:
        GenerationError: the logits are not finite.
    """
    generator = None
    if generation.temperature > 0:
        generator = torch.Generator(state.logits.device).manual_seed(generation.seed)
    logits, position = state.logits, state.next_position
    for count in range(1, generation.max_new_tokens + 1):
        token = choose(logits, generation, generator)
        value = int(token[0])
        if value < 0:
            raise GenerationError(
                "The language model's output is not a number (NaN or infinity).",
                "Try --dtype bfloat16 or float32; if that does not help, the checkpoint's weights are damaged.",
            )
        yield value
        if value in end_ids or count == generation.max_new_tokens:
            return
        with torch.inference_mode():
            logits = decode_one_token(language_model, lm_head, state.cache, token, position)
            position = position + 1


def _nucleus(shares: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest tokens that together reach `top_p`; the first is always kept. (B, V) -> (B, V)."""
    if top_p >= 1:
        return shares
    ordered, order = shares.sort(dim=-1, descending=True)
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0)
    return torch.zeros_like(shares).scatter(-1, order, ordered)
