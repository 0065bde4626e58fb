"""Words about each clip before its questions: in the rows, and in what tells one row from another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from holitom_cli import methods
from holitom_cli.batch.crew import plan_document, plan_from
from holitom_cli.batch.questions import Job
from holitom_cli.batch.runner import Plan
from holitom_cli.types import Generation, Sampling
from tests.program import FAST, Done, Invoke

SRT = "1\n00:00:00,500 --> 00:00:01,500\n{}\n"
SAID = "What is said in the video, and when:\n[0.5 s] {}"
SILENT = "{} has no subtitles in words."


@pytest.fixture
def folder(tmp_path: Path, demo_clip: Path) -> Path:
    """Three clips of different content: one with words beside it, one with others, one without."""
    place = tmp_path / "clips"
    place.mkdir()
    for number, name in enumerate(("a.mp4", "b.mp4", "silent.mp4")):
        shutil.copy(demo_clip, place / name)
        with (place / name).open("ab") as file:
            file.write(b"\0\0\0\x08free" * (number + 1))
    (place / "a.srt").write_text(SRT.format("Hello."), encoding="utf-8")
    (place / "b.vtt").write_text("WEBVTT\n\n00:00.500 --> 00:01.500\nGood day.\n", encoding="utf-8")
    return place


@pytest.fixture
def batch(invoke: Invoke, tmp_path: Path, folder: Path) -> Any:
    """Run a batch of one question about the folder into rows.jsonl; what it printed, and all rows of the file."""

    def call(*arguments: str | Path, clips: Path = folder) -> tuple[Done, list[dict[str, Any]]]:
        output = tmp_path / "rows.jsonl"
        done = invoke("batch", clips, "-q", "What?", *FAST, "--output", output, *arguments)
        lines = output.read_text(encoding="utf-8").splitlines() if output.exists() else []
        return done, [json.loads(line) for line in lines]

    return call


def told(rows: list[dict[str, Any]]) -> dict[str, str | None]:
    """What stood before the question, by clip."""
    return {Path(row["video"]["path"]).name: row.get("context") for row in rows}


@pytest.mark.parametrize("rows", ["1", "2"])
def test_each_clip_has_its_own_words(batch: Any, rows: str) -> None:
    done, made = batch("--subtitles", "auto", "--rows", rows)
    assert done.code == 0, done.err
    assert told(made) == {"a.mp4": SAID.format("Hello."), "b.mp4": SAID.format("Good day."), "silent.mp4": None}
    said = {Path(row["video"]["path"]).name: row["sampling"]["warnings"] for row in made}
    assert SILENT.format("silent.mp4") in said["silent.mp4"]
    assert SILENT.format("a.mp4") not in said["a.mp4"]


def test_times_come_before_words(batch: Any) -> None:
    _, made = batch("--subtitles", "auto", "--time-instruction")
    found = told(made)["a.mp4"] or ""
    assert found.startswith("The video is 7.0 seconds long")
    assert found.endswith(SAID.format("Hello."))


def test_other_words_make_another_row(batch: Any, folder: Path) -> None:
    """With and without, and after the file has changed; what is there already is skipped, cache or not."""
    assert len(batch()[1]) == 3
    assert len(batch("--time-instruction")[1]) == 6
    assert len(batch("--subtitles", "auto")[1]) == 9
    done, made = batch("--subtitles", "auto")
    assert (len(made), done.err.splitlines()[-1]) == (9, "0 answered, 0 failed, 3 skipped")
    (folder / "a.srt").write_text(SRT.format("Farewell."), encoding="utf-8")
    _, made = batch("--subtitles", "auto")
    assert len(made) == 10
    assert made[-1]["context"] == SAID.format("Farewell.")
    (folder / "a.srt").unlink()
    _, made = batch("--subtitles", "auto")
    assert (len(made), made[-1].get("context")) == (11, None)


def test_one_file_is_for_one_clip(batch: Any, folder: Path) -> None:
    done, made = batch("--subtitles", folder / "a.srt")
    done.sentence(2, "3 clips cannot share one file of subtitles.")
    assert made == []
    _, made = batch("--subtitles", folder / "a.srt", clips=folder / "b.mp4")
    assert told(made) == {"b.mp4": SAID.format("Hello.")}


def test_words_that_were_named_and_are_not_there_are_an_error(batch: Any, folder: Path) -> None:
    done, made = batch("--subtitles", folder / "silent.mp4", clips=folder / "b.mp4")
    assert done.code == 3
    assert made[0]["error"]["message"] == SILENT.format("silent.mp4")


def test_keys_of_rows_without_words_are_as_ever(tmp_path: Path) -> None:
    job = Job(tmp_path / "clip.mp4", ())

    def settings(**more: Any) -> dict[str, Any]:
        plan = Plan(methods.get("full"), Generation(), Sampling(2), **more)
        assert plan_from(json.loads(json.dumps(plan_document(plan)))) == plan  # what workers on other GPUs are told
        return plan.settings(("demo", None, "float32"), job)

    silent = settings()
    assert not {"time_instruction", "subtitles"} & set(silent)
    assert settings(time_instruction=True) == silent | {"time_instruction": True}
    assert settings(subtitles="auto") == silent | {"subtitles": "in the clip"}
