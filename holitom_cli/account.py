"""Where the tokens, the time, the memory and the arithmetic of an answer went."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal

import torch

from holitom_cli import __version__, flops, methods
from holitom_cli.types import (
    Added,
    Answer,
    Choice,
    Flops,
    Frames,
    Generation,
    Memory,
    ModelShape,
    Segment,
    Shown,
    Timings,
    TokenCounts,
    VisualTokens,
    Watched,
)

if TYPE_CHECKING:
    from torch import Tensor

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
    added: Sequence[Added] = (),
) -> Answer:
    """Put together an answer and everything that made it. Waits for the device."""
    clips, ids = [watched, *(clip.watched for clip in added)], spoken.ids
    tokens = _token_counts([clip.visual for clip in clips], state, len(ids))
    *earlier, last = shown = _shown(clips, state.into)
    ended = torch.cat([clip.inner_source.flatten() for clip in shown])
    return Answer(
        question=question,
        text=_likeliest(spoken.choices) or model.chat.decode(ids),
        finish_reason=_finish_reason(spoken, model.chat.end_ids),
        method=methods.name_of(watched.method),
        method_settings=asdict(watched.method),  # type: ignore[call-overload]
        generation=generation,
        tokens=tokens,
        segments=last.segments,
        timings=_timings(clips, clock, spoken),
        memory=_memory(model),
        flops=_flops(model.info.shape, tokens, watched.method),
        model=replace(model.info, preprocessor_file=model.preprocessor.file),
        frames=last.frames,
        visual=last.visual,
        inner_source=last.inner_source,
        inner_size=torch.bincount(ended[ended >= 0], minlength=tokens.visual + tokens.newlines),
        token_ids=ids,
        versions=versions(),
        warnings=(*(text for clip in clips for text in clip.frames.warnings), *_warnings(model, tokens, generation)),
        context="\n".join(clip.context for clip in clips if clip.context),
        choices=spoken.choices,
        earlier=tuple(earlier),
    )


def _shown(clips: Sequence[Watched], into: Tensor) -> list[Shown]:
    """Where the tokens of each clip went; into (N+1,) names the row that each visual row of all clips ended in."""
    shown, first = [], 0
    for clip in clips:
        source = clip.visual.source
        mine = into[first : first + len(clip.visual) + 1].to(source.device)
        inner = torch.where(source < 0, -1, mine[source.clamp_min(0)])
        shown.append(Shown(clip.frames, _segments(clip.frames, clip.visual), clip.visual, inner))
        first += len(mine)
    return shown


def _likeliest(choices: tuple[Choice, ...]) -> str:
    return max(choices, key=lambda choice: choice.probability).text if choices else ""


def _finish_reason(spoken: Spoken, end_ids: frozenset[int]) -> Literal["stop", "length", "choice"]:
    if spoken.choices:
        return "choice"
    return "stop" if spoken.ids[-1] in end_ids else "length"


def _token_counts(clips: Sequence[VisualTokens], state: Prefill, generated: int) -> TokenCounts:
    prompt, frames = int(state.next_position[0]), sum(len(visual.source) for visual in clips)
    patches = clips[0].source.shape[1]
    stages = zip(*(visual.stages for visual in clips), strict=True)  # one method has the same stages for every clip
    return TokenCounts(
        frames=frames,
        patches_per_frame=patches,
        funnel=(("sampled", frames * patches), *((rows[0][0], sum(left for _, left in rows)) for rows in stages)),
        inside=state.inside,
        text=prompt - sum(map(len, clips)) - len(clips),
        prompt=prompt,
        generated=generated,
        cached=state.cached,
        newlines=len(clips),
    )


def _timings(clips: Sequence[Watched], clock: Clock, spoken: Spoken) -> Timings:
    later = max(0, len(spoken.ids) - 1)
    stages: dict[str, float] = {}
    parts = [part for clip in clips for part in (clip.frames.timings_ms, clip.clock.milliseconds())]
    for name, ms in (item for part in (*parts, clock.milliseconds()) for item in part.items()):
        stages[name] = stages.get(name, 0.0) + ms
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
    everything = _by_layer(shape.layers, tokens.visual + tokens.newlines, tokens.inside)
    original = tokens.original
    return Flops(
        paper=flops.paper_prefill(shape, visual),
        paper_full=flops.paper_prefill(shape, [original] * shape.layers),
        true=flops.true_prefill(shape, [count + tokens.text for count in everything])
        + flops.true_vision(shape, tokens.frames, method.needs_attention, method.needs_keys),
        true_full=flops.true_prefill(shape, [original + tokens.newlines + tokens.text] * shape.layers)
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
