"""What was kept and how long it took, as rich renderables. Nothing here prints."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from rich.bar import Bar
from rich.console import Group
from rich.constrain import Constrain
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from holitom_cli.report import text
from holitom_cli.report.shapes import Encodable, Strip

if TYPE_CHECKING:
    from rich.console import RenderableType

    from holitom_cli.errors import HolitomError
    from holitom_cli.types import AnswerRecord, Choice, Frames, ModelInfo, Segment, Shown, TokenCounts

_KINDS = {
    "demo": "bundled with holitom",
    "random": "random weights",
    "published": "published weights",
    "local": "local weights",
}
_CHART_COLUMNS = 100  # on a wider terminal longer bars would say nothing more
TTFT_STAGES = ("vision", "compress", "prefill", "sample")
STAGE_LABELS = {"decode": "decode video"}  # the language model decodes too


def report(answers: Sequence[AnswerRecord], baseline: Sequence[AnswerRecord] = ()) -> RenderableType:
    """Return the report on one or several questions about the same clip or clips.

    `answers` share the clips, the checkpoint and the method: what is the same for all is shown once.
    `baseline` holds the same questions, in order, answered with every token kept; ValueError where it
    is shorter or longer.
    """
    rivals: Sequence[AnswerRecord | None] = baseline or [None] * len(answers)
    shared = shared_stages(answers)
    common = [render for same, render in _PARTS if len({same(answer) for answer in answers}) == 1]
    own = [render for same, render in _PARTS if len({same(answer) for answer in answers}) > 1]
    parts: list[RenderableType] = [*_earlier(answers[0]), _header(answers[0]), *_warnings([*answers, *baseline])]
    parts += [render(answers[0]) for render in common]
    if shared:
        parts.append(_section("Time for the clip", _waterfall(shared)))
    for number, (answer, rival) in enumerate(zip(answers, rivals, strict=True), 1):
        parts.append(_question(answer, number, len(answers)))
        parts += [render(answer) for render in own]
        parts += [_time(answer, without=shared), _cost(answer)]
        if rival is not None:
            parts.append(_comparison(answer, rival))
    return Encodable(Group(*parts))


def summary(answers: Sequence[AnswerRecord]) -> RenderableType:
    """Return the report in short: what was kept, and where the time went.

    `answers` are two or more, and share the clip, the checkpoint and the method.
    """
    first, stages = answers[0], shared_stages(answers)
    for_the_clip = sum(stages.values())
    stages[f"{text.count(len(answers))} answers"] = sum(
        1000 * answer.timings.time_to_answer_s - for_the_clip for answer in answers
    )
    whole = _facts([("in all", f"{text.milliseconds(sum(stages.values()))}, without loading")])
    time = _section("Time", _waterfall(stages), Text(), whole, note=short(first.model))
    return Encodable(Group(Text(), _header(first), _funnel(first), time))


def segment_strip(segments: Sequence[Segment]) -> RenderableType:
    """Return one line of blocks over the sampled frames, with start times and tokens where they fit.

    Takes the whole width; at least one segment.
    """
    return Encodable(Strip(segments))


def error_line(error: HolitomError) -> Text:
    """Return "error: sentence" and, on a second line, "hint: what to try" where there is one."""
    line = Text.assemble(("error: ", "bold red"), text.visible(error.message))
    if error.hint:
        line.append("\n").append("hint: ", "bold").append(text.visible(error.hint))
    return line


def warning_line(warning: str) -> Text:
    """Return "warning: sentence"."""
    return Text.assemble(("warning: ", "bold yellow"), text.visible(warning))


def methods_table(rows: Sequence[Mapping[str, str]]) -> RenderableType:
    """Return a table with a heading for each key of the first row; every row has the same keys."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for number, key in enumerate(rows[0] if rows else ()):
        table.add_column(Text(text.visible(key)), style="" if number else "cyan", overflow="fold")
    for row in rows:
        table.add_row(*(Text(text.visible(cell)) for cell in row.values()))
    return Encodable(table)


