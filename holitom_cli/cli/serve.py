"""holitom serve: a model that stays in memory, behind OpenAI's HTTP interface."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holitom_cli.cli import session
from holitom_cli.cli.console import Talk
from holitom_cli.cli.guard import INTERRUPTED, end_at_once, signals_are_lent
from holitom_cli.cli.options import AnswerOptions, MethodOptions, ModelOptions, RuntimeOptions, VideoOptions, command
from holitom_cli.errors import UsageError, reason
from holitom_cli.report.terminal import warning_line
from holitom_cli.types import Generation

if TYPE_CHECKING:
    import socket

    from holitom_cli.model.loading import Model
    from holitom_cli.serve.app import Service
    from holitom_cli.serve.files import FileStore
    from holitom_cli.serve.local import Local
    from holitom_cli.serve.media import Media
    from holitom_cli.serve.wishes import Ceilings, Defaults

_LIBRARIES = ("starlette", "uvicorn", "python_multipart", "prometheus_client", "httpcore2")
_TYPICAL = "What happens?"  # stands for questions that nobody has asked yet
_REMOTE = "Give both, or none."
_SERVER, _CLIPS, _CEILINGS = "Server", "Clips of clients", "Ceilings of requests"


def _option(panel: str, name: str, help_text: str, **more: Any) -> Any:
    return typer.Option(name, help=help_text, rich_help_panel=panel, **more)


@dataclass(frozen=True)
class ServerOptions:
    """Where it listens, who may ask, and how many at a time."""

    host: Annotated[str, _option(_SERVER, "--host", "Address to listen at.")] = "127.0.0.1"
    port: Annotated[int, _option(_SERVER, "--port", "Port; 0 takes any that is free.", min=0, max=65535)] = 8000
    api_key: Annotated[
        str | None,
        _option(
            _SERVER, "--api-key", "That requests have to bring; other users of this machine see options, but not the "
            "environment.", envvar="HOLITOM_API_KEY", show_default=False,
        ),
    ] = None  # fmt: skip
    server_name: Annotated[
        list[str] | None,
        _option(_SERVER, "--server-name", "Another name that the server may be called by.", metavar="NAME"),
    ] = None
    rows: Annotated[int, _option(_SERVER, "--rows", "Answers generated together.", min=1)] = 8
    queue: Annotated[int, _option(_SERVER, "--queue", "Requests that may wait besides.", min=0)] = 64
    timeout: Annotated[float, _option(_SERVER, "--timeout", "Seconds that a request may take.", min=1)] = 120.0
    grace: Annotated[
        float, _option(_SERVER, "--grace", "Seconds for answers under way, once the server is to end.", min=0)
    ] = 10.0
    keep_bytes: Annotated[
        int, _option(_SERVER, "--keep-bytes", "Of clips and conversations kept for the next question.", min=0)
    ] = 1024**3

    def check(self) -> None:
        """Refuse what is not safe.

        Raises:
            UsageError: others can reach the address, and there is no key.
        """
        from holitom_cli.serve.gate import is_loopback

        if self.api_key is not None and not (self.api_key.strip() and self.api_key.isascii()):
            raise UsageError("The API key is empty, or not in plain letters.", "Choose a long random one.")
        if self.api_key is None and not is_loopback(self.host):
            raise UsageError(
                f"Others can reach {self.host}, so there has to be a key.", "Set HOLITOM_API_KEY, or use --api-key."
            )


@dataclass(frozen=True)
class ClipOptions:
    """What clients may name as a clip, and how much of it is kept."""

    allow_path: Annotated[
        list[Path] | None,
        _option(_CLIPS, "--allow-path", "A folder whose files file:// may name.", metavar="FOLDER"),
    ] = None
    allow_remote: Annotated[
        bool, _option(_CLIPS, "--allow-remote", "Fetch clips from public hosts, by http:// and https://.")
    ] = False
    allow_host: Annotated[
        list[str] | None,
        _option(_CLIPS, "--allow-host", "With --allow-remote: from this host, too, wherever it is.", metavar="NAME"),
    ] = None
    upload_bytes: Annotated[int, _option(_CLIPS, "--upload-bytes", "Of a clip that is sent or fetched.", min=1)] = (
        256 * 1024**2
    )
    files_bytes: Annotated[int, _option(_CLIPS, "--files-bytes", "Of all files in /v1/files.", min=0)] = 4 * 1024**3
    files_hours: Annotated[float, _option(_CLIPS, "--files-hours", "That such a file is kept.", min=0.001)] = 24.0

    def check(self) -> None:
        """Refuse what would have no effect.

        Raises:
            UsageError: hosts are named that nothing is fetched from.
        """
        if self.allow_host and not self.allow_remote:
            raise UsageError("Without --allow-remote nothing is fetched, so --allow-host has no effect.", _REMOTE)

    def build(self, folder: Path) -> tuple[Media, FileStore]:
        """What knows URLs and files of clients, with a folder of its own.

        Raises:
            UsageError: a folder that is allowed is none.
        """
        from holitom_cli.serve.files import FileRules, FileStore
        from holitom_cli.serve.media import Media, MediaRules

        files = FileStore(FileRules(folder, self.upload_bytes, self.files_bytes, self.files_hours * 3600))
        hosts = frozenset(self.allow_host or ())
        rules = MediaRules(folder, self.upload_bytes, tuple(self.allow_path or ()), self.allow_remote, hosts)
        return Media(rules, files), files


@dataclass(frozen=True)
class CeilingOptions:
    """The most that a request may ask for."""

    frames_ceiling: Annotated[int, _option(_CEILINGS, "--frames-ceiling", "Frames of a clip.", min=1)] = 128
    tokens_ceiling: Annotated[int, _option(_CEILINGS, "--tokens-ceiling", "Tokens of an answer.", min=1)] = 1024
    seconds_ceiling: Annotated[float, _option(_CEILINGS, "--seconds-ceiling", "Length of a clip.", min=1)] = 7200.0
    pixels_ceiling: Annotated[
        int, _option(_CEILINGS, "--pixels-ceiling", "Width times height of a picture.", min=1)
    ] = 36_000_000

    def build(self, defaults: Defaults) -> Ceilings:
        """The ceilings.

        Raises:
            UsageError: what is done by default is beyond them.
        """
        from holitom_cli.serve.wishes import Ceilings

        for option, default, most in (
            ("--num-frames", defaults.frames, self.frames_ceiling),
            ("--max-new-tokens", defaults.generation.max_new_tokens, self.tokens_ceiling),
        ):
            if default > most:
                raise UsageError(f"{option} {default} is above its ceiling, {most}.", f"Use a smaller {option}.")
        return Ceilings(self.frames_ceiling, self.tokens_ceiling, self.seconds_ceiling, self.pixels_ceiling)


@command(
    ServerOptions,
    ClipOptions,
    CeilingOptions,
    VideoOptions,
    ModelOptions,
    RuntimeOptions,
    MethodOptions,
    AnswerOptions,
)
def serve(
    server: ServerOptions,
    clips: ClipOptions,
    ceilings: CeilingOptions,
    video: VideoOptions,
    model: ModelOptions,
    runtime: RuntimeOptions,
    method: MethodOptions,
    answer: AnswerOptions,
    *,
    context: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", help="Nothing on stderr but errors.")] = False,
) -> None:
    """Answer questions over HTTP, as OpenAI's clients ask them, with a model that stays in memory."""
    if missing := [name for name in _LIBRARIES if find_spec(name) is None]:
        raise UsageError(
            f"The server needs the library {missing[0]}, which is not installed.",
            "Run: pip install 'holitom_cli[serve]'",
        )
    talk = Talk(quiet=quiet)
    # 1. Everything that can be wrong without reading a weight.
    server.check()
    clips.check()
    chosen = method.build(context)
    from holitom_cli.video import warm_up

    warm_up()
    from holitom_cli import pipeline
    from holitom_cli.serve.answering import Limits
    from holitom_cli.serve.app import Service
    from holitom_cli.serve.engine import Engine
    from holitom_cli.serve.local import Local
    from holitom_cli.serve.spool import private_folder
    from holitom_cli.serve.wishes import Defaults

    defaults = Defaults(chosen, pipeline.check_generation(Generation(**asdict(answer))), video.num_frames)
    most = ceilings.build(defaults)
    checkpoint = session.find_checkpoint(model, chosen, talk)
    session.check_room(checkpoint, chosen, video.num_frames, [_TYPICAL])
    session.check_memory(model, checkpoint, [chosen], video.num_frames, [_TYPICAL], answer.max_new_tokens)

    def load() -> Model:
        loaded = session.load(model, checkpoint, talk)
        talk.say(f"Ready: {loaded.info.id}.")
        return loaded

    # 2. An address, where health can be asked for from here on; the thread that will own the model loads it.
    engine = Engine(load, server.rows, server.keep_bytes)
    with private_folder() as folder, _socket(runtime, talk) as listener:
        limits = Limits(server.rows + server.queue, clips.upload_bytes, server.timeout)
        service = Service(engine, *clips.build(folder), defaults, most, limits)
        local = Local(service, listener, checkpoint.source) if listener else None
        code = _run(service, server, local, talk)
    if engine.alive:  # inside a library, and it would be torn down with it
        end_at_once(code)
    raise typer.Exit(code)


@contextmanager
def _socket(runtime: RuntimeOptions, talk: Talk) -> Iterator[socket.socket | None]:
    """The socket for `holitom ask` of the same user; None where there cannot be one, which is said."""
    from holitom_cli.serve import sockets

    listener = None
    with ExitStack() as ending:
        try:
            listener = ending.enter_context(sockets.listening(runtime.folder)) if sockets.OFFERED else None
        except (OSError, sockets.UnsafeError) as error:
            talk.insist(warning_line(f"holitom ask will not find this server: {reason(error)}."))
        yield listener


def _run(service: Service, options: ServerOptions, local: Local | None, talk: Talk) -> int:
    """Serve until a signal comes; returns the exit code."""
    from holitom_cli.serve.server import listen, prepare, run

    app = service.app(api_key=options.api_key, host=options.host, names=options.server_name or [])
    with listen(options.host, options.port) as at, signals_are_lent():
        talk.say(f"Listening at {_url(at)}. Ctrl-C ends it.")
        server = prepare(service, app, options.grace, local)
        run(server, at)
    return INTERRUPTED if server.signal == signal.SIGINT else 0


def _url(at: socket.socket) -> str:
    host, port = at.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"
