"""The order of the stages: a video is watched once, then asked any number of questions."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from holitom_cli import account, methods, video
from holitom_cli.account import Spoken
from holitom_cli.clock import Clock
from holitom_cli.errors import UsageError, VideoError
from holitom_cli.methods import Method
from holitom_cli.model import preprocess, vision
from holitom_cli.model.choices import choice_probabilities, encode_choices
from holitom_cli.model.decode import generate
from holitom_cli.model.device import memory_advice
from holitom_cli.model.prefill import Prefill, prefill
from holitom_cli.model.prompt import Turn, embeds_around
from holitom_cli.types import (
    Added,
    Answer,
    Choice,
    Frames,
    Generation,
    Sampling,
    Seen,
    VideoInfo,
    VisualTokens,
    Watched,
)

if TYPE_CHECKING:
    from torch import Tensor

    from holitom_cli.model.kept import Kept
    from holitom_cli.model.loading import Checkpoint, Model
    from holitom_cli.video.client import Decoder

SMALLER = "Use fewer --num-frames, a smaller --retain-ratio, --quantize int8, --device-map auto or a smaller --model."
ANSWER_ROOM = 64  # positions that a prompt has to leave for its answer


def watch(
    model: Model,
    path_or_frames: str | Path | Frames,
    *,
    method: str | Method = "holitom",
    num_frames: int = 32,
    sampling: Sampling | None = None,
    chunk_frames: int = vision.CHUNK_FRAMES,
    **settings: Any,
) -> Watched:
    """Decode a video, encode its frames and compress their tokens.

    Args:
        model: from `load_model`.
        path_or_frames: a video file, or frames that are decoded already.
        method: a method's name, or a method.
        num_frames: how many frames to sample, uniformly (fewer if the clip is shorter).
        sampling: another way of sampling, instead.
        chunk_frames: frames in the vision tower at a time; fewer take less memory.
        settings: of the method.

    Raises:
        HolitomError: the file, the settings, the model's positions or the GPU's memory do not allow it.
    """
    chosen = methods.get(method, **settings) if isinstance(method, str) else methods.change(method, **settings)
    chosen.reductions(model.checkpoint.depth)
    # 1. Frames, once it is sure that their tokens will fit.
    frames = path_or_frames
    if not isinstance(frames, Frames):
        wish = sampling or Sampling(num_frames=num_frames)
        frames = read(model.checkpoint, model.device, frames, wish, [chosen])
    check_room(model.checkpoint, chosen, len(frames))  # here already: the tower may take long
    wanted = {"attention": chosen.needs_attention, "keys": chosen.needs_keys}
    return compress(model, see(model, frames, **wanted, chunk_frames=chunk_frames), chosen)


def read(
    checkpoint: Checkpoint,
    device: torch.device,
    path: str | Path,
    sampling: Sampling,
    rivals: Sequence[Method],
    *,
    timeout_seconds: float | None = None,
    decoder: Decoder = "auto",
    on_frame: Callable[[int, int], None] | None = None,
) -> Frames:
    """Decode the frames that `sampling` picks, each resized for the checkpoint as soon as it is there.

    Args:
        checkpoint: whose preprocessor says the size.
        device: where pictures are resized.
        path: a video file.
        sampling: which frames.
        rivals: the methods that will compress them.
        timeout_seconds: how long a decoder may take; by default it grows with the clip.
        decoder: the only one to use; by default av, and decord where it is exact when av fails.
        on_frame: hears after each frame how many there are, and of how many.

    Raises:
        HolitomError: the file cannot be read, or its frames do not fit the model's positions with one of the methods.
    """

    def accept(_: VideoInfo, count: int) -> None:
        for method in rivals:
            check_room(checkpoint, method, count)

    shrink = preprocess.shrinker(checkpoint.preprocessor, device)
    return video.read(
        path,
        sampling,
        timeout_seconds=timeout_seconds,
        decoder=decoder,
        accept=accept,
        shrink=shrink,
        on_frame=on_frame,
    )


def see(
    model: Model, frames: Frames, *, attention: bool, keys: bool = False, chunk_frames: int = vision.CHUNK_FRAMES
) -> Seen:
    """Encode a video's frames, for one method or several.

    Args:
        model: from `load_model`.
        frames: decoded.
        attention: whether one of the methods needs the attention that patches receive.
        keys: whether one of them needs the tower's keys.
        chunk_frames: frames in the tower at a time.

    Raises:
        HolitomError: there is no frame, or the GPU's memory is full.
    """
    if not len(frames):
        raise VideoError("There is no frame to look at.", "Give at least one.")
    forget_peak(model)
    clock = Clock(model.device)
    with torch.inference_mode(), _memory_advice(model):
        # 2. Pixels.
        with clock.stage("preprocess"):
            pixels = preprocess.prepare(model.preprocessor, frames, model.device)
        # 3. Tower, projector, pool.
        with clock.stage("vision"):
            features = vision.encode(model, pixels, attention=attention, keys=keys, chunk_frames=chunk_frames)
    return Seen(frames, features, clock)


def forget_peak(model: Model) -> None:
    """Measure the GPU's peak memory from here on, for the next of several methods."""
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)


