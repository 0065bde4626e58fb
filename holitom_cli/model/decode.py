"""Generate tokens one at a time from a prefilled cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from holitom_cli.errors import GenerationError
from holitom_cli.model.attention import device_of
from holitom_cli.model.cache import RowCache, StaticCache
from holitom_cli.model.layers import decoder_layer
from holitom_cli.model.prefill import Prefill
from holitom_cli.types import Generation


@torch.inference_mode()
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
    mask, lengths = None, None
    for index, layer in enumerate(language_model.layers):
        if cache.lengths[index] is not lengths:  # layers between two reductions share their lengths, so their mask
            mask, lengths = cache.mask(index, hidden.dtype), cache.lengths[index]
        hidden = decoder_layer(layer, hidden, rope, mask, cache)
    cache.advance()
    logits: Tensor = lm_head(language_model.norm(hidden[:, -1]))
    return logits.to(token.device)


class DecodeStep:
    """`decode_one_token` again and again: the first tokens one by one, what follows from a CUDA graph.

    Launching the kernels of a step takes the host longer than the GPU needs to run them; a graph launches them at
    once. Capturing it costs about as much as one step, so very short answers do without.
    """

    EAGER_STEPS = 3  # these also let the libraries allocate what a capture must not

    def __init__(self, language_model: Any, lm_head: Any, cache: StaticCache, position: Tensor) -> None:
        """A step that appends to `cache` and counts `position` (B,) up in place."""
        self._parts = (language_model, lm_head, cache)
        self._position = position
        self._token = torch.zeros_like(position)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0)
        self._steps = 0
        parts = [language_model.embed_tokens, *language_model.layers, lm_head]
        self._graphable = position.is_cuda and {device_of(part) for part in parts} == {position.device}

    @torch.inference_mode()
    def __call__(self, token: Tensor) -> Tensor:
        """Append the tokens (B,) and return the logits (B, V), valid until the next call."""
        self._token.copy_(token)
        self._steps += 1
        if not self._graphable or self._steps <= self.EAGER_STEPS:
            return self._run()
        with torch.cuda.device(self._position.device):  # replay uses the current device's stream
            if self._graph is None:
                self._graph = torch.cuda.CUDAGraph()
                # A stream of our own: torch's is made once, on the GPU that a process captures on first. What other
                # threads do meanwhile, as resizing the next clip's pictures, is no part of the capture.
                stream = torch.cuda.Stream()
                with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                    self._logits = self._run()
            self._graph.replay()
        return self._logits

    def _run(self) -> Tensor:
        logits = decode_one_token(*self._parts, self._token, self._position)
        self._position.add_(self._parts[2].active)
        return logits


class RowDecoder:
    """Several answers at once, each as long as it is: rows enter with their prompts and leave when they end.

    Every row has the positions and lengths of its own prompt, so its logits are those that it would have alone.
    """

    def __init__(self, language_model: Any, lm_head: Any, rows: int) -> None:
        """A decoder of at most `rows` answers at a time."""
        self._parts = (language_model, lm_head)
        self._cache = RowCache(len(language_model.layers), rows)
        self._position = torch.zeros(rows, dtype=torch.int64)  # (B,) original positions
        self._step: tuple[int, DecodeStep] | None = None
        self.free = list(range(rows - 1, -1, -1))  # rows without an answer, the next to be taken last

    @torch.inference_mode()
    def enter(self, state: Prefill) -> int:
        """Take a free row for the answer to a prompt of one row; returns which."""
        self._position = self._position.to(state.next_position.device)
        self._cache.enter(self.free[-1], state.cache)
        self._position[self.free[-1]] = state.next_position[0]
        return self.free.pop()

    @torch.inference_mode()
    def leave(self, row: int) -> None:
        """Give a row back."""
        self._cache.leave(row)
        self._position[row] = 0
        self.free.append(row)

    def step(self, token: Tensor) -> Tensor:
        """Append each row's token (B,), anything for free rows, and return the logits (B, V) until the next call."""
        if self._step is None or self._step[0] != self._cache.version:
            self._step = (self._cache.version, DecodeStep(*self._parts, self._cache, self._position))
        return self._step[1](token)


def choose(logits: Tensor, generation: Generation, generator: torch.Generator | None) -> Tensor:
    """The next token of each row: (B, V) -> (B,) int64; -1 where the logits are not finite."""
    scores = logits.float()
    if generation.temperature == 0:
        token = scores.argmax(-1)
    else:
        behind = scores - scores.amax(-1, keepdim=True)  # finite for the likeliest at the smallest temperature
        shares = (behind / max(generation.temperature, 1e-30)).softmax(-1).nan_to_num(0.0).clamp_min(1e-30)
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
    token = choose(state.logits, generation, generator)
    step: DecodeStep | None = None
    for left in reversed(range(generation.max_new_tokens)):
        # A GPU begins the next step before anybody knows whether this token was the last: asking would make it wait.
        value, following = _on_its_way(token), None
        if left and token.is_cuda and step:
            following = choose(step(token), generation, generator)
        number = value()
        if number < 0:
            raise not_a_number()
        yield number
        if number in end_ids or not left:
            return
        step = step or DecodeStep(language_model, lm_head, state.cache, state.next_position.clone())
        token = choose(step(token), generation, generator) if following is None else following


def _on_its_way(token: Tensor) -> Callable[[], int]:
    """Begin to fetch the first row's token; what it returns waits for it, and for nothing that is begun later."""
    if not token.is_cuda:
        return lambda: int(token[0])
    here = torch.empty(1, dtype=token.dtype, pin_memory=True)
    here.copy_(token[:1], non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(token.device))

    def value() -> int:
        arrived.synchronize()
        return int(here)

    return value


def not_a_number() -> GenerationError:
    """What is said of logits that are not finite."""
    return GenerationError(
        "The language model's output is not a number (NaN or infinity).",
        "Try --dtype bfloat16 or float32; if that does not help, the checkpoint's weights are damaged.",
    )


def _nucleus(shares: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest tokens that together reach `top_p`; the first is always kept. (B, V) -> (B, V)."""
    if top_p >= 1:
        return shares
    ordered, order = shares.sort(dim=-1, descending=True)
    least = max(top_p, 1e-30)  # what is smaller may be 0 in float32, and then nothing would be kept
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= least, 0)
    return torch.zeros_like(shares).scatter(-1, order, ordered)
