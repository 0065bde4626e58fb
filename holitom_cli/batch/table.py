"""The rows of a batch for other programs: CSV, Parquet, a Markdown table, and subtitles."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from holitom_cli.errors import UsageError

Row = Mapping[str, Any]


class Format(StrEnum):
    """What rows are written as, besides JSONL."""

    csv = "csv"
    parquet = "parquet"
    md = "md"
    srt = "srt"
    vtt = "vtt"


_COLUMNS: dict[str, Callable[[Row], Any]] = {
    "key": lambda row: row["key"],
    "custom_id": lambda row: row.get("custom_id"),
    "video": lambda row: (row.get("video") or {}).get("path"),
    "start_s": lambda row: row.get("start_s"),
    "end_s": lambda row: row.get("end_s"),
    "question": lambda row: row["question"],
    "answer": lambda row: row.get("answer"),
    "error": lambda row: row["error"]["message"] if "error" in row else None,
    "model": lambda row: row["model"]["id"] if "model" in row else None,
    "method": lambda row: row.get("method"),
    "frames": lambda row: row["tokens"]["frames"] if "tokens" in row else None,
    "visual_tokens": lambda row: row["tokens"]["visual"] if "tokens" in row else None,
    "retained_ratio": lambda row: row["tokens"]["retained_ratio"] if "tokens" in row else None,
    "generated_tokens": lambda row: row["tokens"]["generated"] if "tokens" in row else None,
}


def write(rows: Sequence[Row], kind: Format, output: Path) -> list[Path]:
    """Write rows beside the JSONL file that they come from, under its name with another ending; returns the files.

    Subtitles are a file a clip, with its name in between where there are several.

    Raises:
        UsageError: no row has times for subtitles, or pyarrow is not there for Parquet.
    """
    if kind in (Format.srt, Format.vtt):
        contents = {name: text.encode() for name, text in _tracks(rows, kind, output).items()}
    else:
        contents = {output.with_suffix(f".{kind}"): _TABLES[kind](rows)}
    for path, content in contents.items():
        unfinished = path.with_name(f"{path.name}.unfinished")
        unfinished.write_bytes(content)
        unfinished.replace(path)  # whoever reads it finds the old file or the whole new one
    return list(contents)


def _csv(rows: Iterable[Row]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    writer.writerows([take(row) for take in _COLUMNS.values()] for row in rows)
    return text.getvalue().encode()


def _parquet(rows: Iterable[Row]) -> bytes:
    from holitom_cli.batch.questions import pyarrow

    arrow, listed = pyarrow(), list(rows)
    kinds = {"start_s": "double", "end_s": "double", "retained_ratio": "double"}
    kinds |= dict.fromkeys(("frames", "visual_tokens", "generated_tokens"), "int64")
    schema = arrow.schema([(name, arrow.type_for_alias(kinds.get(name, "string"))) for name in _COLUMNS])
    columns = {name: [take(row) for row in listed] for name, take in _COLUMNS.items()}
    content = io.BytesIO()
    arrow.parquet.write_table(arrow.table(columns, schema), content)
    return content.getvalue()


def _markdown(rows: Iterable[Row]) -> bytes:
    lines = ["| video | question | answer |", "| --- | --- | --- |"]
    for row in rows:
        said = row["answer"] if "answer" in row else f"*{row['error']['message']}*"
        cells = (_place(row), row["question"], said)
        lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
    return ("\n".join(lines) + "\n").encode()


_TABLES = {Format.csv: _csv, Format.parquet: _parquet, Format.md: _markdown}


def _place(row: Row) -> str:
    name = Path(str(_COLUMNS["video"](row))).name
    return name if row.get("start_s") is None else f"{name} {_clock(row['start_s'], '.')[:8]}"


def _tracks(rows: Sequence[Row], kind: Format, output: Path) -> dict[Path, str]:
    """The subtitles of each clip, by file."""
    clips: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("start_s") is not None and "answer" in row:
            clips.setdefault(str(_COLUMNS["video"](row)), []).append(row)
    if not clips:
        raise UsageError(f"No answer has times to write {kind} from.", "Use --every 60s.")
    tracks: dict[Path, str] = {}
    for number, (clip, told) in enumerate(clips.items()):
        path = output.with_suffix(f".{kind}" if len(clips) == 1 else f".{Path(clip).stem}.{kind}")
        if path in tracks:  # clips of one name in several folders
            path = output.with_suffix(f".{Path(clip).stem}.{number}.{kind}")
        tracks[path] = _track(told, kind)
    return tracks


def _track(rows: Sequence[Row], kind: Format) -> str:
    """Cues in the order of their times; where there are several questions, each answer has its own before it."""
    mark = "," if kind is Format.srt else "."
    several = len({row["question"] for row in rows}) > 1
    cues: dict[tuple[float, float], list[str]] = {}
    for row in sorted(rows, key=lambda row: (row["start_s"], row["question"])):
        said = " ".join(f"{row['question']} {row['answer']}".split() if several else row["answer"].split())
        cues.setdefault((row["start_s"], row["end_s"]), []).append(said.replace("-->", "->") or "...")
    parts = ["WEBVTT\n"] if kind is Format.vtt else []
    for number, ((start, end), lines) in enumerate(cues.items(), 1):
        parts.append(f"{number}\n{_clock(start, mark)} --> {_clock(end, mark)}\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _clock(seconds: float, mark: str) -> str:
    """3725.5 -> 01:02:05,500."""
    minutes, rest = divmod(round(seconds * 1000), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{mark}{rest % 1000:03}"
