"""A small random language model, and the slow way through it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from holitom_cli.types import LayerView, Reduction

DEPTH = 5
VOCAB = 97


@lru_cache
def small_qwen2(heads: int = 4, kv_heads: int = 2) -> Any:
    """A float32 Qwen2 with every bias and norm off its neutral value."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=12 * heads,
        intermediate_size=80,
        num_hidden_layers=DEPTH,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
    )
    model: Any = Qwen2ForCausalLM(config).eval()
    stream = torch.Generator().manual_seed(heads)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=stream)
            neutral = float("norm" in name)
            spread = 0.2 if noise.ndim == 1 else 1.5 / noise.shape[-1] ** 0.5
            parameter.copy_(neutral + spread * noise)
    return model


def random_prompt(model: Any, length: int, seed: int = 0) -> Tensor:
    """Embeddings (L, D)."""
    return torch.randn(length, model.config.hidden_size, generator=torch.Generator().manual_seed(seed))


class Slow(NamedTuple):
    """What recomputing everything gives."""

    logits: Tensor  # (1 + appended, V)
    hidden: Tensor  # (S, D) of the prompt behind the last layer
    positions: list[int]  # of the prompt's rows that are left
    into: list[int]
    inside: list[tuple[int, int]]


@torch.inference_mode()
def recompute(
    model: Any,
    embeds: Tensor,
    visual: Sequence[int],
    reductions: Mapping[int, Reduction],
    appended: list[int],
    *,
    renumber: bool = False,
) -> Slow:
    """Prompt, with visual tokens in some places, and appended tokens in one go: eager attention matrices, no cache.

    With `renumber` positions close ranks behind a reduction, which is wrong.
    """
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    hidden = torch.cat((embeds, model.model.embed_tokens(torch.tensor(appended, dtype=torch.int64))))
    positions = list(range(len(hidden)))
    places, names, where, inside = list(visual), list(range(len(visual))), list(range(len(visual))), []
    before = torch.empty(0)
    for index, layer in enumerate(model.model.layers):
        if reduction := reductions.get(index):
            weights = before if reduction.layer == "before" else _layer(model, layer, hidden, positions)[1]
            view = LayerView(hidden[places], _seen(weights, reduction, places, len(appended)))
            states, into = reduction.apply(view)
            kept = [row for row in range(len(places)) if into[row] == row]
            state_of = {places[row]: state for row, state in zip(kept, states, strict=True)}
            left = [place for place in range(len(hidden)) if place in state_of or place not in places]
            hidden = torch.stack([state_of.get(place, hidden[place]) for place in left])
            positions = list(range(len(left))) if renumber else [positions[place] for place in left]
            where = [-1 if name < 0 else _moved(names, into, name) for name in where]
            names, places = [names[row] for row in kept], [left.index(place) for place in state_of]
            inside.append((index, len(kept)))
        hidden, before = _layer(model, layer, hidden, positions)
    stop = len(hidden) - len(appended)
    logits = model.lm_head(model.model.norm(hidden[stop - 1 :]))
    return Slow(logits, hidden[:stop], positions[:stop], where, inside)


def _moved(names: list[int], into: Tensor, name: int) -> int:
    row = int(into[names.index(name)])
    return names[row] if row >= 0 else -1


def _seen(weights: Tensor, reduction: Reduction, places: list[int], appended: int) -> Tensor:
    """(heads, S, S) -> (Q, n)."""
    stop = weights.shape[1] - appended
    first = stop - 1 if reduction.rows == "last" else places[-1] + 1
    part = weights[:, first:stop, places]
    return part.mean(0) if reduction.heads == "mean" else part.amax(0)


def _layer(model: Any, layer: Any, hidden: Tensor, positions: list[int]) -> tuple[Tensor, Tensor]:
    """States (S, D) leaving a layer, and its attention probabilities (heads, S, S)."""
    weights: list[Tensor] = []
    hook = layer.self_attn.register_forward_hook(lambda _module, _args, out: weights.append(out[1][0]))
    rope = model.model.rotary_emb(hidden[None], torch.tensor([positions]))
    mask = torch.full((len(hidden), len(hidden)), -torch.inf).triu(1)[None, None]
    leaving = layer(hidden[None], attention_mask=mask, position_embeddings=rope)[0]
    hook.remove()
    return leaving, weights[0]
