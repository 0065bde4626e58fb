"""Options that several commands share: each group is a dataclass, `command` adds its fields to a function."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from holitom_cli.cli.failure import errors_in_a_sentence
from holitom_cli.errors import UsageError

if TYPE_CHECKING:
    from holitom_cli.cache import Cache
    from holitom_cli.methods import Method
    from holitom_cli.types import Sampling

_VIDEO, _MODEL, _METHOD, _ANSWER = "Video", "Model", "Compression", "Answer"
_PICTURES: dict[str, Any] = {"rich_help_panel": "Pictures of what was kept", "show_default": False}
_SETTINGS = ("retain_ratio", "tau", "beta", "neighbours", "max_window", "inner_layer", "inner_ratio")
_NEAREST = 2  # on the command line itself


def _option(name: str, help_text: str, panel: str, **more: Any) -> Any:
    variable = "HOLITOM_" + name.removeprefix("--").replace("-", "_").upper()
    return typer.Option(name, help=help_text, rich_help_panel=panel, envvar=variable, **more)


_CACHES = {"darwin": "Library/Caches", "win32": "AppData/Local"}
_IN_VIDEO: dict[str, Any] = {"rich_help_panel": _VIDEO, "show_default": False}


@dataclass(frozen=True)
class VideoOptions:
    """How frames are read."""

    num_frames: Annotated[int, _option("--num-frames", "Frames to sample, uniformly.", _VIDEO, min=1)] = 32
    decode_timeout: Annotated[
        float | None,
        _option(
            "--decode-timeout",
            "Seconds before a decoder that hangs is killed.",
            _VIDEO,
            min=1,
            show_default="by the clip's length",
        ),
    ] = None


@dataclass(frozen=True)
class CacheOptions:
    """Whether and where what was seen of a clip is kept."""

    no_cache: Annotated[
        bool,
        _option("--no-cache", "Look at the clip again, and keep nothing of it.", _VIDEO),
    ] = False
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            "--cache-dir",
            help="Keep what was seen of clips in a folder holitom in this one.",
            rich_help_panel=_VIDEO,
            envvar=["HOLITOM_CACHE_DIR", "XDG_CACHE_HOME"],
            show_default="the user's cache directory",
        ),
    ] = None

    def open(self) -> Cache | None:
        """The cache, None where there is to be none."""
        from holitom_cli.cache import Cache

        return None if self.no_cache else Cache(self.folder)

    @property
    def folder(self) -> Path:
        return (self.cache_dir or _user_caches()) / "holitom"


def _user_caches() -> Path:
    return Path.home() / _CACHES.get(sys.platform, ".cache")


@dataclass(frozen=True)
class RuntimeOptions:
    """Where servers and `ask` of the same user find each other."""

    runtime_dir: Annotated[
        Path | None,
        typer.Option(
            "--runtime-dir",
            help="Running servers are found below this folder.",
            rich_help_panel=_MODEL,
            envvar=["HOLITOM_RUNTIME_DIR", "XDG_RUNTIME_DIR"],
            show_default="the user's cache directory",
        ),
    ] = None

    @property
    def folder(self) -> Path:
        """The folder of their sockets, which only the user can enter once a server has made it."""
        return (self.runtime_dir or _user_caches()) / "holitom" / "servers"


class ServerUse(StrEnum):
    """Whether a running server may answer."""

    auto = "auto"
    off = "off"


ServerChoice = Annotated[
    ServerUse,
    _option("--server", "auto lets a running holitom serve of yours answer, if it would answer the same.", _MODEL),
]


class SamplingWay(StrEnum):
    """How frames are chosen where their number is given."""

    uniform = "uniform"
    keyframes = "keyframes"


@dataclass(frozen=True)
class SamplingOptions:
    """Which frames are looked at."""

    fps: Annotated[
        float | None, _option("--fps", "Frames to sample a second, instead of a number of frames.", _VIDEO)
    ] = None
    max_frames: Annotated[
        int | None, _option("--max-frames", "The most that --fps may give; more are thinned out evenly.", _VIDEO, min=1)
    ] = None
    start: Annotated[
        str | None,
        typer.Option(
            "--start", metavar="TIME", help="Look from here on: 90, 1:30, or -10 for the last 10 s.", **_IN_VIDEO
        ),
    ] = None
    end: Annotated[
        str | None, typer.Option("--end", metavar="TIME", help="Look up to here: 90, 1:30 or -10.", **_IN_VIDEO)
    ] = None
    frames_at: Annotated[
        str | None,
        typer.Option("--frames-at", metavar="TIME,...", help="Look at the frames shown at these times.", **_IN_VIDEO),
    ] = None
    sampling: Annotated[
        SamplingWay,
        _option("--sampling", "keyframes takes the nearest key frames: fast for hours of video.", _VIDEO),
    ] = SamplingWay.uniform

    def build(self, video: VideoOptions, context: typer.Context) -> Sampling:
        """Put the options together.

        Raises:
            UsageError: one is no time, they exclude each other, or one would have no effect.
        """
        from holitom_cli.types import Sampling

        for instead in ("fps", "frames_at"):
            if getattr(self, instead) is not None:
                refuse_idle(context, "num_frames", f"--{instead.replace('_', '-')} says how many frames there are")
        counted = self.fps is None and self.frames_at is None
        return Sampling(
            num_frames=video.num_frames if counted else None,
            fps=self.fps,
            max_frames=self.max_frames,
            start_seconds=as_seconds("--start", self.start),
            end_seconds=as_seconds("--end", self.end),
            at_seconds=_times(self.frames_at),
            keyframes=self.sampling is SamplingWay.keyframes,
        )


def _times(text: str | None) -> tuple[float, ...]:
    parts = [] if text is None else text.split(",")
    return tuple(seconds for part in parts if (seconds := as_seconds("--frames-at", part)) is not None)


def as_seconds(option: str, text: str | None) -> float | None:
    """90, 1:30, 1:01:30.5 or -10 as seconds."""
    if text is None:
        return None
    if not re.fullmatch(r"\s*-?((\d+:[0-5]?\d:|\d+:)[0-5]?\d|\d+)(\.\d*)?\s*", text):
        raise UsageError(f"{option} {text!r} is no time.", "Give seconds (90), minutes (1:30) or, from the end, -10.")
    total = 0.0
    for part in text.strip().removeprefix("-").split(":"):
        total = total * 60 + float(part)
    return -total if text.strip().startswith("-") else total


@dataclass(frozen=True)
class ContextOptions:
    """What the model is told of a clip besides the question."""

    time_instruction: Annotated[
        bool,
        typer.Option("--time-instruction", help="Tell the model the clip's length and the times of its frames."),
    ] = False
    subtitles: Annotated[
        str | None,
        typer.Option(
            "--subtitles",
            metavar="auto|FILE",
            help="Tell the model what is said meanwhile; auto finds them beside the clip or in it.",
        ),
    ] = None


@dataclass(frozen=True)
class ModelOptions:
    """Which checkpoint, and where it runs."""

    model: Annotated[
        str | None,
        _option("--model", "A directory, a hub id, or demo.", _MODEL, show_default="7B or 0.5B, by the card's memory"),
    ] = None
    revision: Annotated[str | None, _option("--revision", "Branch, tag or commit of a hub id.", _MODEL)] = None
    device: Annotated[str, _option("--device", "auto, cuda, cuda:N, mps or cpu.", _MODEL)] = "auto"
    dtype: Annotated[str, _option("--dtype", "auto, bfloat16, float16 or float32.", _MODEL)] = "auto"
    quantize: Annotated[
        str | None,
        _option(
            "--quantize", "int8 or int4 keeps the language model's weights in so many bits, for small cards.", _MODEL
        ),
    ] = None
    device_map: Annotated[
        str | None,
        _option("--device-map", "auto spreads a checkpoint that is larger than one GPU.", _MODEL),
    ] = None
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Download without asking.", rich_help_panel=_MODEL)] = False

    def number_format(self, dtype: str) -> str:
        """Of states and weights, as `ModelInfo.number_format`."""
        return f"{dtype}+{self.quantize}" if self.quantize else dtype


@dataclass(frozen=True)
class MethodOptions:
    """Which tokens are kept. None leaves a setting to the preset or the method."""

    method: Annotated[str, _option("--method", "Compression method, see: holitom methods.", _METHOD)] = "holitom"
    preset: Annotated[str | None, _option("--preset", "The paper's settings: 25, 20, 15 or 10.", _METHOD)] = None
    budget: Annotated[
        str | None,
        _option("--budget", "Visual tokens to keep, alike for every method: percent (15) or tokens (940t).", _METHOD),
    ] = None
    retain_ratio: Annotated[
        float | None, _option("--retain-ratio", "Share of visual tokens to keep.", _METHOD, show_default="0.15")
    ] = None
    tau: Annotated[
        float | None, _option("--tau", "Cosine above which a cell is unchanged.", _METHOD, show_default="0.8")
    ] = None
    beta: Annotated[float | None, _option("--beta", "Weight of a cluster's centre.", _METHOD, show_default="0.6")] = (
        None
    )
    neighbours: Annotated[
        int | None, _option("--neighbours", "Neighbours that make a token's density.", _METHOD, show_default="7")
    ] = None
    max_window: Annotated[
        int | None, _option("--max-window", "Longest segment in frames.", _METHOD, show_default="1024")
    ] = None
    inner_layer: Annotated[
        str | None,
        _option(
            "--inner-layer",
            "Layer to merge before inside the model: auto, off or a number.",
            _METHOD,
            show_default="auto",
        ),
    ] = None
    inner_ratio: Annotated[
        float | None, _option("--inner-ratio", "Share that the merge inside folds away.", _METHOD, show_default="0.5")
    ] = None
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting of the method.", rich_help_panel=_METHOD),
    ] = None

    def build(self, context: typer.Context) -> Method:
        """The method with its settings checked.

        What the environment or the config file say applies where the method has such a setting, and where no preset
        was named nearer to the command line.
        """
        from holitom_cli import methods

        cls = methods.find(self.method)
        fields = {field.name for field in methods.settings_of(cls)}
        return methods.by_words(**self.words(context, fields, has_presets=bool(cls.presets)))

    def words(self, context: typer.Context, fields: Set[str], *, has_presets: bool) -> dict[str, Any]:
        """What `methods.by_words` makes the method of, if these are its settings; no more is checked than the options.

        Raises:
            UsageError: two of them say the same thing in different ways.
        """
        fitting = fields | ({"preset"} if has_presets else set()) | ({"budget"} if "retain_ratio" in fields else set())
        given = {
            name: value
            for name in ("preset", "budget", *_SETTINGS)
            if (value := getattr(self, name)) is not None and (name in fitting or _nearness(context, name) == _NEAREST)
        }
        if "budget" in given and not _budget_counts(context, given):
            del given["budget"]
        # What says several things at once replaces whatever was said of them further away.
        for whole in [name for name in ("preset", "budget") if name in given]:
            floor = _nearness(context, whole)
            given = {name: value for name, value in given.items() if _nearness(context, name) >= floor}
        preset, budget = given.pop("preset", None), given.pop("budget", None)
        if budget is not None:
            given.pop("retain_ratio", None)  # it is as near, in the environment or the file
        settings = {**given, **self._pairs()}
        return {"name": self.method, "preset": preset, "budget": budget, "settings": settings}

    def _pairs(self) -> dict[str, str]:
        return split_pairs("--set", self.set or [])


def split_pairs(option: str, pairs: Iterable[str]) -> dict[str, str]:
    """Settings by name.

    Raises:
        UsageError: one is not KEY=VALUE.
    """
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"{option} {pair!r} is not KEY=VALUE.", f"As in: {option} tau=0.8")
        values[key.strip().replace("-", "_")] = value.strip()
    return values


def _budget_counts(context: typer.Context, given: Mapping[str, object]) -> bool:
    """Whether nothing nearer to the command line says otherwise how much to keep.

    Raises:
        UsageError: the command line itself says it twice.
    """
    others = [name for name in ("preset", "retain_ratio") if name in given]
    if _nearness(context, "budget") == _NEAREST:
        for name in others:
            refuse_idle(context, name, "--budget says how many tokens are kept")
    return all(_nearness(context, name) <= _nearness(context, "budget") for name in others)


@dataclass(frozen=True)
class AnswerOptions:
    """How the answer's tokens are chosen; named as the keywords of `pipeline.ask`."""

    max_new_tokens: Annotated[int, _option("--max-new-tokens", "Longest answer, in tokens.", _ANSWER, min=1)] = 256
    temperature: Annotated[float, _option("--temperature", "0 is greedy.", _ANSWER)] = 0.0
    top_p: Annotated[float, _option("--top-p", "Sample from the likeliest tokens of this mass.", _ANSWER)] = 1.0
    seed: Annotated[int, _option("--seed", "Seed of the sampling.", _ANSWER, min=0, max=2**63 - 1)] = 0


