"""`holitom batch`: a row for every clip and question, once, whatever happens in between."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from holitom_cli.batch import manifest
from holitom_cli.batch.ledger import last_rows
from holitom_cli.cli import rows as row_room
from holitom_cli.errors import BatchError
from tests.program import FAST, PROGRAM, SCHEMA, Done, Invoke, environment

QUESTIONS = ("What is shown in the video?", "Is it night?")
ASK = [part for question in QUESTIONS for part in ("-q", question)]


def rows_in(text: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in text.splitlines()]
    for row in rows:
        SCHEMA.validate(row)
    return rows


def rows_of(path: Path) -> list[dict[str, Any]]:
    return rows_in(path.read_text(encoding="utf-8"))


def summary(done: Done) -> str:
    return done.err.splitlines()[-1]


@pytest.fixture
def folder(tmp_path: Path, demo_clip: Path) -> Path:
    """Two clips, one of which is none, among other files."""
    place = tmp_path / "clips"
    (place / "below").mkdir(parents=True)
    shutil.copy(demo_clip, place / "a.MP4")
    shutil.copy(demo_clip, place / "below" / "deep.mp4")
    shutil.copy(demo_clip, place / ".hidden.mp4")
    (place / "broken.mkv").write_text("not a video", encoding="utf-8")
    (place / "notes.txt").write_text("about the clips", encoding="utf-8")
    (place / "folder.mp4").mkdir()
    return place


@pytest.fixture
def batch(invoke: Invoke, tmp_path: Path) -> Any:
    """Run a batch into rows.jsonl."""

    def call(*arguments: str | Path) -> Done:
        return invoke("batch", *arguments, *ASK, *FAST, "--output", tmp_path / "rows.jsonl")

    return call


def test_rows_for_every_clip_and_question(batch: Any, folder: Path, tmp_path: Path) -> None:
    done = batch(folder)
    assert (done.code, done.out) == (3, "")  # some failed
    rows = rows_of(tmp_path / "rows.jsonl")
    assert sorted((Path(row["video"]["path"]).name, row["question"], "answer" in row) for row in rows) == [
        (name, question, name == "a.MP4") for name in ("a.MP4", "broken.mkv") for question in sorted(QUESTIONS)
    ]
    assert [row["error"]["stage"] for row in rows if "error" in row] == ["video"] * 2
    assert len({row["key"] for row in rows}) == 4
    assert summary(done) == "2 answered, 2 failed, 0 skipped"
    assert "broken.mkv: failed: broken.mkv is not a video that can be read." in done.err


def test_a_row_is_what_ask_answers(batch: Any, invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:
    assert batch(demo_clip).code == 0
    answers = [row["answer"] for row in rows_of(tmp_path / "rows.jsonl")]
    asked = invoke("ask", demo_clip, *ASK, *FAST, "--json").document()["results"]
    assert answers == [result["answer"] for result in asked]
    assert any(answers)


def test_run_again_it_skips_what_is_there(batch: Any, folder: Path, tmp_path: Path, demo_clip: Path) -> None:
    batch(folder)
    (folder / "a.MP4").rename(folder / "renamed.mp4")
    again = batch(folder)
    before = "2 failed before (--retry-failed tries again)"
    assert (again.code, summary(again)) == (3, f"0 answered, 0 failed, 2 skipped, {before}")
    assert len(rows_of(tmp_path / "rows.jsonl")) == 4
    retried = batch(folder, "--retry-failed")
    assert (retried.code, summary(retried)) == (3, "0 answered, 2 failed, 2 skipped")
    assert len(rows_of(tmp_path / "rows.jsonl")) == 6
    forced = batch(folder, "--force")
    assert (forced.code, summary(forced)) == (3, "2 answered, 2 failed, 0 skipped")
    assert len(last_rows(tmp_path / "rows.jsonl")) == 4
    longer = bytearray(demo_clip.read_bytes()) + bytes(8)  # another file, as far as anyone can tell
    (folder / "broken.mkv").write_bytes(longer)
    mended = batch(folder)
    assert (mended.code, summary(mended)) == (0, "2 answered, 0 failed, 2 skipped")
    finished = batch(folder)
    assert (finished.code, summary(finished)) == (0, "0 answered, 0 failed, 4 skipped")
    answered = [row["key"] for row in rows_of(tmp_path / "rows.jsonl") if "answer" in row]
    assert len(answered) == 6  # two of them again, by force
    assert len(set(answered)) == 4


def test_the_same_clip_twice_is_answered_once(batch: Any, demo_clip: Path, tmp_path: Path) -> None:
    shutil.copy(demo_clip, tmp_path / "copy.mp4")
    done = batch(demo_clip, demo_clip, demo_clip.parent, tmp_path / "copy.mp4")
    assert (done.code, summary(done)) == (0, "2 answered, 0 failed, 2 skipped")
    assert len(rows_of(tmp_path / "rows.jsonl")) == 2


CHANGES = [
    ["--num-frames", "3"],
    ["--max-new-tokens", "4"],
    ["--tau", "0.7"],
    ["--method", "full"],
    ["--dtype", "bfloat16"],
    ["--seed", "1"],
]


def test_other_settings_are_other_rows(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:
    def call(*options: str) -> str:
        return summary(invoke("batch", demo_clip, "-q", "What?", *FAST, "-o", tmp_path / "rows.jsonl", *options))

    assert call() == "1 answered, 0 failed, 0 skipped"
    assert call() == "0 answered, 0 failed, 1 skipped"
    for change in CHANGES:
        assert call(*change) == "1 answered, 0 failed, 0 skipped", change
    keys = [row["key"] for row in rows_of(tmp_path / "rows.jsonl")]
    assert len(keys) == len(set(keys)) == 1 + len(CHANGES)


def test_without_a_file_rows_go_to_stdout(invoke: Invoke, folder: Path) -> None:
    done = invoke("batch", folder, *ASK, *FAST, "--quiet")
    assert (done.code, done.err) == (3, "")
    assert len(rows_in(done.out)) == 4


def test_a_torn_last_row_is_mended(batch: Any, demo_clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    batch(demo_clip)
    whole = output.read_bytes()
    output.write_bytes(whole[:-200])  # as a crash in the middle of the last row leaves it
    done = batch(demo_clip)
    assert (done.code, summary(done)) == (0, "1 answered, 0 failed, 1 skipped")
    assert sorted(row["question"] for row in rows_of(output)) == sorted(QUESTIONS)
    output.write_bytes(whole[:-1])  # only the end of line is missing
    assert summary(batch(demo_clip)) == "0 answered, 0 failed, 2 skipped"
    assert output.read_bytes() == whole


OTHER_FILES = [
    "a diary\n",
    '{"name": "settings"}\n',
    "[1, 2]\n",
    '"answer"\n',
    '{"key": "x"}\nsomething else\n',
    "\x00\n",
]


@pytest.mark.parametrize("content", OTHER_FILES)
def test_a_file_of_something_else_is_left_alone(batch: Any, demo_clip: Path, tmp_path: Path, content: str) -> None:
    output = tmp_path / "rows.jsonl"
    output.write_text(content, encoding="utf-8")
    batch(demo_clip).sentence(1, "rows.jsonl is not a row of a batch, so nothing is added to that file.")
    assert output.read_text(encoding="utf-8") == content


def test_outputs_that_cannot_be_written(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for output, said in (
        (tmp_path / "folder", "Is a directory."),
        (tmp_path / "no" / "rows", "No such file or directory."),
    ):
        invoke("batch", demo_clip, *ASK, *FAST, "-o", output).sentence(1, said)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(invoke: Invoke, demo_clip: Path) -> None:
    done = invoke("batch", demo_clip, *ASK, *FAST, "-o", "/dev/full")
    assert (done.code, done.out) == (1, "")
    assert "error: /dev/full cannot be written: No space left on device." in done.err
    assert "hint: Make room there" in done.err
    assert "Traceback" not in done.err


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are others there")
def test_a_disk_that_fills_up_keeps_whole_rows(
    batch: Any, tmp_path: Path, demo_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a row is written, files of this process may grow to 4 KiB: room for one row, not for two."""
    import resource

    limits, append = resource.getrlimit(resource.RLIMIT_FSIZE), row_room._append

    def cramped(*arguments: Any, **options: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            append(*arguments, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with monkeypatch.context() as patch:
        patch.setattr(row_room, "_append", cramped)
        done = batch(demo_clip)
    assert done.code == 1
    assert "rows.jsonl cannot be written: File too large." in done.err
    assert len(rows_of(tmp_path / "rows.jsonl")) == 1  # and nothing torn
    assert summary(batch(demo_clip)) == "1 answered, 0 failed, 1 skipped"


def test_nothing_is_left_where_nothing_was_done(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    invoke("batch", demo_clip, *ASK, "--model", "nowhere/at/all", "-o", output).sentence(1, "There is no directory")
    assert not output.exists()


def test_wrong_usage(invoke: Invoke, tmp_path: Path, demo_clip: Path) -> None:
    (tmp_path / "empty").mkdir()
    invoke("batch", tmp_path / "empty", "-q", "What?").sentence(2, "There is no video file in the given folders.")
    invoke("batch", demo_clip).sentence(2, "There is no question.")
    invoke("batch", demo_clip, "-q", "What?", "--tau", "7").sentence(2, "Setting tau is 7.0")
    invoke("batch", demo_clip, "-Q", "nope.txt").sentence(2, "nope.txt cannot be read")


def test_a_clip_that_is_not_there_is_a_failed_row(batch: Any, tmp_path: Path) -> None:
    assert batch(tmp_path / "gone.mp4").code == 3
    assert [row["error"]["message"] for row in rows_of(tmp_path / "rows.jsonl")] == ["There is no file gone.mp4."] * 2


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are others there")
def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path, demo_clip: Path, folder: Path) -> None:
    """As in `holitom batch ... | head -1`."""
    process = subprocess.Popen(
        [PROGRAM, "batch", folder, demo_clip, *ASK, *FAST],
        env=environment(tmp_path), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    assert rows_in(process.stdout.readline().decode())
    process.stdout.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(60) == 0
    assert "Traceback" not in said
    assert "error" not in said


# --- the manifest by itself -------------------------------------------------------------------


def test_a_clip_is_known_by_its_content(tmp_path: Path) -> None:
    def identity(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return manifest.clip_identity(tmp_path / name)

    content = bytes(range(256)) * 2048
    first = identity("a", content)
    assert identity("b", content) == first
    for place in (0, 200_000, len(content) // 2, len(content) - 1):
        changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        assert identity("c", changed) != first
    assert identity("d", content + b"\x00") != first
    assert identity("e", b"") != identity("f", b"x")
    assert manifest.clip_identity(tmp_path / "none") != manifest.clip_identity(tmp_path / "nil")


def test_a_folder_of_pictures_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"one")
    first = manifest.clip_identity(tmp_path)
    assert manifest.clip_identity(tmp_path) == first
    (tmp_path / "2.png").write_bytes(b"two")
    assert manifest.clip_identity(tmp_path) != first


def test_keys_tell_apart_what_is_different() -> None:
    base = ("clip", "question", {"a": 1, "b": [2, None]})
    key = manifest.question_key(*base)
    assert key == manifest.question_key("clip", "question", {"b": [2, None], "a": 1})  # order does not matter
    others = [("other", *base[1:]), ("clip", "other", base[2]), ("clip", "question", {"a": 2, "b": [2, None]})]
    assert len({key, *(manifest.question_key(*other) for other in others)}) == 4


def test_only_answers_are_finished(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    assert manifest.finished_rows(output) == {}
    output.write_text('{"key": "1", "answer": ""}\n{"key": "2", "error": {}}\n{"key": "3", "answ', encoding="utf-8")
    assert manifest.finished_rows(output) == {"1": {"key": "1", "answer": ""}}
    output.write_text('{"kay": "1"}\n', encoding="utf-8")
    with pytest.raises(BatchError, match=r"Line 1 of .*rows\.jsonl"):
        manifest.finished_rows(output)


def test_a_link_that_leads_nowhere_is_a_row(batch: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    done = batch(tmp_path / "links")
    assert (done.code, summary(done)) == (3, "0 answered, 2 failed, 0 skipped")  # of two questions
    named = {row["video"]["path"] for row in rows_of(tmp_path / "rows.jsonl")}
    assert named == {str(tmp_path / "links" / "gone.mp4")}


def test_a_clip_that_is_cut_off_is_told_of(batch: Any, demo_clip: Path, tmp_path: Path) -> None:
    whole = demo_clip.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 7 // 10])
    done = batch(tmp_path / "cut.mp4")
    assert done.code == 0
    assert "could not be read" in " ".join(done.err.split())
    assert "could not be read" not in batch(demo_clip).err
