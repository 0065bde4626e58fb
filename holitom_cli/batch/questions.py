"""What is asked: questions of the command line, and files of questions that may name a clip each."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from holitom_cli.errors import UsageError, reason

_CLIP_NAMES = ("video", "clip", "path")
_EXAMPLE = 'A line is as {"video": "a.mp4", "question": "What happens?"}; "video" and "custom_id" may be left out.'


@dataclass(frozen=True, slots=True)
class Asked:
    """One question, of all clips or of one."""

    text: str
    custom_id: str | None = None  # the user's own name for its row
    clip: Path | None = None

    def settings(self, general: Mapping[str, Any]) -> Mapping[str, Any]:
        """What else its answer's key depends on."""
        return general if self.custom_id is None else {**general, "custom_id": self.custom_id}


@dataclass(frozen=True, slots=True)
class Job:
    """A clip, or a stretch of it, and its questions."""

    clip: Path
    asked: tuple[Asked, ...]
    window: tuple[float, float] | None = None  # start and end in seconds from the clip's first frame
    identity: str | None = None  # of the clip's content, where it is known
    number: int = 0  # among all jobs; its windows have the same


def read_table(file: Path) -> list[Asked]:
    """Questions of a .jsonl, .csv or .parquet file; of any other file every line is one.

    Paths of clips are relative to the file.

    Raises:
        UsageError: the file cannot be read, or a row has no question.
    """
    readers = {".jsonl": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    try:
        rows = list(readers.get(file.suffix.lower(), _lines)(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"The questions in {file} cannot be read: {reason(error)}.", "Give a text file.") from error
    asked = [_asked(row, file, number) for number, row in rows]
    ids = Counter(one.custom_id for one in asked if one.custom_id is not None)
    if double := next((name for name, count in ids.items() if count > 1), None):
        raise UsageError(f"{file} has custom_id {double!r} more than once.", "Give every question its own.")
    return asked


def jobs(clips: Sequence[Path], asked: Sequence[Asked]) -> list[Job]:
    """One job a clip: questions without a clip are asked of all `clips`, the others of their own.

    Raises:
        UsageError: no clip, no question, or an empty one.
    """
    general = tuple(dict.fromkeys(one for one in asked if one.clip is None))
    if not clips and len(general) == len(asked):
        raise UsageError("There is no clip to ask about.", "Name files or folders, or a video in every question.")
    if not asked:
        raise UsageError("There is no question.", 'As in: -q "What happens?"')
    for one in asked:
        check_text(one.text)
    if general and not clips:
        raise UsageError(
            f"{len(general)} of {len(asked)} questions name no video.", "Name files or folders to ask them about."
        )
    whole = {clip.absolute(): Job(clip, general) for clip in clips}
    for one in asked:
        if one.clip is not None:
            job = whole.get(one.clip.absolute(), Job(one.clip, ()))
            whole[one.clip.absolute()] = replace(job, asked=(*job.asked, one))
    asking = (job for job in whole.values() if job.asked)
    return [replace(job, number=number) for number, job in enumerate(asking)]


def check_text(question: str) -> None:
    """Refuse what cannot be asked.

    Raises:
        UsageError: nothing, or no text.
    """
    if not question.strip():
        raise UsageError("A question is empty.", 'As in: -q "What happens?"')
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"The question {question!r} is not valid text.", "Give text in UTF-8.") from error


def _asked(row: Mapping[str, Any], file: Path, number: int) -> Asked:
    question, custom_id = row.get("question"), row.get("custom_id")
    if not isinstance(question, str) or not question.strip():
        raise UsageError(f"Row {number} of {file} has no question.", _EXAMPLE)
    clip = next((row[name] for name in _CLIP_NAMES if row.get(name)), None)
    if clip is not None and not isinstance(clip, str):
        raise UsageError(f"Row {number} of {file} has a video that is no path.", _EXAMPLE)
    place = None if clip is None else file.parent / clip
    return Asked(question.strip(), None if custom_id in (None, "") else str(custom_id), place)


def _lines(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
        if line.strip():
            yield number, {"question": line}


def _json_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"Line {number} of {file} is not JSON: {reason(error)}.", _EXAMPLE) from error
        if not isinstance(row, dict):
            raise UsageError(f"Line {number} of {file} is not a JSON object.", _EXAMPLE)
        yield number, row


def _csv_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with file.open(encoding="utf-8-sig", newline="") as text:
        yield from enumerate(csv.DictReader(text), 2)


def _parquet_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    arrow = pyarrow()
    try:
        rows = arrow.parquet.read_table(file).to_pylist()
    except arrow.ArrowException as error:
        raise UsageError(f"The questions in {file} cannot be read: {reason(error)}.", "Give a Parquet file.") from error
    yield from enumerate(rows, 1)


def pyarrow() -> Any:
    """The library that reads and writes Parquet.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import pyarrow as arrow  # type: ignore[import-not-found,import-untyped,unused-ignore]
        import pyarrow.parquet  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise UsageError(
            "Parquet files need the library pyarrow, which is not installed.",
            "Run: pip install pyarrow, or use JSONL or CSV.",
        ) from error
    return arrow