@dataclass(frozen=True)
class PictureOptions:
    """Where pictures of what was kept are written."""

    report: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="FILE", help="A page of the answers, what was kept and the times.", **_PICTURES
        ),
    ] = None
    contact_sheet: Annotated[
        Path | None,
        typer.Option("--contact-sheet", metavar="FILE", help="One PNG of all frames, with what was kept.", **_PICTURES),
    ] = None
    overlay: Annotated[
        Path | None,
        typer.Option(
            "--overlay", metavar="FOLDER", help="A PNG a frame; more for what each question looked at.", **_PICTURES
        ),
    ] = None
    overlay_video: Annotated[
        Path | None,
        typer.Option(
            "--overlay-video", metavar="FILE", help="The sampled frames with what was kept, as MP4.", **_PICTURES
        ),
    ] = None

    inline: Annotated[
        bool,
        typer.Option("--inline", help="Show the frames with what was kept in the terminal, where it can.", **_PICTURES),
    ] = False

    @property
    def files(self) -> list[Path]:
        return [path for path in (self.report, self.contact_sheet, self.overlay_video) if path is not None]

    def check(self) -> None:
        """Refuse places that nothing can be written to.

        Raises:
            UsageError: a folder is missing, or a file stands where a folder should, or the other way round.
        """
        for file in self.files:
            check_place(file)
        if self.overlay is not None and self.overlay.exists() and not self.overlay.is_dir():
            raise UsageError(f"--overlay {self.overlay} is a file.", "Name a folder, or one that is not there yet.")
        if len(set(self.files)) < len(self.files):
            raise UsageError("Two kinds of pictures would be written to one file.", "Give each a name of its own.")


