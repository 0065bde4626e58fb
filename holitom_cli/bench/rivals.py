"""Who is timed: a method of ours, and the stock library's own `generate`, on the same pixels and prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from holitom_cli.bench import work
from holitom_cli.bench.parts import timed
from holitom_cli.clock import Clock
from holitom_cli.methods import Method
from holitom_cli.model import vision
from holitom_cli.model.decode import generate
from holitom_cli.model.prefill import Prefill, prefill
from holitom_cli.model.prompt import prompt_embeds
from holitom_cli.types import Generation, VisualTokens

if TYPE_CHECKING:
    from holitom_cli.model.loading import Model

_BEFORE = 14  # text tokens before the video, as many as the published chat template has


@dataclass(frozen=True, slots=True)
class Prompt:
    """The words around a video, as ids: timing needs no text."""

    before: list[int]
    after: list[int]


def random_prompt(model: Model, length: int, seed: int) -> Prompt:
    """A prompt with `length` tokens of text after the video; no id in it stands for a picture."""
    words = random_words(model, _BEFORE + length, seed)
    return Prompt(words[:_BEFORE], words[_BEFORE:])


def random_words(model: Model, count: int, seed: int) -> list[int]:
    """Ids of which none stands for a picture."""
    config, dice = model.checkpoint.config, torch.Generator().manual_seed(seed)
    weights = torch.ones(model.info.shape.vocab)
    weights[[config.image_token_index, config.video_token_index]] = 0
    return torch.multinomial(weights, count, replacement=True, generator=dice).tolist()


@dataclass(frozen=True, slots=True)
class Run:
    """One answer: what it took."""

    ms: Mapping[str, float]  # by stage; ttft and per token from the host's clock, the device awaited
    ids: tuple[int, ...]
    visual: int  # visual tokens that entered the language model
    tokens: tuple[int, ...]  # all tokens of the prompt in each decoder layer
    cached: tuple[int, ...]  # of which the answer sees so many
    peak_bytes: int | None = None  # on the GPU, beyond what was there before; None elsewhere

    def with_stage(self, name: str, ms: float) -> Run:
        """The same with one stage more, before the others."""
        return replace(self, ms={name: ms, **self.ms})


class Rival(Protocol):
    """Something that answers."""

    @property
    def label(self) -> str: ...

    def run(self, model: Model, pixels: Tensor, prompt: Prompt, new_tokens: int) -> Run:
        """Answer a prompt about processed frames (F, 3, H, W) with exactly `new_tokens` tokens, at least 2."""
        ...


@dataclass(frozen=True)
class Ours:
    """One of our methods."""

    label: str  # as it was asked for
    budget: float | str
    method: Method

    def run(self, model: Model, pixels: Tensor, prompt: Prompt, new_tokens: int) -> Run:
        """As `pipeline.ask` runs it, from pixels on."""
        clock, method = Clock(model.device), self.method
        before = _settle(model.device)
        began = perf_counter()
        with clock.stage("vision"):
            features = vision.encode(model, pixels, attention=method.needs_attention, keys=method.needs_keys)
        with clock.stage("compress"):
            visual = method.compress(features)
        with clock.stage("prefill"):
            state = prefilled(model, method, visual, prompt, new_tokens)
        arriving = generate(model.language_model, model.lm_head, state, Generation(new_tokens), frozenset())
        with clock.stage("sample"):
            ids = [next(arriving)]
        moments = [perf_counter()]
        for token in arriving:
            ids.append(token)
            moments.append(perf_counter())
        peak = _peak_bytes(model.device, before)
        gaps = [1000 * (later - sooner) for sooner, later in pairwise(moments)]
        times = {"ttft": 1000 * (moments[0] - began), "per token": sum(gaps) / len(gaps), "step": median(gaps)}
        layers = _by_layer(model, state, prompt)
        cached = tuple(keys.shape[2] - new_tokens for keys in state.cache.keys)
        parts = timed(model, method, len(pixels), layers, range(len(prompt.before), layers[0] - len(prompt.after)))
        return Run(clock.milliseconds() | times | parts, tuple(ids), len(visual), layers, cached, peak)


@dataclass(frozen=True)
class Stock:
    """The library's own model, every token kept."""

    label: str = "stock"

    def run(self, model: Model, pixels: Tensor, prompt: Prompt, new_tokens: int) -> Run:
        """Twice: to the first token, and to the last with its stages watched."""
        inputs, _ = stock_inputs(model, pixels, prompt), model.stock  # made before anything is timed
        clock = Clock(model.device)
        before = _settle(model.device)
        began = perf_counter()
        _generated(model, inputs, 1)
        first = 1000 * (perf_counter() - began)
        with _stages(model, clock) as steps:
            ids = _generated(model, inputs, new_tokens)
        stages = clock.milliseconds()
        ms = {
            "vision": stages["tower"] + stages["projector and pool"],
            "projector and pool": stages["projector and pool"],
            "prefill": stages["prefill"],
            "ttft": first,
            "per token": stages["decode"] / (len(steps) - 1),
        }
        visual = len(pixels) * model.checkpoint.visual_grid**2
        layers = (inputs["input_ids"].shape[1],) * model.checkpoint.depth
        return Run(ms, ids, visual, layers, layers, _peak_bytes(model.device, before))


