"""The rows of a batch as one self-contained HTML page: what was answered, what failed and why, tokens and times.

A small script sorts the table; everything can be read without it, and the page's policy admits no other.
"""

from __future__ import annotations

import io
import math
import os
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from holitom_cli.report import text
from holitom_cli.report.files import write_whole
from holitom_cli.report.page import template, template_source

if TYPE_CHECKING:
    from holitom_cli.types import ByteArray

Row = Mapping[str, Any]
Place = tuple[str, float, bool]  # a clip's path, seconds from its first frame, whether the next key frame will do

_LONG_SECONDS = 30  # of a clip: a longer one has a key frame near, and exact reading would take long
# The longest side in pixels of a clip's picture, for so many rows at most: all of them together stay below 6 MB.
_THUMBNAIL_SIDES = {2500: 96, 6000: 64}
_BARS = 24  # of a distribution
_SCRIPT = "sort.js"


def write_summary(rows: Sequence[Row], file: Path, title: str, thumbnails: Mapping[Place, bytes] | None = None) -> None:
    """Write the page of `summary_page` to a file, with links to the rows' own pages that are there."""
    write_whole(file, summary_page(rows, title, thumbnails, file.parent))


def places(rows: Iterable[Row]) -> list[Place]:
    """Where in which clips a picture of each answered row is taken: in the middle of what was looked at."""
    return list(dict.fromkeys(place for row in rows if (place := _place(row))))


def _place(row: Row) -> Place | None:
    video, times = row.get("video"), row.get("sampling", {}).get("frame_times_s")
    if not (video and times):
        return None
    return video["path"], times[len(times) // 2], video["duration_s"] > _LONG_SECONDS


def thumbnail_side(rows: int) -> int:
    """The longest side in pixels of a clip's picture on a page of so many rows; 0 where there is no room for any."""
    return next((side for most, side in _THUMBNAIL_SIDES.items() if rows <= most), 0)


def thumbnail(picture: ByteArray) -> bytes:
    """A small picture (H, W, 3) uint8 as a WebP file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", quality=40)
    return file.getvalue()


def summary_page(
    rows: Iterable[Row], title: str, thumbnails: Mapping[Place, bytes] | None = None, folder: Path = Path()
) -> str:
    """Return an HTML page about the rows of a batch.

    Args:
        rows: as `record.flat_record` and `record.error_record` make them, in any order.
        title: what the page is called.
        thumbnails: pictures of clips as `thumbnail` makes them, by `places`.
        folder: where the page will lie, for links from there.
    """
    listed = list(rows)
    failed = [row for row in listed if "error" in row]
    answered = [row for row in listed if "error" not in row]
    script = template_source(_SCRIPT)
    return template("summary.html.jinja").render(
        title=title,
        clips=len({(row.get("video") or {}).get("path") for row in listed}),
        answered=len(answered),
        failures=Counter((row["error"]["stage"], row["error"]["message"]) for row in failed).most_common(),
        setups=Counter((row["model"]["id"], row["method"]) for row in answered).most_common(),
        distributions=[
            spread for name, value, write in _MEASURES if (spread := _distribution(name, value, write, answered))
        ],
        rows=[_line(row, thumbnails or {}, folder) for row in listed],
        script=script,
        script_hash=b64encode(sha256(script.encode()).digest()).decode("ascii"),
    )


_Value = Callable[[Row], float | None]
_Write = Callable[[Any], str]

_MEASURES: tuple[tuple[str, _Value, _Write], ...] = (
    ("visual tokens", lambda row: row["tokens"]["visual"], lambda value: text.count(round(value))),
    ("share kept", lambda row: row["tokens"]["retained_ratio"], text.percent),
    ("TTFT", lambda row: row["timings"]["ttft_ms"], text.milliseconds),
    ("time to answer", lambda row: row["timings"]["time_to_answer_s"], text.seconds),
)


def _line(row: Row, thumbnails: Mapping[Place, bytes], folder: Path) -> dict[str, Any]:
    """One row of the table: words, and each measure as (number to sort by, how it is written)."""
    path, error = (row.get("video") or {}).get("path") or "", row.get("error")
    place = _place(row)
    picture = thumbnails.get(place) if place else None
    measures = [None if error else value(row) for _, value, _ in _MEASURES]
    return {
        "path": path,
        "name": PurePath(path).name or "no file",
        "page": _link(row.get("page"), folder),
        "picture": "data:image/webp;base64," + b64encode(picture).decode("ascii") if picture else "",
        "when": text.moment(place[1]) if place else "",
        "question": row.get("question") or "",
        "answer": error["message"] if error else row["answer"],
        "failed": bool(error),
        "measures": [
            ("", "") if number is None else (f"{number:.9g}", write(number))
            for number, (_, _, write) in zip(measures, _MEASURES, strict=True)
        ],
    }


def _link(page: str | None, folder: Path) -> str:
    """The address of a row's own page, from the folder of this one; empty where it is not there."""
    if not page or not Path(page).is_file():
        return ""
    return quote(Path(os.path.relpath(page, folder)).as_posix())


def _distribution(name: str, value: _Value, write: _Write, rows: Sequence[Row]) -> dict[str, Any] | None:
    """Least, middle, 95 of 100 and most of a measure, and how often each part of its range occurs."""
    numbers = sorted(number for row in rows if (number := value(row)) is not None)
    if not numbers:
        return None
    least, most = numbers[0], numbers[-1]
    width = (most - least) / _BARS or 1.0
    heights = Counter(min(int((number - least) / width), _BARS - 1) for number in numbers)
    highest = max(heights.values())
    return {
        "name": name,
        "figures": [
            ("least", write(least)),
            ("median", write(_quantile(numbers, 0.5))),
            ("95%", write(_quantile(numbers, 0.95))),
            ("most", write(most)),
        ],
        "bars": [heights[bar] / highest for bar in range(_BARS)],
    }


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest number that so large a share of them does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