MethodList = Annotated[
    str,
    typer.Option(
        "--methods",
        metavar="NAMES",
        help="Methods, separated by commas, or all; NAME:key=value sets a setting, NAME+NAME composes two.",
    ),
]
BudgetList = Annotated[
    str,
    typer.Option(
        "--budgets",
        metavar="LIST",
        help="Percentages of the visual tokens, or numbers of them (940t), separated by commas.",
    ),
]


def check_place(file: Path) -> None:
    """Refuse a file that could not be written at the end.

    Raises:
        UsageError: it is a folder, or its folder is missing.
    """
    if file.is_dir():
        raise UsageError(f"Nothing can be written to {file}: it is a folder.", "Name a file.")
    if not file.parent.is_dir():
        raise UsageError(f"There is no folder {file.parent} to write {file.name} to.", "Make it first.")


Choices = Annotated[
    str | None,
    typer.Option("--choices", metavar="A,B,...", help="Choose among these answers; nothing is generated."),
]


def split_choices(text: str | None, context: typer.Context) -> tuple[str, ...]:
    """The answers between the commas, none where the option was not given.

    Raises:
        UsageError: the command line also says how to generate one.
    """
    if text is None:
        return ()
    for field in fields(AnswerOptions):
        refuse_idle(context, field.name, "With --choices nothing is generated")
    return tuple(choice.strip() for choice in text.split(","))


