"""Rows as CSV, Parquet, Markdown and subtitles."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from holitom_cli.batch.table import Format, write
from holitom_cli.errors import UsageError


def row(number: int, **more: Any) -> dict[str, Any]:
    told = {"model": {"id": "demo"}, "method": "holitom", "answer": f"answer {number}"}
    counts = {"frames": 4, "visual": 30, "retained_ratio": 0.15, "generated": 2}
    return {"key": str(number), "video": {"path": "/x/a.mp4"}, "question": "What?", **told, "tokens": counts, **more}


def failed(number: int) -> dict[str, Any]:
    kept = {key: value for key, value in row(number).items() if key in ("key", "video", "question")}
    return {**kept, "error": {"message": 'A "bad" clip, | really.'}}


def test_csv_has_answers_and_errors(tmp_path: Path) -> None:
    rows = [row(1, answer='said "a, b"\nand c', custom_id="mine"), failed(2)]
    (path,) = write(rows, Format.csv, tmp_path / "rows.jsonl")
    assert path == tmp_path / "rows.csv"
    first, second = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
    assert (first["answer"], first["custom_id"], first["visual_tokens"]) == ('said "a, b"\nand c', "mine", "30")
    assert (second["answer"], second["error"]) == ("", 'A "bad" clip, | really.')
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.csv"]


def test_parquet_has_types(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    (path,) = write([row(1, start_s=0.0, end_s=2.5), failed(2)], Format.parquet, tmp_path / "rows.jsonl")
    first, second = parquet.read_table(path).to_pylist()
    assert (first["answer"], first["end_s"], first["frames"], first["retained_ratio"]) == ("answer 1", 2.5, 4, 0.15)
    assert (second["answer"], second["error"], second["end_s"]) == (None, 'A "bad" clip, | really.', None)


def test_markdown_stays_a_table(tmp_path: Path) -> None:
    rows = [row(1, answer="a | b\nc"), failed(2), row(3, start_s=3725.0, end_s=3785.0)]
    (path,) = write(rows, Format.md, tmp_path / "rows.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[2:] == [
        "| a.mp4 | What? | a \\| b c |",
        '| a.mp4 | What? | *A "bad" clip, \\| really.* |',
        "| a.mp4 01:02:05 | What? | answer 3 |",
    ]


def test_subtitles_in_the_order_of_their_times(tmp_path: Path) -> None:
    rows = [row(2, start_s=60.0, end_s=3725.5), row(1, start_s=0.0, end_s=60.0, answer="a --> b"), failed(3)]
    (path,) = write(rows, Format.srt, tmp_path / "rows.jsonl")
    assert path.read_text(encoding="utf-8") == (
        "1\n00:00:00,000 --> 00:01:00,000\na -> b\n\n2\n00:01:00,000 --> 01:02:05,500\nanswer 2\n"
    )
    (path,) = write(rows, Format.vtt, tmp_path / "rows.jsonl")
    assert path.read_text(encoding="utf-8").startswith("WEBVTT\n\n1\n00:00:00.000 --> 00:01:00.000\n")


def test_subtitles_of_several_questions_and_clips(tmp_path: Path) -> None:
    other = {"video": {"path": "/y/a.mp4"}, "start_s": 0.0, "end_s": 5.0}
    rows = [row(1, start_s=0.0, end_s=5.0), row(2, start_s=0.0, end_s=5.0, question="Why?"), row(3, **other)]
    first, second = write(rows, Format.srt, tmp_path / "rows.jsonl")
    assert (first.name, second.name) == ("rows.a.srt", "rows.a.1.srt")
    assert first.read_text(encoding="utf-8").endswith("\nWhat? answer 1\nWhy? answer 2\n")


def test_without_times_there_are_no_subtitles(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No answer has times") as caught:
        write([row(1)], Format.vtt, tmp_path / "rows.jsonl")
    assert "--every" in caught.value.hint