def doctor_table(sections: Mapping[str, Mapping[str, str]]) -> RenderableType:
    """Return a heading for each section with its facts below."""
    return Encodable(Group(*(_section(title, _facts(facts.items())) for title, facts in sections.items())))


# --- layout ----------------------------------------------------------------------------------


def _section(title: str, *body: RenderableType, note: str = "") -> RenderableType:
    heading = Table.grid(padding=(0, 2, 0, 0))
    heading.add_column(style="bold", overflow="fold")
    heading.add_column(style="dim", overflow="fold")
    heading.add_row(Text(text.visible(title)), Text(text.visible(note)))
    return Group(heading, Padding(Group(*body), (0, 0, 1, 2)))


def _facts(rows: Iterable[tuple[str, str | Text]] | Iterable[tuple[str, str]]) -> Table:
    """Labels and values; where room is short the wider of the two wraps first."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", overflow="fold")
    grid.add_column(overflow="fold")
    for label, value in rows:
        shown = Text(text.visible(value)) if isinstance(value, str) else value
        grid.add_row(Text(text.visible(label)), shown)
    return grid


def _chart(figures: int) -> Table:
    """Label, figures to the right, and a bar that takes the room left over."""
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(overflow="fold")
    for _ in range(figures):
        grid.add_column(justify="right", no_wrap=True)
    # no_wrap: where room is short the label wraps instead; width: what a column with a ratio starts from
    grid.add_column(ratio=1, width=8, no_wrap=True)
    return grid


# --- what the questions share ----------------------------------------------------------------


def title(frames: Frames) -> str:
    """What the clip is called."""
    return PurePath(frames.video.path).name if frames.video else "frames from memory"


def _earlier(answer: AnswerRecord) -> list[RenderableType]:
    """What is told of each clip before the last of several."""
    return [_section(title(clip.frames), _facts(_clip_rows(clip.frames))) for clip in answer.earlier]


def _clip_rows(frames: Frames) -> list[tuple[str, str | Text]]:
    return [*_video(frames), ("frames", _sampling(frames)), ("decoder", _decoder(frames))]


def _header(answer: AnswerRecord) -> RenderableType:
    return _section(title(answer.frames), _facts(header_rows(answer)))


def header_rows(answer: AnswerRecord) -> list[tuple[str, str | Text]]:
    """Which file, frames, decoder, checkpoint and method, as labels and values."""
    settings = ", ".join(f"{name} {value}" for name, value in answer.method_settings.items())
    return [
        *_clip_rows(answer.frames),
        *model_rows(answer.model),
        ("method", f"{answer.method} ({settings})" if settings else answer.method),
        *([("served by", f"the running server, process {answer.served_by['pid']}")] if answer.served_by else []),
    ]


def _video(frames: Frames) -> list[tuple[str, str | Text]]:
    video = frames.video
    if video is None:
        _, height, width, _ = frames.pixels.shape
        return [("video", f"{width}x{height} pixels, not read from a file")]
    changes = [
        *([f"HDR ({video.hdr}), shown as on an ordinary screen"] if video.hdr else []),
        *(["mirrored"] if video.mirrored else []),
        *([f"turned {video.rotation} degrees"] if video.rotation else []),
    ]
    turned = f" ({', '.join(changes)})" if changes else ""
    length = f"{text.seconds(video.duration_seconds)} long, {text.size(video.size_bytes)}"
    rows: list[tuple[str, str | Text]] = [("file", video.path)] if PurePath(video.path).name != video.path else []
    return [*rows, ("video", f"{video.codec}, {video.width}x{video.height}{turned}, {length}")]


def _sampling(frames: Frames) -> Text:
    total = frames.video.frame_count if frames.video else 0
    line = Text(text.count(len(frames)))
    if total:
        line.append(f" of {text.count(total)}")
    if len(frames) > 1:
        spacing = float(frames.seconds[-1] - frames.seconds[0]) / (len(frames) - 1)
        line.append(f", one every {text.seconds(spacing)}")
    line.append(_how_sampled(frames))
    if frames.frames_missing:
        line.append(f", {text.count(frames.frames_missing)} could not be read", "yellow")
    return line


def _decoder(frames: Frames) -> str:
    if frames.cached:
        return f"none: what was seen was kept from an earlier question ({frames.decoder} read it then)"
    return f"{frames.decoder}: {frames.decoder_reason}"


def _how_sampled(frames: Frames) -> str:
    """What is not said by the number of frames and their spacing."""
    wish = frames.sampling
    if wish is None or (wish.mode == "uniform" and not wish.has_range):
        return ""
    how = {
        "uniform": "",
        "fps": f", asked for {wish.fps:g} a second" if wish.fps else "",
        "at": ", at the times asked for",
        "keyframes": f", key frames up to {text.seconds(frames.moved_seconds)} from evenly spread ones",
    }[wish.mode]
    return f"{how}, from {text.seconds(float(frames.seconds[0]))} to {text.seconds(float(frames.seconds[-1]))}"


def model_rows(model: ModelInfo) -> list[tuple[str, str | Text]]:
    """Which checkpoint, and where it runs, as labels and values."""
    where = model.device if model.device_name == model.device else f"{model.device_name} ({model.device})"
    rows: list[tuple[str, str | Text]] = [
        ("checkpoint", f"{model.id}, {_KINDS[model.kind]}"),
        ("revision", model.revision or ""),
        ("chosen", model.reason),
        ("device", f"{where}, {model.number_format}"),
    ]
    return [(label, value) for label, value in rows if value]


def _warnings(answers: Sequence[AnswerRecord]) -> list[RenderableType]:
    """Every different warning once, the clip's first."""
    texts = [*answers[0].frames.warnings, *(warning for answer in answers for warning in answer.warnings)]
    lines = [warning_line(warning) for warning in dict.fromkeys(texts)]
    return [Padding(Group(*lines), (0, 0, 1, 0))] if lines else []


