"""Answers about a clip as one self-contained HTML page: no script, no request, nothing beside it.

Every picture is in the page once; strips and overlays show it again and draw over it with vectors.
"""

from __future__ import annotations

import io
import math
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holitom_cli.report import terminal, text
from holitom_cli.report.files import write_whole
from holitom_cli.report.overlay import Fate, Overlay, borders, colour, kept, looked_at, runs, tokens_by_frame
from holitom_cli.report.pictures import DIMMED, TINTED, VEIL, shrinker
from holitom_cli.report.record import document

if TYPE_CHECKING:
    from jinja2 import Environment, Template

    from holitom_cli.types import Answer, ByteArray, Frames, IntArray

LONGEST_SIDE = 480  # pixels of a picture; fewer where all pictures together would take too much
_SMALLER_SIDES = (360, 270, 200, 150)
_PICTURE_BYTES = 2_100_000  # of all pictures in the page
_JPEG_QUALITY = 78


def write_page(answers: Sequence[Answer], baseline: Sequence[Answer], pictures: Frames, file: Path) -> None:
    """Write the page of `page` to a file."""
    write_whole(file, page(answers, baseline, pictures))


def page(answers: Sequence[Answer], baseline: Sequence[Answer], pictures: Frames) -> str:
    """Return an HTML page on one or several questions about one clip.

    Args:
        answers: share the clip, the checkpoint and the method.
        baseline: the same questions, in order, answered with every token kept; or none.
        pictures: the frames that the answers are about, at any size and in their right proportions.
    """
    first = answers[0]
    shared = terminal.shared_stages(answers)
    rivals: Sequence[Answer | None] = baseline or [None] * len(answers)
    shown = [
        _question(answer, rival, number, shared)
        for number, (answer, rival) in enumerate(zip(answers, rivals, strict=True), 1)
    ]
    return template("page.html.jinja").render(
        title=terminal.title(first.frames),
        facts=[(label, str(value)) for label, value in terminal.header_rows(first)],
        warnings=list(dict.fromkeys(warning for answer in (*answers, *baseline) for warning in answer.warnings)),
        method=first.method,
        tokens=first.tokens,
        funnel=_funnel(first),
        segments=len(first.segments),
        frames=list(_frames(first, pictures)),
        images=_jpegs(pictures.pixels),
        ratio=f"{pictures.pixels.shape[2]} / {pictures.pixels.shape[1]}",
        grid=math.isqrt(first.tokens.patches_per_frame),
        questions=shown,
        shared=_bars(shared, terminal.all_stages(baseline[0]) if baseline else {}) if shared else [],
        baseline=baseline[0].method if baseline else "",
        everything=list(flat(document(answers, baseline))),
        style={"veil": VEIL, "dropped": DIMMED[Fate.DROPPED], "folded": DIMMED[Fate.FOLDED], "tinted": TINTED},
    )


def template(name: str) -> Template:
    """A template of this room."""
    return _environment().get_template(name)


def template_source(name: str) -> str:
    """A file beside the templates, as it is."""
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("holitom_cli.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: _harmless(value) if type(value) is str else value,
    )
    environment.filters |= {"count": text.count, "counted": text.counted, "percent": text.percent, "prose": _prose}
    return environment


def _harmless(value: str) -> str:
    """What no browser reads as anything but words, once it is escaped."""
    return text.visible(value)


def _prose(answer: str) -> list[str]:
    """The lines of an answer."""
    return answer.strip().splitlines()


# --- the clip ----------------------------------------------------------------------------------


def _funnel(answer: Answer) -> list[tuple[str, int, float]]:
    """Step, tokens left, share of the original ones."""
    return [(label, left, left / answer.tokens.original) for label, left in terminal.funnel_rows(answer.tokens)]


@dataclass(frozen=True, slots=True)
class _Drawing:
    """What is drawn over a frame's picture, in patches, and how it is put into words."""

    dropped: str  # SVG paths
    folded: str
    groups: list[tuple[str, str, str]]  # path, colour, what it is
    borders: str
    stands: str
    words: str


def _frames(answer: Answer, pictures: Frames) -> Iterator[dict[str, Any]]:
    overlay, tokens = kept(answer.visual), tokens_by_frame(answer.visual)
    sizes = answer.visual.size.tolist()
    segment_of = {
        frame: number
        for number, segment in enumerate(answer.segments, 1)
        for frame in range(segment.start_frame, segment.stop_frame)
    }
    starts = {segment.start_frame for segment in answer.segments}
    for frame, seconds in enumerate(pictures.seconds.tolist()):
        yield {
            "number": frame + 1,
            "time": text.moment(seconds),
            "index": None if pictures.indices is None else int(pictures.indices[frame]),
            "tokens": tokens[frame],
            "share": tokens[frame] / max(1, *tokens),
            "segment": segment_of.get(frame),
            "starts": frame in starts,
            "drawing": _drawing(overlay, frame, _kept_words(overlay, frame), sizes),
        }


def _kept_words(overlay: Overlay, frame: int) -> str:
    alone, merged = overlay.count(frame, Fate.KEPT), overlay.count(frame, Fate.MERGED)
    into = len(set(overlay.token[frame].ravel().tolist()) - {-1})
    parts = [f"{text.count(alone)} kept", f"{text.count(overlay.count(frame, Fate.DROPPED))} dropped"]
    if merged:
        parts.insert(1, f"{text.count(merged)} merged into {text.counted(into, 'token')}")
    return ", ".join(parts)