def stock_inputs(model: Model, pixels: Tensor, prompt: Prompt) -> dict[str, Tensor]:
    """What the library's own model takes for a prompt about processed frames (F, 3, H, W)."""
    places = len(pixels) * model.checkpoint.visual_grid**2 + 1  # the newline token has one too
    video = [model.checkpoint.config.video_token_index] * places
    ids = torch.tensor([prompt.before + video + prompt.after], device=model.device)
    moved = pixels[None].to(model.device, model.dtype)
    return {"input_ids": ids, "pixel_values_videos": moved, "attention_mask": torch.ones_like(ids)}


def prefilled(model: Model, method: Method, visual: VisualTokens, prompt: Prompt, new_tokens: int) -> Prefill:
    """A prompt behind the language model, with all that a method does inside."""
    embeds, span = prompt_embeds(model, prompt.before, visual, prompt.after)
    evict = method.after_prefill if method.prunes_cache else None
    reductions = method.reductions(model.checkpoint.depth)
    return prefill(model.language_model, model.lm_head, embeds, span, reductions, room=new_tokens, evict=evict)


def _by_layer(model: Model, state: Prefill, prompt: Prompt) -> tuple[int, ...]:
    """Tokens of the prompt in each decoder layer."""
    tokens = [int(state.next_position[0])] * model.checkpoint.depth
    for layer, rows in state.inside:
        tokens[layer:] = [rows + len(prompt.before) + len(prompt.after)] * (len(tokens) - layer)
    return tuple(tokens)


# --- the stock library, watched ------------------------------------------------------------------


@contextmanager
def _stages(model: Model, clock: Clock) -> Iterator[list[str]]:
    """Time the library's stages: each lasts until the next one begins, the last one until the end.

    Gives the passes through the language model, of which the first is the prefill.
    """
    passes: list[str] = []
    with ExitStack() as hooks, ExitStack() as running:

        def begin(name: str) -> None:
            running.close()
            running.enter_context(clock.stage(name))

        def language(*_: object) -> None:
            passes.append("decode" if passes else "prefill")
            if len(passes) <= 2:
                begin(passes[-1])

        parts = model.stock.model
        watched: list[tuple[Any, Callable[..., None]]] = [
            (parts.vision_tower, lambda *_: begin("tower")),
            (parts.multi_modal_projector, lambda *_: begin("projector and pool")),
            (parts.language_model, language),
        ]
        for module, hook in watched:
            hooks.callback(module.register_forward_pre_hook(hook).remove)
        yield passes


def _generated(model: Model, inputs: Mapping[str, Tensor], new_tokens: int) -> tuple[int, ...]:
    """Greedy decoding of exactly so many tokens."""
    output: Any = model.stock.generate(
        **inputs,
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=model.info.shape.vocab,  # an id that never comes
        pad_token_id=0,
        temperature=None,
        top_p=None,
        top_k=None,
        repetition_penalty=1.0,
    )
    return tuple(output[0, inputs["input_ids"].shape[1] :].tolist())  # waits for the device


# --- the device's memory -----------------------------------------------------------------------


def _settle(device: torch.device) -> int:
    """Wait until a GPU has nothing left to do, and forget its peak; returns the bytes that are in use."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak_bytes(device: torch.device, before: int) -> int | None:
    return torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else None


def cache_bytes(model: Model, run: Run, new_tokens: int) -> int:
    """Keys and values of a run's prompt and answer."""
    return sum(work.cache_bytes(model, tokens + new_tokens) for tokens in run.cached)