def _funnel(answer: AnswerRecord) -> RenderableType:
    tokens = answer.tokens
    chart = _chart(figures=2)
    for label, left in funnel_rows(tokens):
        share = left / tokens.original
        chart.add_row(Text(text.visible(label)), text.count(left), text.percent(share), Bar(1, 0, share, color="cyan"))
    newline = f"+{text.counted(tokens.newlines, 'newline token')}"
    newline += ", counted in the inside rows" if tokens.inside else ""
    return _section(
        "Visual tokens",
        Constrain(chart, _CHART_COLUMNS),
        Text(newline, "dim"),
        note=f"{answer.method} keeps {text.percent(tokens.retained)}",
    )


def funnel_rows(tokens: TokenCounts) -> list[tuple[str, int]]:
    """How many visual tokens are left after each step, the newline token among those inside the model."""
    rows = [(f"{text.counted(tokens.frames, 'frame')} x {tokens.patches_per_frame} patches", tokens.original)]
    rows += list(tokens.funnel[1:])
    rows += [(f"inside, from layer {layer}", left) for layer, left in tokens.inside]
    if tokens.cached:
        rows.append(("cached, mean of the layers", round(sum(tokens.cached) / len(tokens.cached))))
    return rows


def _segments(answer: AnswerRecord) -> RenderableType:
    if not answer.earlier:
        return _strip("Segments", answer.segments)
    clips: list[Shown | AnswerRecord] = [*answer.earlier, answer]
    return Group(*(_strip(f"Segments of {title(clip.frames)}", clip.segments) for clip in clips))