def _looked_words(overlay: Overlay, frame: int) -> str:
    names = {Fate.KEPT: "kept", Fate.FOLDED: "folded into others", Fate.DROPPED: "dropped"}
    return ", ".join(f"{text.count(overlay.count(frame, fate))} {name}" for fate, name in names.items())


def _drawing(overlay: Overlay, frame: int, words: str, sizes: Sequence[int] = ()) -> _Drawing:
    fates, tokens = overlay.fate[frame], overlay.token[frame]
    regions: dict[int, list[str]] = {}  # by token, or by fate below zero
    for y, (fate_row, token_row) in enumerate(zip(fates, tokens, strict=True)):
        marks = token_row.copy()
        marks[token_row < 0] = -1 - fate_row[token_row < 0].astype(marks.dtype)
        for start, stop, mark in runs(marks):
            regions.setdefault(mark, []).append(f"M{start} {y}h{stop - start}v1H{start}z")
    lost = {fate: "".join(regions.pop(-1 - fate, [])) for fate in Fate}
    return _Drawing(
        dropped=lost[Fate.DROPPED],
        folded=lost[Fate.FOLDED],
        groups=[
            ("".join(path), "#{:02x}{:02x}{:02x}".format(*colour(token)), f"token {token}: {sizes[token]} patches")
            for token, path in regions.items()
        ],
        borders="".join(_border_path(overlay.outline[frame])),
        stands="".join(f"M{x + 0.5} {y + 0.5}h0" for y, x in zip(*overlay.stands[frame].nonzero(), strict=True)),
        words=words,
    )


def _border_path(outline: IntArray) -> Iterator[str]:
    above, left = borders(outline)
    for y, line in enumerate(above):
        yield from (f"M{start} {y}H{stop}" for start, stop, is_border in runs(line) if is_border)
    for x, line in enumerate(left.T):
        yield from (f"M{x} {start}V{stop}" for start, stop, is_border in runs(line) if is_border)


def _jpegs(pictures: Iterable[ByteArray]) -> list[str]:
    """Pictures as data URLs, as large as the page has room for."""
    for longest in (LONGEST_SIDE, *_SMALLER_SIDES):
        pictures = [shrinker(longest)(picture) for picture in pictures]
        urls = [_jpeg(picture) for picture in pictures]
        if sum(map(len, urls)) <= _PICTURE_BYTES:
            break
    return urls


def _jpeg(picture: ByteArray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + b64encode(file.getvalue()).decode("ascii")


# --- a question --------------------------------------------------------------------------------


def _question(answer: Answer, rival: Answer | None, number: int, shared: Mapping[str, float]) -> dict[str, Any]:
    seen = looked_at(answer)
    stages = {name: ms for name, ms in terminal.all_stages(answer).items() if name not in shared}
    return {
        "number": number,
        "question": answer.question,
        "answer": answer.text,
        "ending": terminal.ending(answer),
        "choices": [(choice.text, choice.probability) for choice in answer.choices],
        "tokens": answer.tokens,
        "looks": seen and [_drawing(seen, frame, _looked_words(seen, frame)) for frame in range(len(seen.fate))],
        "bars": _bars(stages, terminal.all_stages(rival) if rival else {}),
        "sums": [*terminal.time_rows(answer), *terminal.cost_rows(answer)],
        "rival": rival and {"text": rival.text, "agrees": answer.agrees(rival), "rows": _compared(answer, rival)},
    }


def _bars(stages: Mapping[str, float], rival: Mapping[str, float]) -> list[dict[str, Any]]:
    """A row a stage: how long it took, where its bar starts and ends; and the rival's, from the same zero."""
    whole = max(sum(stages.values()), sum(rival.get(name, 0.0) for name in stages)) or 1.0
    rows, begun, rival_begun = [], 0.0, 0.0
    for name, ms in stages.items():
        rival_ms = rival.get(name)
        rows.append(
            {
                "label": terminal.STAGE_LABELS.get(name, name),
                "kind": "first" if name in terminal.TTFT_STAGES else "other",
                "time": text.milliseconds(ms),
                "bar": (begun / whole, ms / whole),
                "rival_time": text.milliseconds(rival_ms),
                "rival_bar": (rival_begun / whole, (rival_ms or 0.0) / whole),
            }
        )
        begun, rival_begun = begun + ms, rival_begun + (rival_ms or 0.0)
    return rows


def _compared(answer: Answer, rival: Answer) -> list[tuple[str, str, str, str]]:
    return [
        (label, write(ours), write(theirs), text.times(theirs, ours))
        for label, write, ours, theirs in terminal.compared(answer, rival)
    ]


# --- all the rest ------------------------------------------------------------------------------


def flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The JSON record as names and values, lists of plain values in one."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for number, item in enumerate(value, 1):
            yield from flat(item, f"{name} {number}")
    elif isinstance(value, list):
        yield name, ", ".join(map(_plain, value)) or "none"
    else:
        yield name, _plain(value)


def _plain(value: Any) -> str:
    if value is None or value in ({}, ""):
        return "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
