"""Where the tokens, the time, the memory and the arithmetic of an answer went."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal

import torch

from holitom_cli import __version__, flops, methods
from holitom_cli.types import (
    Answer,
    Choice,
    Flops,
    Frames,
    Generation,
    Memory,
    ModelShape,
    Segment,
    Timings,
    TokenCounts,
    VisualTokens,
    Watched,
)

if TYPE_CHECKING:
    from holitom_cli.clock import Clock
    from holitom_cli.methods import Method
    from holitom_cli.model.loading import Model
    from holitom_cli.model.prefill import Prefill

OUT_OF_SCOPE = (
    "The demo model was trained on generated clips of moving shapes: on other clips its answers are of no worth."
)
_PACKAGES = ("torch", "transformers", "accelerate", "av", "decord")


@dataclass(frozen=True, slots=True)
class Spoken:
    """What the language model said."""

    ids: tuple[int, ...]  # the end token included, if one came; none where it chose
    seconds: float  # from the first token to the last
    choices: tuple[Choice, ...] = ()


def answer(
    model: Model,
    watched: Watched,
    question: str,
    generation: Generation,
    state: Prefill,
    spoken: Spoken,
    clock: Clock,
) -> Answer:
    """Put together an answer and everything that made it. Waits for the device."""
    frames, visual, ids = watched.frames, watched.visual, spoken.ids
    tokens = _token_counts(visual, state, len(ids))
    source, into = visual.source, state.into.to(visual.source.device)
    inner = torch.where(source < 0, -1, into[source.clamp_min(0)])
    return Answer(
        question=question,
        text=_likeliest(spoken.choices) or model.chat.decode(ids),
        finish_reason=_finish_reason(spoken, model.chat.end_ids),
        method=methods.name_of(watched.method),
        method_settings=asdict(watched.method),  # type: ignore[call-overload]
        generation=generation,
        tokens=tokens,
        segments=_segments(frames, visual),
        timings=_timings(watched, clock, spoken),
        memory=_memory(model),
        flops=_flops(model.info.shape, tokens, watched.method),
        model=replace(model.info, preprocessor_file=model.preprocessor.file),
        frames=frames,
        visual=visual,
        inner_source=inner,
        inner_size=torch.bincount(inner[inner >= 0], minlength=len(visual) + 1),
        token_ids=ids,
        versions=versions(),
        warnings=(*frames.warnings, *_warnings(model, tokens, generation)),
        context=watched.context,
        choices=spoken.choices,
    )


def _likeliest(choices: tuple[Choice, ...]) -> str:
    return max(choices, key=lambda choice: choice.probability).text if choices else ""


def _finish_reason(spoken: Spoken, end_ids: frozenset[int]) -> Literal["stop", "length", "choice"]:
    if spoken.choices:
        return "choice"
    return "stop" if spoken.ids[-1] in end_ids else "length"


def _token_counts(visual: VisualTokens, state: Prefill, generated: int) -> TokenCounts:
    prompt = int(state.next_position[0])
    return TokenCounts(
        frames=visual.source.shape[0],
        patches_per_frame=visual.source.shape[1],
        funnel=(("sampled", visual.source.numel()), *visual.stages),
        inside=state.inside,
        text=prompt - len(visual) - 1,
        prompt=prompt,
        generated=generated,
        cached=state.cached,
    )


def _timings(watched: Watched, clock: Clock, spoken: Spoken) -> Timings:
    later = max(0, len(spoken.ids) - 1)
    stages = {**watched.frames.timings_ms, **watched.clock.milliseconds(), **clock.milliseconds()}
    return Timings(
        stages_ms=stages,
        ttft_ms=sum(stages.get(name, 0.0) for name in ("vision", "compress", "prefill", "sample")),
        tpot_ms=spoken.seconds * 1000 / later if later else None,
        time_to_answer_s=sum(stages.values()) / 1000 + spoken.seconds,
    )


def _segments(frames: Frames, visual: VisualTokens) -> tuple[Segment, ...]:
    by_frame = torch.bincount(visual.frame, minlength=len(frames)).tolist()
    return tuple(
        Segment(
            start_frame=part.start,
            stop_frame=part.stop,
            start_seconds=float(frames.seconds[part.start]),
            end_seconds=float(frames.seconds[part.stop - 1]),
            tokens=sum(by_frame[part.start : part.stop]),
        )
        for part in visual.segments
    )


def _flops(shape: ModelShape, tokens: TokenCounts, method: Method) -> Flops:
    visual = _by_layer(shape.layers, tokens.visual, tokens.inside)
    everything = _by_layer(shape.layers, tokens.visual + 1, tokens.inside)
    original = tokens.original
    return Flops(
        paper=flops.paper_prefill(shape, visual),
        paper_full=flops.paper_prefill(shape, [original] * shape.layers),
        true=flops.true_prefill(shape, [count + tokens.text for count in everything])
        + flops.true_vision(shape, tokens.frames, method.needs_attention, method.needs_keys),
        true_full=flops.true_prefill(shape, [original + 1 + tokens.text] * shape.layers)
        + flops.true_vision(shape, tokens.frames, attention=False),
    )


def _by_layer(depth: int, entering: int, inside: tuple[tuple[int, int], ...]) -> list[int]:
    """How many visual tokens each layer works on."""
    counts = [entering] * depth
    for layer, rows in inside:
        counts[layer:] = [rows] * (depth - layer)
    return counts


def _memory(model: Model) -> Memory:
    device = torch.cuda.max_memory_allocated(model.device) if model.device.type == "cuda" else None
    return Memory(device_peak_bytes=device, host_peak_bytes=_host_peak_bytes())


def _host_peak_bytes() -> int:
    try:
        import resource
    except ImportError:  # Windows
        import psutil  # type: ignore[import-untyped,unused-ignore]

        return int(psutil.Process().memory_info().peak_wset)
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _warnings(model: Model, tokens: TokenCounts, generation: Generation) -> Iterator[str]:
    if model.checkpoint.random:
        yield f"The checkpoint {model.info.id} has random weights: its answers are noise."
    elif model.info.kind == "demo":
        yield OUT_OF_SCOPE
    if not tokens.visual:
        yield "No visual token is left, so the answer knows nothing of the video; raise the share that is kept."
    if tokens.generated == generation.max_new_tokens == model.checkpoint.max_positions - tokens.prompt:
        yield f"The answer was cut off at {tokens.generated:,} tokens, where the model's positions end."


def versions() -> dict[str, str]:
    """Versions of what takes part in an answer."""
    found = {package: _version(package) for package in _PACKAGES}
    return {"holitom_cli": __version__} | {package: text for package, text in found.items() if text is not None}


@cache  # reading it takes longer than a small model's question
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