def compress(model: Model, seen: Seen, method: Method) -> Watched:
    """Compress an encoded video; `seen` stays as it is and can be compressed again.

    Raises:
        HolitomError: the tokens do not fit the model's positions, or the GPU's memory is full.
    """
    check_room(model.checkpoint, method, len(seen.frames))
    clock = seen.clock.branch()
    # 4. Compression.
    with torch.inference_mode(), _memory_advice(model), clock.stage("compress"):
        visual = method.compress(seen.features)
    return Watched(seen.frames, visual, method, clock)


def ask(
    model: Model,
    watched: Watched,
    question: str,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    on_text: Callable[[str], None] | None = None,
    turns: Sequence[Turn] = (),
    kept: Kept | None = None,
    added: Sequence[Added] = (),
) -> Answer:
    """Ask one question about a watched video.

    Args:
        model: the model that watched it.
        watched: from `watch`.
        question: in words.
        max_new_tokens: the longest answer.
        temperature: 0 is greedy.
        top_p: sample from the likeliest tokens that together have this probability.
        seed: of the sampling.
        on_text: called with each piece of the answer as it is made.
        turns: what has been asked and answered about the video before.
        kept: of earlier questions about it, so that what they share with this one is not computed again.
        added: further videos, watched with the same method, in the order of their turns.

    Raises:
        HolitomError: the question, the settings, the model's positions or the GPU's memory do not allow it.
    """
    generation = Generation(max_new_tokens, temperature, top_p, seed)
    begun = begin(model, watched, question, generation, turns=turns, kept=kept, added=added)
    # 7. The answer, token by token.
    with torch.inference_mode(), _memory_advice(model):
        spoken = _speak(model, begun.state, begun.generation, begun.clock, on_text)
    # 8. The account.
    return conclude(model, begun, spoken)


def tell_times(watched: Watched) -> Watched:
    """The same, with a sentence before every question: how long the clip is, and when its frames are shown."""
    frames = watched.frames
    length = frames.video.duration_seconds if frames.video else float(frames.seconds[-1])
    times = ", ".join(f"{seconds:.1f}" for seconds in frames.seconds)
    sentence = f"The video is {length:.1f} seconds long, and you see what it shows at these seconds: {times}."
    return replace(watched, context=f"{watched.context}\n{sentence}".strip())


def tell_subtitles(watched: Watched, lines: Sequence[tuple[float, float, str]]) -> Watched:
    """The same, with those lines (start and end in seconds, words) before every question that its frames span."""
    first, last = float(watched.frames.seconds[0]), float(watched.frames.seconds[-1])
    inside = [f"[{start:.1f} s] {text}" for start, end, text in lines if start <= last and end >= first]
    if not inside:
        return watched
    words = "\n".join(["What is said in the video, and when:", *inside])
    return replace(watched, context=f"{watched.context}\n{words}".strip())


@dataclass(frozen=True, slots=True, eq=False)
class Begun:
    """A question behind its prefill: what is left to do is its answer."""

    watched: Watched
    question: str
    generation: Generation  # no longer than the model's positions allow
    state: Prefill
    clock: Clock  # stage prefill
    added: tuple[Added, ...] = ()