def refuse_idle(context: typer.Context, name: str, why: str) -> None:
    """Refuse an option that would do nothing, where the command line itself has it.

    Raises:
        UsageError: it has.
    """
    if _nearness(context, name) == _NEAREST:
        option = "--" + name.replace("_", "-")
        raise UsageError(f"{why}, so {option} has no effect.", f"Leave {option} out.")


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", envvar="HOLITOM_DEBUG")]


def command(*groups: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the groups' options to a command, which receives one filled instance of each after its own arguments.

    Errors become one sentence and an exit code here; with --json the sentence is a JSON document on stdout.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function, eval_str=True).parameters
        mine = [item for name, item in own.items() if item.annotation not in groups]
        shared = [parameter for group in groups for parameter in _parameters(group)]

        @functools.wraps(function)
        def run(**values: Any) -> None:
            debug, as_json = values.pop("debug"), bool(values.get("json", False))
            filled = [group(**{field.name: values.pop(field.name) for field in fields(group)}) for group in groups]
            with errors_in_a_sentence(debug=debug, as_json=as_json):
                function(*filled, **values)

        extra = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
        run.__signature__ = inspect.Signature([*mine, *shared, extra])  # type: ignore[attr-defined]
        run.__annotations__ = {item.name: item.annotation for item in (*mine, *shared, extra)}
        return run

    return decorate


def _parameters(group: type) -> list[inspect.Parameter]:
    """A group's fields as keyword parameters."""
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(group)
    ]


def is_said(context: typer.Context, name: str) -> bool:
    """Whether the command line itself has an option."""
    return _nearness(context, name) == _NEAREST


def _nearness(context: typer.Context, name: str) -> int:
    """How near to the command line an option was given."""
    source = context.get_parameter_source(name)
    order = ("DEFAULT_MAP", "ENVIRONMENT", "COMMANDLINE")
    return order.index(source.name) if source is not None and source.name in order else -1