def _strip(heading: str, segments: Sequence[Segment]) -> RenderableType:
    counts = sorted(segment.tokens for segment in segments)
    if not counts:
        return Group()
    least, most = text.count(counts[0]), text.counted(counts[-1], "token")
    each = " each" if len(counts) > 1 else ""
    note = f"{text.count(len(counts))}, {most if counts[0] == counts[-1] else f'{least} to {most}'}{each}"
    return _section(heading, Constrain(Strip(segments), _CHART_COLUMNS), note=note)


# What is shown once where it is the same for every question, and with each question where not.
_PARTS: tuple[tuple[Callable[[AnswerRecord], Hashable], Callable[[AnswerRecord], RenderableType]], ...] = (
    (lambda answer: (answer.tokens.funnel, answer.tokens.inside), _funnel),
    (lambda answer: answer.segments, _segments),
)


def shared_stages(answers: Sequence[AnswerRecord]) -> dict[str, float]:
    """Stages that several questions report with the same time, because they ran once.

    None for a single question: its stages are read best in one piece.
    """
    first, *others = (answer.timings.stages_ms for answer in answers)
    return {name: ms for name, ms in first.items() if others and all(other.get(name) == ms for other in others)}


# --- each question ---------------------------------------------------------------------------


def _question(answer: AnswerRecord, number: int, total: int) -> RenderableType:
    tokens = answer.tokens
    visual, written = text.count(tokens.visual), text.count(tokens.text)
    newlines = text.counted(tokens.newlines, "newline")
    prompt = f"{text.counted(tokens.prompt, 'token')} = {visual} visual + {newlines} + {written} text"
    told = [("told", answer.context)] if answer.context else []
    facts = _facts([*told, ("asked", answer.question), ("prompt", prompt), ("answer", ending(answer))])
    title = f"Question {number} of {total}" if total > 1 else "Question"
    return _section(title, facts, *([Text(), _choices(answer.choices)] if answer.choices else []))


def ending(answer: AnswerRecord) -> str:
    """How the answer came to its end."""
    if answer.choices:
        return f"the likeliest of {text.count(len(answer.choices))} choices, nothing was generated"
    limit = f"cut off by the limit of {text.count(answer.generation.max_new_tokens)}"
    ending = "stopped by itself" if answer.finish_reason == "stop" else limit
    return f"{text.counted(answer.tokens.generated, 'token')}, {ending}"


def _choices(choices: Sequence[Choice]) -> RenderableType:
    """One bar a choice."""
    chart = _chart(figures=1)
    for choice in choices:
        share = choice.probability
        chart.add_row(Text(text.visible(choice.text)), text.percent(share), Bar(1, 0, share, color="cyan"))
    return Constrain(chart, _CHART_COLUMNS)


def _waterfall(stages: Mapping[str, float]) -> RenderableType:
    """One bar a stage, each starting where the one before it ended."""
    chart = _chart(figures=1)
    total, begun = sum(stages.values()), 0.0
    for name, ms in stages.items():
        colour = "cyan" if name in TTFT_STAGES else "blue"
        bar = Bar(total, begun, begun + ms, color=colour)
        chart.add_row(Text(text.visible(STAGE_LABELS.get(name, name))), text.milliseconds(ms), bar)
        begun += ms
    return Constrain(chart, _CHART_COLUMNS)


def _time(answer: AnswerRecord, without: Mapping[str, float]) -> RenderableType:
    stages = {name: ms for name, ms in all_stages(answer).items() if name not in without}
    return _section("Time", _waterfall(stages), Text(), _facts(time_rows(answer)), note=short(answer.model))


def all_stages(answer: AnswerRecord) -> dict[str, float]:
    """Milliseconds of each stage in order, and of all tokens after the first."""
    stages, tpot_ms = dict(answer.timings.stages_ms), answer.timings.tpot_ms
    if tpot_ms:
        later = answer.tokens.generated - 1
        stages[text.counted(later, "more token")] = tpot_ms * later
    return stages