def begin(
    model: Model,
    watched: Watched,
    question: str,
    generation: Generation,
    *,
    turns: Sequence[Turn] = (),
    kept: Kept | None = None,
    added: Sequence[Added] = (),
    system: str = "",
) -> Begun:
    """Run a question's prompt through the model, up to the logits of the answer's first token.

    Args:
        model: as of `ask`.
        watched: as of `ask`.
        question: as of `ask`.
        generation: how its answer will be made.
        turns: as of `ask`.
        kept: as of `ask`; what is returned is of use until it is used again.
        added: as of `ask`.
        system: a message that stands before everything else, where the chat template has a place for one.

    Raises:
        HolitomError: as `ask`; the template has none.
    """
    generation = check_generation(generation)
    clock = Clock(model.device)
    with torch.inference_mode(), _memory_advice(model):
        # 5. The prompt.
        embeds, spans = _prompt(model, watched, question, turns=turns, added=added, system=system)
        left = model.checkpoint.max_positions - len(embeds)
        generation = replace(generation, max_new_tokens=min(generation.max_new_tokens, left))
        # 6. The language model, with merges inside.
        state = _prefill(model, watched, embeds, spans, clock, room=generation.max_new_tokens, kept=kept)
    return Begun(watched, question, generation, state, clock, tuple(added))


def conclude(model: Model, begun: Begun, spoken: Spoken) -> Answer:
    """The answer to a question that was begun, from what the model said; its clock has a stage sample by now."""
    about = begun.watched, begun.question, begun.generation, begun.state, spoken, begun.clock
    return account.answer(model, *about, added=begun.added)


def choose(model: Model, watched: Watched, question: str, choices: Sequence[str]) -> Answer:
    """Let the model choose among given answers; nothing is generated.

    Args:
        model: the model that watched the video.
        watched: from `watch`.
        question: in words.
        choices: two answers or more.

    Returns:
        An answer whose text is the likeliest choice, with the probability of each in `choices`.

    Raises:
        HolitomError: the question, the choices, the model's positions or the GPU's memory do not allow it.
    """
    options = encode_choices(model.chat, choices)
    clock = Clock(model.device)
    with torch.inference_mode(), _memory_advice(model):
        embeds, spans = _prompt(model, watched, question, options.room)
        state = _prefill(model, watched, embeds, spans, clock, room=options.room)
        with clock.stage("sample"):
            shares = choice_probabilities(model, state, options)
    spoken = Spoken((), 0.0, tuple(map(Choice, options.texts, shares)))
    return account.answer(model, watched, question, Generation(), state, spoken, clock)


def check_room(checkpoint: Checkpoint, method: Method, frames: int, text_tokens: int = 0) -> None:
    """Refuse a prompt that would go beyond the positions that the model was trained for.

    Raises:
        UsageError: it would; names the largest number of frames that fits.
    """
    patches = checkpoint.visual_grid**2

    def needed(count: int) -> int:
        return method.most_tokens(count, patches) + 1 + text_tokens + ANSWER_ROOM

    if needed(frames) <= checkpoint.max_positions:
        return
    largest = bisect_right(range(frames), checkpoint.max_positions, key=needed) - 1
    name = methods.name_of(method)
    raise UsageError(
        f"{frames} frames need up to {needed(frames):,} positions with method {name}, but the model has "
        f"{checkpoint.max_positions:,}.",
        f"Use --num-frames {largest} or fewer, or keep fewer tokens." if largest > 0 else "Shorten the question.",
    )


def check_generation(generation: Generation) -> Generation:
    """Refuse settings that no token can be chosen with.

    Raises:
        UsageError: a setting outside its range.
    """
    if generation.max_new_tokens < 1:
        raise UsageError(
            f"Setting max_new_tokens is {generation.max_new_tokens}, but has to be at least 1.",
            "Change --max-new-tokens.",
        )
    if not (generation.temperature >= 0 and math.isfinite(generation.temperature)):
        raise UsageError(
            f"Setting temperature is {generation.temperature}, but has to be 0 (greedy) or more.",
            "Change --temperature.",
        )
    if not 0 < generation.top_p <= 1:
        raise UsageError(
            f"Setting top_p is {generation.top_p}, but has to be above 0 and at most 1.", "Change --top-p."
        )
    return generation


