"""From options to a model in memory and its way of watching: what `ask` and `batch` have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from holitom_cli.cli.console import Talk, write
from holitom_cli.cli.options import CacheOptions, ContextOptions, ModelOptions, VideoOptions
from holitom_cli.errors import UsageError, reason
from holitom_cli.report.text import budget, size
from holitom_cli.types import AnswerRecord

if TYPE_CHECKING:
    import torch

    from holitom_cli.cache import Cache
    from holitom_cli.methods import Method
    from holitom_cli.methods.tools.variants import Variant
    from holitom_cli.model.hub import Download, Source
    from holitom_cli.model.loading import Checkpoint, Model
    from holitom_cli.types import Frames, Sampling, VisualTokens, Watched

A = TypeVar("A", bound=AnswerRecord)
_LOOK_SECONDS = 0.2
_SMALL = 50_000_000  # parameters
_EXAMPLE = 'As in: -q "What happens?"'


def find_checkpoint(options: ModelOptions, method: Method, talk: Talk) -> Checkpoint:
    """Locate the checkpoint, downloading it if the user agrees, and check that the method fits its depth."""
    if options.device_map not in (None, "auto"):
        raise UsageError(f"--device-map {options.device_map!r} is not known.", "Use --device-map auto.")
    if options.device_map and options.device != "auto":
        raise UsageError("Option --device-map chooses the devices itself.", "Leave --device out, or --device-map.")
    from holitom_cli.model.device import choose_device, choose_dtype
    from holitom_cli.model.loading import read_checkpoint
    from holitom_cli.model.quantise import check_quantize

    check_quantize(options.quantize, spread=options.device_map is not None)
    device = choose_device(options.device)
    choose_dtype(options.dtype, device)  # a wrong one is told before anything is downloaded
    checkpoint = read_checkpoint(_source(options, device, talk))
    method.reductions(checkpoint.depth)
    return checkpoint


def fitting(variants: Sequence[Variant], depth: int, talk: Talk) -> list[Variant]:
    """Variants that a language model of `depth` layers can run; it is said which of `all` are left out.

    Raises:
        MethodError: one that was asked for by name does not fit.
    """
    from holitom_cli.methods.tools.variants import reachable

    found, left_out = reachable(variants, depth)
    for variant in left_out:
        say_left_out(variant, talk)
    return found


def say_left_out(variant: Variant, talk: Talk) -> None:
    """Tell of one that was asked for with all others, and cannot run."""
    talk.say(f"Left out: {variant.label} at {budget(variant.budget)}: it cannot keep so few.")


def load(options: ModelOptions, checkpoint: Checkpoint, talk: Talk) -> Model:
    """Read the weights."""
    from holitom_cli.model import loading

    with talk.busy(f"Loading {checkpoint.source.id}"):
        spread = "auto" if options.device_map else None
        model = loading.load(checkpoint, options.device, options.dtype, spread, options.quantize)
    spare_threads(model)
    return model


def spare_threads(model: Model) -> None:
    """Let a small model on a CPU compute in one thread: several gain little, and wait for long where cores are busy."""
    import torch

    if model.device.type == "cpu" and model.info.parameters < _SMALL:
        torch.set_num_threads(1)


def frames(file: str, options: VideoOptions, talk: Talk) -> Frames:
    """Decode the sampled frames."""
    from holitom_cli import video

    with talk.busy(f"Reading up to {options.num_frames} frames"):
        return video.read(file, options.num_frames, timeout_seconds=options.decode_timeout)


def load_and_read(
    options: ModelOptions,
    checkpoint: Checkpoint,
    rivals: Sequence[Method],
    file: str,
    sampling: Sampling,
    timeout_seconds: float | None,
    talk: Talk,
) -> tuple[Model, Frames]:
    """Read the weights, and the frames at the same time: the decoder works in another process."""
    from concurrent.futures import ThreadPoolExecutor, wait

    from holitom_cli import pipeline
    from holitom_cli.model.device import choose_device
    from holitom_cli.video import stop_workers

    count = (0, 0)

    def listen(done: int, total: int) -> None:
        nonlocal count
        count = done, total

    def read() -> Frames:
        device = choose_device(options.device)
        return pipeline.read(
            checkpoint, device, file, sampling, rivals, timeout_seconds=timeout_seconds, on_frame=listen
        )

    with ThreadPoolExecutor(1) as beside:
        reading = beside.submit(read)
        try:
            model = load(options, checkpoint, talk)
        except BaseException:
            stop_workers()  # else the executor would wait for the frames
            raise
        with talk.counting("Reading frames") as show:
            while wait([reading], timeout=_LOOK_SECONDS).not_done:
                show(*count)
            return model, reading.result()


def watch(model: Model, frames: Frames, method: Method, talk: Talk) -> Watched:
    """Encode and compress decoded frames."""
    from holitom_cli import pipeline

    with talk.busy("Watching"):
        return pipeline.watch(model, frames, method=method)


def tell(watched: Watched, lines: Sequence[tuple[float, float, str]], told: ContextOptions) -> Watched:
    """The same, with what the model is told of a clip besides the question."""
    from holitom_cli import pipeline

    timed = pipeline.tell_times(watched) if told.time_instruction else watched
    return pipeline.tell_subtitles(timed, lines)


def answered(ask: Callable[..., A], talk: Talk, *, aloud: bool) -> A:
    """The answer of what is called with `on_text`; aloud it is written as it comes, and so far as it came."""
    said = False
    with talk.busy("Answering") as done:

        def show(piece: str) -> None:
            nonlocal said
            done()
            said = True
            write(piece)

        try:
            answer = ask(on_text=show if aloud else None)
        except KeyboardInterrupt:
            if said:
                write("\n")
            raise
    if aloud:
        write("\n")
    return answer


def subtitle_lines(file: str, source: str | None, options: VideoOptions) -> list[tuple[float, float, str]]:
    """The clip's subtitles from where they were asked for; none where they were not.

    Raises:
        VideoError: there are none.
    """
    from holitom_cli.video import no_subtitles, subtitles

    if source is None:
        return []
    lines = subtitles(file, source, timeout_seconds=options.decode_timeout)
    if not lines:
        raise no_subtitles(file, source)
    return lines


@dataclass(frozen=True)
class Shelf:
    """The place in the cache for what a method makes of a clip."""

    cache: Cache
    key: str
    device: torch.device
    clip: str

    def find(self) -> tuple[Frames, VisualTokens] | None:
        return self.cache.get(self.key, self.device, self.clip)

    def keep(self, watched: Watched, talk: Talk) -> None:
        self.cache.put(self.key, watched.frames, watched.visual)
        if self.cache.trouble:
            from holitom_cli.report.terminal import warning_line

            talk.insist(warning_line(self.cache.trouble))


def shelf(
    kept: CacheOptions, clip: str, options: ModelOptions, checkpoint: Checkpoint, method: Method, sampling: Sampling
) -> Shelf | None:
    """Where what is seen is kept; None where it is not, as of a model that is spread over several devices."""
    cache = kept.open()
    if cache is None or options.device_map or Path(clip).is_dir():  # a folder's content is known by no one number
        return None
    from holitom_cli.batch.manifest import clip_identity, watched_key
    from holitom_cli.model.device import choose_device, choose_dtype

    device = choose_device(options.device)
    where = (str(choose_dtype(options.dtype, device)).removeprefix("torch."), device.type)
    key = watched_key(clip_identity(Path(clip)), checkpoint, where, method, sampling)
    return Shelf(cache, key, device, clip)


def check_room(
    checkpoint: Checkpoint, method: Method, frame_count: int, questions: Sequence[str], choices: Sequence[str] = ()
) -> None:
    """Refuse what the model cannot be asked, before a frame is decoded or a weight read."""
    from holitom_cli import pipeline
    from holitom_cli.model.choices import encode_choices

    if choices:
        encode_choices(checkpoint.chat, choices)
    for question in questions:
        before, after = checkpoint.chat.encode(question)
        pipeline.check_room(checkpoint, method, frame_count, len(before) + len(after))


def check_memory(
    options: ModelOptions,
    checkpoint: Checkpoint,
    rivals: Sequence[Method],
    frame_count: int,
    questions: Sequence[str],
    new_tokens: int,
) -> None:
    """Refuse what a GPU has too little memory for, before a frame is decoded or a weight read."""
    from holitom_cli.model import loading, memory
    from holitom_cli.model.device import choose_device

    device = choose_device(options.device)
    if options.device_map or device.type != "cuda":
        return
    text = max(sum(map(len, checkpoint.chat.encode(question))) for question in questions)
    patches = checkpoint.visual_grid**2
    task = memory.Task(
        frame_count,
        lambda frames: max(method.most_tokens(frames, patches) for method in rivals) + 1 + text,
        new_tokens,
        patches,
    )
    loading.check_memory(checkpoint, options.device, options.dtype, options.quantize, task)


def read_questions(single: str | None, several: Sequence[str] | None, file: Path | None) -> list[str]:
    """All questions, from the argument (- is stdin), the options and a file with one a line."""
    asked = [_from_stdin() if single == "-" else single] if single is not None else []
    asked += several or []
    asked += _from_file(file) if file is not None else []
    if not asked:
        raise UsageError("There is no question.", _EXAMPLE)
    for question in asked:
        check_question(question)
    return asked


def _from_stdin() -> str:
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise UsageError(f"The question on stdin cannot be read: {reason(error)}.", "Give text in UTF-8.") from error


def _from_file(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The questions in {file} cannot be read: {reason(error)}.", "Give a text file.") from error
    return [line.strip() for line in lines if line.strip()]


def check_question(question: str) -> None:
    """Refuse what is no question.

    Raises:
        UsageError: it is empty, or no text.
    """
    if not question.strip():
        raise UsageError("A question is empty.", _EXAMPLE)
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"The question {question!r} is not valid text.", "Give text in UTF-8.") from error


def fetch(model: str, revision: str | None, talk: Talk, *, yes: bool) -> Source:
    """Download a checkpoint after saying what it takes, and asking unless `yes`."""
    from holitom_cli.model import hub

    with talk.busy(f"Asking the hub about {model}"):
        plan = hub.plan_download(model, revision)
    if plan.missing_bytes:
        talk.insist(_describe(plan))
        hub.check_space(plan)
        _agree(plan, yes=yes)
    return hub.download(plan)


def _source(options: ModelOptions, device: torch.device, talk: Talk) -> Source:
    from holitom_cli.model import hub

    name, why = (options.model, "") if options.model else hub.default_model(device, options.quantize)
    if why:
        talk.say(f"Using {name}: {why}.")
    try:
        return hub.locate(name, options.revision, why)
    except hub.NotHereError:
        return fetch(name, options.revision, talk, yes=options.yes)


def _describe(plan: Download) -> str:
    kept = plan.total_bytes - plan.missing_bytes
    already = f" ({size(kept)} of it is here already)" if kept else ""
    return (
        f"{plan.id} at {plan.revision[:12]}: {size(plan.total_bytes)}{already} into {plan.place}, "
        f"where {size(plan.free_bytes)} are free."
    )


def _agree(plan: Download, *, yes: bool) -> None:
    if yes:
        return
    if not _somebody_is_there():
        raise UsageError(f"{plan.id} has to be downloaded first.", f"Run: holitom pull {plan.id} --yes")
    if not typer.confirm("Download it?", err=True):
        raise UsageError(f"{plan.id} was not downloaded.", "Give a local directory, or use --model demo.")


def _somebody_is_there() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()
