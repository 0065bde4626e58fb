"""Question files, and who is asked what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holitom_cli.batch.questions import Asked, Job, jobs, read_table
from holitom_cli.errors import UsageError

ROWS = [
    {"custom_id": "one", "video": "a.mp4", "question": "What?"},
    {"custom_id": "two", "video": "deep/b.mp4", "question": "Why, and | how?"},
    {"question": "Is it night?"},
]


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    elif path.suffix == ".csv":
        lines = [",".join(f'"{row.get(name, "")}"' for name in ("question", "custom_id", "video")) for row in rows]
        path.write_text("﻿question,custom_id,video\n" + "\n".join(lines), encoding="utf-8")
    else:
        arrow = pytest.importorskip("pyarrow")
        names = ("question", "custom_id", "video")
        pytest.importorskip("pyarrow.parquet").write_table(
            arrow.table({name: [row.get(name) for row in rows] for name in names}), path
        )
    return path


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_tables_say_the_same_in_every_format(tmp_path: Path, ending: str) -> None:
    assert read_table(write(tmp_path / f"q.{ending}", ROWS)) == [
        Asked("What?", "one", tmp_path / "a.mp4"),
        Asked("Why, and | how?", "two", tmp_path / "deep" / "b.mp4"),
        Asked("Is it night?"),
    ]


def test_any_other_file_has_a_question_a_line(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("One?\n\n Two? \n", encoding="utf-8")
    assert read_table(tmp_path / "q.txt") == [Asked("One?"), Asked("Two?")]


WRONG: dict[str, list[tuple[str | bytes, str]]] = {
    "q.jsonl": [
        ('{"question": ""}', "Row 1 of .* has no question"),
        ('{"question": 3}', "Row 1 of .* has no question"),
        ('{"question": "a", "video": 3}', "a video that is no path"),
        ("{", "Line 1 of .* is not JSON"),
        ("[]", "Line 1 of .* is not a JSON object"),
        ('{"question": "a", "custom_id": "x"}\n{"question": "b", "custom_id": "x"}', "custom_id 'x' more than once"),
        (b"\xff", "cannot be read"),
    ],
    "q.csv": [("video\na.mp4", "Row 2 of .* has no question")],
    "q.txt": [(b"\xff", "cannot be read")],
}


@pytest.mark.parametrize(
    ("name", "content", "said"), [(name, *case) for name, cases in WRONG.items() for case in cases]
)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=said) as caught:
        read_table(tmp_path / name)
    assert caught.value.hint


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_table(tmp_path / "nope.jsonl")


def test_parquet_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "q.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UsageError, match="need the library pyarrow") as caught:
        read_table(tmp_path / "q.parquet")
    assert "pip install pyarrow" in caught.value.hint


def test_general_questions_go_to_all_clips_and_others_to_their_own() -> None:
    a, b, c = (Path(f"{name}.mp4") for name in "abc")
    own, more, every = Asked("Own?", None, a), Asked("More?", "x", c), Asked("Every?")
    assert jobs([a, b], [own, every, more, every]) == [
        Job(a, (every, own)), Job(b, (every,), number=1), Job(c, (more,), number=2),
    ]  # fmt: skip
    assert jobs([], [own]) == [Job(a, (own,))]
    assert jobs([a.absolute()], [own, every]) == [Job(a.absolute(), (every, own))]  # the same clip by another name
    assert jobs([a, b], [own]) == [Job(a, (own,))]


def test_who_is_asked_nothing() -> None:
    a = Path("a.mp4")
    for clips, asked, said in (
        ([], [Asked("Who?")], "no clip to ask about"),
        ([a], [], "no question"),
        ([a], [Asked(" ")], "question is empty"),
        ([a], [Asked("\udcff")], "not valid text"),
        ([], [Asked("Who?"), Asked("Own?", None, a)], "1 of 2 questions name no video"),
    ):
        with pytest.raises(UsageError, match=said):
            jobs(clips, asked)