def _prompt(
    model: Model,
    watched: Watched,
    question: str,
    answer_tokens: int = 0,
    turns: Sequence[Turn] = (),
    added: Sequence[Added] = (),
    system: str = "",
) -> tuple[Tensor, list[range]]:
    """The prompt (L, D) and where its clips stand, once it is sure that it and its answer fit."""
    clips = _in_order([Added(watched, 0), *added], len(turns))
    # What is said of a clip stands before the question that it came with.
    questions = [*(turn.question for turn in turns), question]
    for clip in reversed([clip for clip in clips if clip.watched.context]):
        questions[clip.turn] = f"{clip.watched.context}\n{questions[clip.turn]}"
    told = [Turn(text, turn.answer) for text, turn in zip(questions, turns, strict=False)]
    texts = model.chat.encode_around([clip.turn for clip in clips], questions[-1], told, system)
    visuals = [clip.watched.visual for clip in clips]
    needed = sum(map(len, texts)) + max(0, answer_tokens - ANSWER_ROOM) + visual_places(visuals[:-1])
    try:
        check_room(model.checkpoint, watched.method, len(clips[-1].watched.frames), needed)
    except UsageError as error:
        raise UsageError(error.message, "Forget the turns so far (in a chat: /new).") if turns else error from None
    return embeds_around(visuals, model, texts)


def _in_order(clips: list[Added], turns: int) -> list[Added]:
    """The clips of a conversation, once it is sure that one prompt can have them."""
    places = [clip.turn for clip in clips]
    if places != sorted(places) or places[-1] > turns:
        raise ValueError(f"clips stand in turns {places}, expected them in order and up to {turns}")
    if any(clip.watched.method != clips[0].watched.method for clip in clips):
        raise UsageError("The clips were compressed by different methods.", "Watch all of them with the same one.")
    return clips


def visual_places(clips: Sequence[VisualTokens]) -> int:
    """Positions of a prompt that clips take, their newline tokens included."""
    return sum(map(len, clips)) + len(clips)


def _prefill(
    model: Model,
    watched: Watched,
    embeds: Tensor,
    spans: Sequence[range],
    clock: Clock,
    *,
    room: int,
    kept: Kept | None = None,
) -> Prefill:
    reductions = watched.method.reductions(model.checkpoint.depth)
    evict = watched.method.after_prefill if watched.method.prunes_cache else None
    span = range(spans[0].start, spans[-1].stop)
    gaps = [range(left.stop, right.start) for left, right in pairwise(spans)]
    options: dict[str, Any] = {"gaps": gaps, "room": room, "evict": evict, "kept": kept}
    with clock.stage("prefill"):
        return prefill(model.language_model, model.lm_head, embeds, span, reductions, **options)


def _speak(
    model: Model, state: Prefill, generation: Generation, clock: Clock, on_text: Callable[[str], None] | None
) -> Spoken:
    """Generate the answer and hand out its text as it is made."""
    ids: list[int] = []
    arriving = generate(model.language_model, model.lm_head, state, generation, model.chat.end_ids)
    started = perf_counter()

    def listen() -> Iterator[int]:
        nonlocal started
        with clock.stage("sample"):
            ids.append(next(arriving))
        started = perf_counter()
        yield ids[0]
        for token in arriving:
            ids.append(token)
            yield token

    say = on_text or (lambda _: None)
    shown = ""
    for piece in model.chat.stream(listen()):
        shown += piece
        say(piece)
    seconds = perf_counter() - started
    if rest := model.chat.decode(ids).removeprefix(shown):  # a character that never became whole
        say(rest)
    return Spoken(tuple(ids), seconds)


def _memory_advice(model: Model) -> AbstractContextManager[None]:
    return memory_advice(model.info.device_name, "for this question", SMALLER)
