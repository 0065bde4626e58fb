"""`ask` by a running server, where there is one that would say the same."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

from holitom_cli.cli import session
from holitom_cli.cli.options import (
    AnswerOptions,
    CacheOptions,
    ContextOptions,
    MethodOptions,
    ModelOptions,
    PictureOptions,
    RuntimeOptions,
    ServerUse,
    VideoOptions,
    is_said,
)
from holitom_cli.report.text import visible
from holitom_cli.types import AnswerRecord, Generation

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import typer

    from holitom_cli.cli.console import Talk
    from holitom_cli.serve.link import Link
    from holitom_cli.types import Sampling


@dataclass(frozen=True)
class Request:
    """What `ask` was told that a server can be told."""

    file: str
    questions: Sequence[str]
    sampling: Sampling
    video: VideoOptions
    model: ModelOptions
    method: MethodOptions
    answer: AnswerOptions


def only_here(
    told: ContextOptions,
    kept: CacheOptions,
    model: ModelOptions,
    pictures: PictureOptions,
    context: typer.Context,
    **others: bool,
) -> str:
    """An option that only this process knows what to do with; empty where there is none."""
    asked = {
        "--no-cache": kept.no_cache,
        "--cache-dir": is_said(context, "cache_dir"),
        "--device-map": model.device_map is not None,
        "--time-instruction": told.time_instruction,
        "--subtitles": told.subtitles is not None,
        "pictures": pictures != PictureOptions(),
        **{f"--{name}": given for name, given in others.items()},
    }
    return next((option for option, given in asked.items() if given), "")


def answers(
    use: ServerUse, runtime: RuntimeOptions, request: Request, context: typer.Context, talk: Talk, *, aloud: bool
) -> tuple[list[AnswerRecord], str]:
    """The answers of the first server that would say what this process does; none, and why, where there is none.

    Raises:
        BrokenOffError: a server ended in the middle of its answer.
        HolitomError: the clip cannot be read, or options exclude each other.
    """
    from holitom_cli.serve import sockets

    why = ""
    if use is ServerUse.off or not sockets.OFFERED:
        return [], why
    for path in sockets.found(runtime.folder):
        found, reason = _by(path, request, context, talk, aloud=aloud)
        if found:
            return found, ""
        why = why or reason
    return [], why


def _by(
    path: Path, request: Request, context: typer.Context, talk: Talk, *, aloud: bool
) -> tuple[list[AnswerRecord], str]:
    from holitom_cli.serve.link import Clip, ElsewhereError, Wanted, link

    model = request.model
    wanted = Wanted(model.model, model.revision, model.device, model.dtype, model.quantize)
    clip = Clip(request.file, request.sampling, request.video.decode_timeout)
    try:
        with ExitStack() as open_for_it:
            linked = open_for_it.enter_context(link(path, wanted))
            names, has_presets = linked.settings_of(request.method.method)
            method = request.method.words(context, names, has_presets=has_presets)
            sending = partial(_sending, talk)
            linked.ask(clip, method, Generation(**asdict(request.answer)), [*request.questions], sending)
            _prepare()
            return list(_heard(linked, request, talk, aloud=aloud)), ""
    except ElsewhereError as error:
        return [], f"The running server was not asked: {error}."


@contextmanager
def _sending(talk: Talk) -> Iterator[None]:
    """Around the reading of frames: a clip that the server knows needs no decoder, nor the modules that know of one."""
    from holitom_cli.video import warm_up

    warm_up()
    with talk.busy("Reading frames for the running server"):
        yield


def _prepare() -> None:
    """What can be done while the server has work to do: nobody needs a decoder any more, but what shows answers."""
    if decoders := sys.modules.get("holitom_cli.video.worker_link"):
        decoders.close_idle()
    import holitom_cli.report.terminal  # noqa: F401


def _heard(linked: Link, request: Request, talk: Talk, *, aloud: bool) -> Iterable[AnswerRecord]:
    for question in request.questions:
        if aloud and len(request.questions) > 1:
            talk.words(visible(question), "bold")
        yield session.answered(partial(linked.answer, path=request.file), talk, aloud=aloud)
