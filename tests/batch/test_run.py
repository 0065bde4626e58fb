"""`holitom batch` as its users run it: inputs, windows, failures, Ctrl-C, a second run beside the first."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.batch.kills import broken_clips, killed_and_resumed, rows_by_place, uninterrupted
from tests.clips import make
from tests.program import FAST, PROGRAM, SCHEMA, Invoke, environment

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
SMALL = (*FAST, "--no-cache", "-q", "What?")


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        SCHEMA.validate(row)
    return rows


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(3):
        make(folder / f"{number}.mp4", frames=20 + number)
    return folder


# --- inputs -----------------------------------------------------------------------------------


def test_lists_of_paths_come_from_files_and_stdin(invoke: Invoke, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("clips/0.mp4\nclips/2.mp4\n", encoding="utf-8")
    for given, stdin in (
        (["--from-file", "list"], ""),
        (["--from-file", "-"], "clips/0.mp4\nclips/2.mp4\n"),
        (["-", "-0"], "clips/0.mp4\0clips/2.mp4\0"),
        (["clips", "--exclude", "1*"], ""),
        ([str(clips / "[02].mp4")], ""),
    ):
        done = invoke("batch", *given, *SMALL, stdin=stdin)
        assert done.code == 0, done.err
        names = sorted(Path(json.loads(line)["video"]["path"]).name for line in done.out.splitlines())
        assert names == ["0.mp4", "2.mp4"], given


def test_lists_that_make_no_sense(invoke: Invoke, clips: Path) -> None:
    for given, said in (
        (["clips", "-0"], "There is no list that -0 could separate."),
        (["-", "--from-file", "-"], "Stdin can be read once only."),
        (["-"], "The list of paths is empty."),
        (["--from-file", "nope"], "The list nope cannot be read: no such file or directory."),
        (["clips", "--every", "soon"], "--every 'soon' is no time of a second or more."),
        (["clips", "--every", "0.5"], "--every '0.5' is no time of a second or more."),
        (["clips", "--shard", "3/2"], "--shard '3/2' is not the number of a part."),
        (["clips", "--format", "csv"], "--format writes beside --output, which is not given."),
        (["clips", "--format", "srt", "-o", "rows.jsonl"], "--format srt needs answers that have times."),
        (["clips", "--deterministic", "--rows", "2"], "--deterministic answers one question at a time."),
    ):
        invoke("batch", *given, *SMALL).sentence(2, said)


def test_parquet_without_its_library_is_refused_at_once(
    invoke: Invoke, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    command = ["batch", "clips", *SMALL, "--format", "parquet", "-o", "rows.jsonl"]
    invoke(*command).sentence(2, "Parquet files need the library pyarrow, which is not installed.")
    assert not (tmp_path / "rows.jsonl").exists()


def test_samples_and_shards(invoke: Invoke, clips: Path) -> None:
    def asked(*options: str) -> list[str]:
        done = invoke("batch", "clips", *SMALL, *options)
        assert done.code == 0, done.err
        return sorted(Path(json.loads(line)["video"]["path"]).name for line in done.out.splitlines())

    assert len(asked("--sample", "2")) == 2
    parts = [asked("--shard", f"{number}/2") for number in (1, 2) if number]
    assert sorted(name for part in parts for name in part) == ["0.mp4", "1.mp4", "2.mp4"]


def test_a_question_file_names_clips_and_rows(invoke: Invoke, clips: Path, tmp_path: Path) -> None:
    asked = [
        {"custom_id": "first", "video": "clips/0.mp4", "question": "What?"},
        {"custom_id": "again", "video": "clips/0.mp4", "question": "What?"},
        {"video": "clips/1.mp4", "question": "Why?"},
    ]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)), encoding="utf-8")
    command = ["batch", "-Q", "asked.jsonl", *FAST, "--no-cache", "-o", "rows.jsonl"]
    assert invoke(*command).code == 0
    rows = rows_of(tmp_path / "rows.jsonl")
    assert sorted((row.get("custom_id", ""), Path(row["video"]["path"]).name, row["question"]) for row in rows) == [
        ("", "1.mp4", "Why?"), ("again", "0.mp4", "What?"), ("first", "0.mp4", "What?"),
    ]  # fmt: skip
    assert "0 answered, 0 failed, 3 skipped" in invoke(*command).err


# --- windows, tables, estimates ---------------------------------------------------------------


def test_windows_are_rows_with_times_and_a_track(invoke: Invoke, tmp_path: Path, demo_clip: Path) -> None:
    """7 s of video in windows of 2 s, whose frames are inside of them."""
    done = invoke("batch", demo_clip, *SMALL, "--every", "2s", "-o", "rows.jsonl", "--format", "srt", "--format", "csv")
    assert done.code == 0, done.err
    rows = sorted(rows_of(tmp_path / "rows.jsonl"), key=lambda row: row["start_s"])
    assert [(row["start_s"], row["end_s"]) for row in rows[:3]] == [(0, 2), (2, 4), (4, 6)]
    assert (len(rows), rows[3]["start_s"]) == (4, 6)
    for row in rows:
        times = row["sampling"]["frame_times_s"]
        assert row["start_s"] - 0.05 <= times[0] < times[-1] <= row["end_s"] + 0.05
    assert len({row["key"] for row in rows}) == 4
    cues = (tmp_path / "rows.srt").read_text(encoding="utf-8").split("\n\n")
    assert len(cues) == 4
    assert "00:00:02,000 --> 00:00:04,000" in cues[1]
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as file:
        assert [row["start_s"] for row in csv.DictReader(file)] != []
    assert "4 skipped" in invoke("batch", demo_clip, *SMALL, "--every", "2s", "-o", "rows.jsonl").err
    assert "1 answered" in invoke("batch", demo_clip, *SMALL, "-o", "rows.jsonl").err  # the whole clip is another row


def test_a_broken_clip_with_windows_is_one_row(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_text("no", encoding="utf-8")
    assert invoke("batch", "broken.mp4", *SMALL, "--every", "2s", "-o", "rows.jsonl").code == 3
    (row,) = rows_of(tmp_path / "rows.jsonl")
    assert row["error"]["stage"] == "video"
    assert "start_s" not in row


def test_a_dry_run_says_what_there_is_and_does_nothing(invoke: Invoke, clips: Path, tmp_path: Path) -> None:
    (clips / "broken.mp4").write_text("no", encoding="utf-8")
    command = ["batch", "clips", *SMALL, "-o", "rows.jsonl"]
    before = invoke(*command, "--dry-run")
    assert before.code == 0, before.err
    assert "4, 1 of them unreadable, 2.5 s of video" in before.out
    assert "4: 0 answered, 0 failed before, 4 to do" in before.out
    assert "up to 12 to decode" in before.out
    assert not (tmp_path / "rows.jsonl").exists()
    assert invoke(*command).code == 3
    rows = rows_of(tmp_path / "rows.jsonl")
    visual = sum(row["tokens"]["visual"] for row in rows if "answer" in row)
    assert 0 < visual <= number_before(before.out, "into the language model")
    after = invoke(*command, "--dry-run")
    assert "4: 3 answered, 1 failed before, 0 to do" in after.out
    assert "up to 0 to decode" in after.out


def number_before(text: str, words: str) -> int:
    return int(text.partition(words)[0].split()[-1].replace(",", ""))


def test_a_summary_for_programs(invoke: Invoke, clips: Path, tmp_path: Path) -> None:
    (clips / "broken.mp4").write_text("no", encoding="utf-8")
    assert invoke("batch", "clips", *SMALL, "-o", "rows.jsonl", "--summary-json", "sum.json", "--rows", "2").code == 3
    told = json.loads((tmp_path / "sum.json").read_text(encoding="utf-8"))
    assert (told["answered"], told["failed"], told["failed_by_stage"]) == (3, 1, {"video": 1})
    answers = [row["tokens"] for row in rows_of(tmp_path / "rows.jsonl") if "answer" in row]
    assert told["generated_tokens"] == sum(tokens["generated"] for tokens in answers)
    assert told["retained_ratio_mean"] == pytest.approx(sum(tokens["retained_ratio"] for tokens in answers) / 3)
    assert sum(told["seconds_by_work"].values()) <= told["total_s"]
    assert 0 < told["model_at_work_ratio"] <= 1


def test_a_resumed_run_keeps_its_model(invoke: Invoke, clips: Path, tmp_path: Path) -> None:
    assert invoke("batch", "clips/0.mp4", *SMALL, "-o", "rows.jsonl").code == 0
    unnamed = [part for part in SMALL if part not in FAST[:2]]
    done = invoke("batch", "clips/0.mp4", *unnamed, "-o", "rows.jsonl")
    assert "Going on with" in done.err
    assert "0 answered, 0 failed, 1 skipped" in done.err


# --- failures ---------------------------------------------------------------------------------


def test_exactly_the_broken_clips_are_error_rows(invoke: Invoke, clips: Path, tmp_path: Path) -> None:
    broken = broken_clips(clips)
    done = invoke("batch", "clips", *SMALL, "-o", "rows.jsonl", "--rows", "3")
    assert done.code == 3
    rows = rows_of(tmp_path / "rows.jsonl")
    failed = {Path(row["video"]["path"]).name for row in rows if "error" in row}
    assert failed == broken
    assert len(rows) == len(broken) + 3
    for row in rows:
        if "error" in row:
            assert row["error"]["stage"] == "video"
            assert row["error"]["hint"]


@pytest.mark.parametrize(("options", "most"), [(["--fail-fast"], 1), (["--max-failures", "2"], 2)])
def test_it_stops_where_too_much_fails(
    invoke: Invoke, clips: Path, tmp_path: Path, options: list[str], most: int
) -> None:
    for number in range(6):
        (clips / f"_{number}.mp4").write_text(f"no {number}", encoding="utf-8")
    done = invoke("batch", "clips", *SMALL, "-o", "rows.jsonl", *options)
    assert done.code == 1
    assert f"{most} row{'s' if most > 1 else ''} failed, so the batch was stopped." in done.err
    assert sum("error" in row for row in rows_of(tmp_path / "rows.jsonl")) == most


# --- signals ----------------------------------------------------------------------------------


def begun(home: Path, *command: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [PROGRAM, "batch", *map(str, command)],
        env=environment(home), cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def until_rows(process: subprocess.Popen[bytes], output: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while not (output.exists() and output.read_bytes().count(b"\n") >= count):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


LONG = (*FAST[:6], "--no-cache", "--max-new-tokens", "600", "--temperature", "5")


@POSIX
def test_ctrl_c_finishes_what_is_under_way_and_saves_it(tmp_path: Path, demo_clip: Path, invoke: Invoke) -> None:
    output = tmp_path / "rows.jsonl"
    asked = [part for number in range(60) for part in ("-q", f"Number {number}?")]
    with begun(tmp_path, demo_clip, *LONG, *asked, "-o", output, "--rows", "3") as process:
        until_rows(process, output, 1)
        # A second run on the same output is refused meanwhile.
        invoke("batch", demo_clip, *SMALL, "-o", output).sentence(1, f"Another run is writing to {output}.")
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Finishing what is under way" in said
    assert b"Traceback" not in said
    made = rows_of(output)
    assert 1 < len(made) < 60
    assert f"{len(made)} answered" in said.decode()
    assert psutil.wait_procs(children, timeout=2)[1] == []
    assert invoke("batch", demo_clip, *SMALL, "-o", output).code == 0  # the lock is gone


@POSIX
def test_ctrl_c_twice_stops_at_once(tmp_path: Path, demo_clip: Path) -> None:
    output, broken = tmp_path / "rows.jsonl", tmp_path / "broken.mp4"
    broken.write_text("no", encoding="utf-8")
    endless = (*LONG[:-3], "20000", *LONG[-2:])
    with begun(tmp_path, broken, demo_clip, *endless, "-q", "What?", "-o", output) as process:
        until_rows(process, output, 1)
        children = psutil.Process(process.pid).children(recursive=True)
        time.sleep(1)  # the other clip is being answered
        process.send_signal(signal.SIGINT)
        time.sleep(0.6)
        assert process.poll() is None  # control: the first one lets it go on
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert time.monotonic() - began < 2
    assert process.returncode == 130
    assert len(rows_of(output)) == 1
    assert psutil.wait_procs(children, timeout=2)[1] == []


@POSIX
def test_killed_at_random_moments_the_rows_are_those_of_one_run(tmp_path: Path) -> None:
    """A short version of `python -m tests.batch.kills`, which does it with 200 clips and 20 kills."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(8):
        make(folder / f"{number}.mp4", frames=16 + number)
    (folder / "broken.mp4").write_text("no", encoding="utf-8")
    shutil.copy(folder / "broken.mp4", folder / "broken-too.mp4")
    command = ["batch", str(folder), *SMALL]
    whole = rows_by_place(uninterrupted(command, tmp_path / "whole.jsonl", tmp_path))
    torn = rows_by_place(killed_and_resumed(command, tmp_path / "torn.jsonl", tmp_path, kills=2, seed=1, most_rows=4))
    assert len(whole) == 10
    assert torn == whole