def time_rows(answer: AnswerRecord) -> list[tuple[str, str]]:
    """What the stages add up to, as labels and values."""
    timings = answer.timings
    return [
        ("TTFT", f"{text.milliseconds(timings.ttft_ms)} ({' + '.join(TTFT_STAGES)})"),
        *([] if answer.choices else [("per token", _per_token(timings.tpot_ms, timings.tokens_per_second))]),
        ("time to answer", text.seconds(timings.time_to_answer_s)),
    ]


def _per_token(tpot_ms: float | None, rate: float | None) -> str:
    return f"{text.milliseconds(tpot_ms)}, {rate:,.1f} tokens/s" if rate else "unknown: there was only one token"


def short(model: ModelInfo) -> str:
    """The checkpoint that a figure belongs to, in few words."""
    return f"{PurePath(model.id).name}, {_KINDS[model.kind]}"


def _cost(answer: AnswerRecord) -> RenderableType:
    return _section("Cost", _facts(cost_rows(answer)), note="FLOPs are the prefill's")


def cost_rows(answer: AnswerRecord) -> list[tuple[str, str]]:
    """Arithmetic of the prefill and memory, as labels and values."""
    flops, memory = answer.flops, answer.memory
    device = memory.device_peak_bytes
    gpu = f"{text.size(device)} GPU, " if device is not None else ""
    return [
        ("paper FLOPs", _saving(flops.paper, flops.paper_full)),
        ("true FLOPs", _saving(flops.true, flops.true_full)),
        ("peak memory", f"{gpu}{text.size(memory.host_peak_bytes)} host"),
    ]


def _saving(kept: float, full: float) -> str:
    return f"{text.flop(kept)}, with every token {text.flop(full)} ({text.times(full, kept)})"


# --- side by side ----------------------------------------------------------------------------


def _comparison(answer: AnswerRecord, full: AnswerRecord) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("")
    for heading in (answer.method, full.method, "ratio"):
        table.add_column(Text(text.visible(heading)), justify="right", no_wrap=True)
    for label, write, ours, theirs in compared(answer, full):
        table.add_row(Text(label, "dim"), write(ours), write(theirs), text.times(theirs, ours))
    verdict = Text("Both answers are the same, word for word.", "green")
    if not answer.agrees(full):
        verdict = Text("The answers differ.", "yellow")
    parts: list[RenderableType] = [table, Text(), verdict]
    if not answer.agrees(full):
        parts.append(_facts([(answer.method, _prose(answer.text)), (full.method, _prose(full.text))]))
    return _section(f"Against {full.method}", *parts, note=short(answer.model))


_Row = tuple[str, Callable[[Any], str], float | None, float | None]


def compared(answer: AnswerRecord, full: AnswerRecord) -> list[_Row]:
    """Label, how to write it, this method's figure, the baseline's figure.

    The host's peak is left out: it only grows while the process lives, so the later run would
    always look larger.
    """
    ours, theirs = answer.timings, full.timings
    device, full_device = answer.memory.device_peak_bytes, full.memory.device_peak_bytes
    rows: list[_Row] = [
        ("visual tokens", text.count, answer.tokens.visual, full.tokens.visual),
        ("prompt tokens", text.count, answer.tokens.prompt, full.tokens.prompt),
        ("TTFT", text.milliseconds, ours.ttft_ms, theirs.ttft_ms),
        *([("per token", text.milliseconds, ours.tpot_ms, theirs.tpot_ms)] if ours.tpot_ms or theirs.tpot_ms else []),
        ("time to answer", text.seconds, ours.time_to_answer_s, theirs.time_to_answer_s),
        ("paper FLOPs", text.flop, answer.flops.paper, full.flops.paper),
        ("true FLOPs", text.flop, answer.flops.true, full.flops.true),
    ]
    if device is not None and full_device is not None:
        rows.append(("GPU memory peak", text.size, device, full_device))
    return rows


def _prose(answer: str) -> Text:
    """An answer with its own line breaks, and nothing else that acts on the terminal."""
    return Text("\n".join(text.visible(line) for line in answer.strip().splitlines()))
