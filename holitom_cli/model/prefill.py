"""Run a prompt through the decoder layers, merging visual tokens between them where a method asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from holitom_cli.model.attention import attention_to_span, causal_mask
from holitom_cli.model.cache import StaticCache
from holitom_cli.model.kept import Kept
from holitom_cli.model.layers import decoder_layer
from holitom_cli.types import CacheView, LayerView, Reduction


@dataclass(frozen=True, slots=True, eq=False)
class Prefill:
    """The state behind a prompt of L tokens, of which S are left after the last reduction."""

    logits: Tensor  # (B, V) of the last prompt token
    hidden: Tensor  # (B, S, D) states leaving the last layer, before the final norm
    positions: Tensor  # (B, S) int64 original positions of the tokens that are left
    next_position: Tensor  # (B,) int64, L: where generation goes on
    cache: StaticCache
    into: Tensor  # (n,) int64 the row of the visual span that each of its rows ended in, -1 = dropped
    inside: tuple[tuple[int, int], ...]  # (layer, rows of the visual span from that layer on)
    cached: tuple[int, ...] = ()  # rows of the visual span left in each layer's cache; empty where all are


Evict = Callable[[Sequence[CacheView]], Sequence[Tensor]]
_LAST_ROW = Reduction(lambda view: (view.hidden, view.attention))  # what it wants to see is all that is looked at
_EVERY_ROW = replace(_LAST_ROW, rows="all")


@torch.inference_mode()
def prefill(
    language_model: Any,
    lm_head: Any,
    embeds: Tensor,
    span: range | slice,
    reductions: Mapping[int, Reduction],
    *,
    room: int = 0,
    evict: Evict | None = None,
    kept: Kept | None = None,
) -> Prefill:
    """Run a prompt through the language model, with merges inside.

    The decoder layers have the library's own weights. The loop over them, the positions and the cache are ours: the
    library keeps one length and one mask for all layers, which is wrong behind a reduction. Reduced tokens keep their
    original positions, and generation goes on at L.

    Args:
        language_model: a Qwen2 decoder (`layers`, `norm`, `rotary_emb`); no tokenizer is needed.
        lm_head: makes logits of hidden states.
        embeds: (L, D) or (1, L, D) prompt embeddings.
        span: where the visual tokens and their newline token stand in the prompt.
        reductions: {layer: what to merge just before it}.
        room: how many tokens to leave space for in the cache.
        evict: says which rows of the visual span, ascending, each layer's cache keeps.
        kept: of an earlier prompt with the same reductions. Only what is new runs through the layers before them, and
            is kept for the next prompt. Not with `evict`, which needs to see every layer.
    """
    layers = language_model.layers
    if absent := sorted(set(reductions) - set(range(len(layers)))):
        raise ValueError(f"a reduction before layer {absent[0]}, but the language model has {len(layers)} layers")
    cache = StaticCache(len(layers), room)
    prompt = _Prompt.start(language_model, embeds if embeds.dim() == 3 else embeds[None], range(span.start, span.stop))
    entering, watched, first = prompt.hidden, _Watched([], []), 0
    if kept:
        if evict:
            raise ValueError("a cache that is pruned behind the prompt cannot be kept")
        prompt.hidden, entering = kept.read(language_model, entering, prompt.rope, prompt.span, cache)
        first = kept.split
    for index, layer in enumerate(layers[first:], first):
        if reduction := reductions.get(index):
            seen = _look(layers, index, reduction, prompt, entering, cache)
            prompt.reduce(index, *reduction.apply(LayerView(prompt.visual, seen, len(prompt.into))))
        entering = prompt.hidden
        mask = causal_mask(language_model.config, entering)
        prompt.hidden = decoder_layer(layer, entering, prompt.rope, mask, cache)
        if evict:
            watched.look(layer, entering, prompt, cache.keys[index])
    logits = lm_head(language_model.norm(prompt.hidden[:, -1])).to(embeds.device)
    following = torch.full((len(prompt.hidden),), embeds.shape[-2], device=embeds.device)
    cached = watched.prune(cache, evict) if evict else ()
    return Prefill(logits, prompt.hidden, prompt.positions, following, cache, prompt.into, tuple(prompt.inside), cached)


def _look(
    layers: Any, index: int, reduction: Reduction, prompt: _Prompt, entering: Tensor, cache: StaticCache
) -> Tensor:
    """The attention that a reduction before layer `index` asked to see."""
    if reduction.layer == "this":
        return attention_to_span(layers[index], prompt.hidden, prompt.rope, None, reduction, prompt.span)
    if index == 0:
        raise ValueError("a reduction before layer 0 cannot look at the layer before")
    keys = cache.keys[index - 1][:, :, : prompt.hidden.shape[1]]
    seen = attention_to_span(layers[index - 1], entering, prompt.rope, keys, reduction, prompt.span)
    return seen.to(prompt.hidden.device)


class _Watched(NamedTuple):
    """What is known of each layer's cache until it is pruned."""

    views: list[CacheView]
    places: list[tuple[range, int]]  # the visual span in it, and the prompt's length

    def look(self, layer: Any, entering: Tensor, prompt: _Prompt, keys: Tensor) -> None:
        length, span = entering.shape[1], prompt.span
        known = layer, entering, prompt.rope, keys[:, :, :length]
        text = attention_to_span(*known, _LAST_ROW, range(span.stop, length))[0]
        self.views.append(CacheView(attention_to_span(*known, _EVERY_ROW, span), text))
        self.places.append((span, length))

    def prune(self, cache: StaticCache, evict: Evict) -> tuple[int, ...]:
        """Keep what the method says, and all of the text."""
        kept = evict(self.views)
        for index, (rows, (span, length)) in enumerate(zip(kept, self.places, strict=True)):
            everything = torch.arange(length, device=rows.device)
            cache.keep(index, torch.cat((everything[: span.start], span.start + rows, everything[span.stop :])))
        return tuple(map(len, kept))


@dataclass(slots=True, eq=False)
class _Prompt:
    """The sequence on its way through the layers."""

    hidden: Tensor  # (B, S, D)
    positions: Tensor  # (B, S)
    rope: tuple[Tensor, Tensor]  # cosines and sines (B, S, d)
    span: range
    rows: Tensor  # (m,) original span row of each visual row that is left
    into: Tensor  # (n,) original span row that each original row has gone to, -1 = dropped
    inside: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def start(cls, language_model: Any, hidden: Tensor, span: range) -> _Prompt:
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        rows = torch.arange(len(span), device=hidden.device)
        cos, sin = language_model.rotary_emb(hidden, positions)
        return cls(hidden, positions, (cos.to(hidden.device), sin.to(hidden.device)), span, rows, rows)

    @property
    def visual(self) -> Tensor:
        """States of the visual span (m, D)."""
        return self.hidden[0, self.span.start : self.span.stop]

    def reduce(self, layer: int, states: Tensor, into: Tensor) -> None:
        """Put the kept states (M, D) in the span's place; into (m,) names the kept row that each row went to."""
        before, after = self.span.start, self.span.stop
        # Positions and the account stay on the device of the prompt, wherever the layers are.
        into = into.to(self.positions.device)
        here = torch.arange(len(into), device=into.device)
        stay = (into == here).to(torch.uint8).argsort(descending=True, stable=True)[: len(states)]
        everything = torch.arange(self.positions.shape[1], device=into.device)
        left = torch.cat((everything[:before], before + stay, everything[after:]))
        self.hidden = torch.cat((self.hidden[:, :before], states[None], self.hidden[:, after:]), 1)
        self.positions = self.positions[:, left]
        self.rope = (self.rope[0][:, left], self.rope[1][:, left])
        # Original row -> row entering this layer -> row leaving it, named by its original row.
        moved = torch.where(into < 0, -1, self.rows[into.clamp_min(0)])
        slot = torch.zeros_like(self.into).scatter_(0, self.rows, here)
        self.into = torch.where(self.into < 0, -1, moved[slot[self.into.clamp_min(0)]])
        self.rows = self.rows[stay]
        self.span = range(before, before + len(states))
        self.inside.append((layer, len(states)))
