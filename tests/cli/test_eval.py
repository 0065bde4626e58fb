"""`holitom eval` as its users meet it: tables, one document, rows in a file, and what goes wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from jsonschema import ValidationError  # type: ignore[import-untyped]

from holitom_cli.quality.shapes import shapes
from tests.program import FAST, SCHEMA, Done, Invoke

QUESTIONS: list[dict[str, Any]] = [
    {"video": "a.mp4", "question": "Is it night?", "choices": ["yes", "no"], "answer": "no", "type": "light"},
    {"video": "b.mp4", "question": "Is it night?", "choices": ["yes", "no"], "answer": "yes", "type": "light"},
    {"video": "a.mp4", "question": "What moves?", "answer": "a boat", "type": "motion"},
]
SMALL = (*FAST[:4], "--num-frames", "2", "--max-new-tokens", "3")


@pytest.fixture
def questions(tmp_path: Path, demo_clip: Path) -> Path:
    """Three questions about two clips."""
    place = tmp_path / "set"
    place.mkdir()
    shutil.copy(demo_clip, place / "a.mp4")
    (place / "b.mp4").write_bytes(demo_clip.read_bytes() + bytes(8))
    file = place / "questions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in QUESTIONS), encoding="utf-8")
    return file


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        SCHEMA.validate(row)
    return rows


def timeless(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "ttft_ms"} for row in document["results"]]


def test_one_document_with_a_row_for_each_method_and_budget(invoke: Invoke, questions: Path, tmp_path: Path) -> None:
    asked = ["--methods", "full,holitom,random,holitom:inner_layer=off", "--budgets", "25,15", "--seed", "7"]
    output = tmp_path / "rows.jsonl"
    done = invoke("eval", questions, *SMALL, *asked, "--json", "-o", output)
    assert done.code == 0, done.err
    document = done.document()
    assert document["model"]["id"] == FAST[1]
    assert document["settings"]["seed"] == 7
    assert (document["settings"]["questions"], document["settings"]["videos"]) == (3, 2)
    labels = [(row["method"], row["budget"]) for row in document["results"]]
    assert labels == [("full", 100)] + [
        (method, budget) for method in ("holitom", "random", "holitom:inner_layer=off") for budget in (25, 15)
    ]
    rows = rows_of(output)
    assert len(rows) == 3 * 7
    assert {row["checkpoint"] for row in rows} == {FAST[1]}
    for result in document["results"]:
        own = [row for row in rows if (row["method"], row["budget"]) == (result["method"], result["budget"])]
        assert result["accuracy"] == pytest.approx(sum(row["correct"] for row in own) / 3)
        assert result["tokens"] == pytest.approx(sum(row["tokens"] for row in own) / 3)
        assert result["flops"] == pytest.approx(sum(row["true_flops"] for row in own) / 3)
        assert result["questions"] == 3
        assert set(result["by_type"]) == {"light", "motion"}
        seeds = result["method_settings"].get("seed")
        assert seeds == (7 if result["method"] == "random" else None)
    with pytest.raises(ValidationError):  # control: the schema looks inside
        SCHEMA.validate(document | {"results": [document["results"][0] | {"accuracy": 2}]})


def test_tables_name_the_checkpoint_and_fit_a_terminal(
    invoke: Invoke, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = invoke("eval", questions, *SMALL, "--methods", "full,holitom:inner_layer=off", "--budgets", "15")
    assert done.code == 0, done.err
    for heading in ("Accuracy", "Against full", "Cost", "By type"):
        assert re.search(rf"^{heading}\b", done.out, re.MULTILINE)
    assert done.out.count("random_checkpoint, random weights") == 2
    assert re.search(r"^  full +100% +\d+\.\d% ± \d", done.out, re.MULTILINE)
    assert re.search(r"holitom:inner_layer=off +15% .*[+-]\d+\.\d \([+-]\d+\.\d to [+-]\d+\.\d\)", done.out)
    assert "motion" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert "random weights: its accuracy is chance." in " ".join(done.err.split())
    assert "a.mp4: 4 answered" in done.err


def test_it_goes_on_where_it_stopped(invoke: Invoke, questions: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"

    def call(*more: str) -> Done:
        return invoke("eval", questions, *SMALL, "--methods", "full,uniform", "--json", "-o", output, *more)

    whole = call()
    lines = output.read_bytes()
    kept = b"".join(lines.splitlines(keepends=True)[:2])
    output.write_bytes(kept + lines[len(kept) :][:100])  # as a crash in the middle of a row leaves it
    resumed = call()
    assert output.read_bytes().startswith(kept)
    assert len(rows_of(output)) == 6
    assert timeless(resumed.document()) == timeless(whole.document())
    finished = output.read_bytes()
    assert call().document() == resumed.document()  # with its times: nothing was asked again
    assert output.read_bytes() == finished
    assert "a.mp4: skipped" in call().err
    assert call("--limit", "1").document()["results"][0]["questions"] == 1
    assert output.read_bytes() == finished
    call("--scoring", "words")
    assert len(rows_of(output)) == 12  # asked in another way


def test_scorings_differ(invoke: Invoke, questions: Path, tmp_path: Path) -> None:
    ways = {}
    for how in ("letter", "words", "text"):
        output = tmp_path / f"{how}.jsonl"
        invoke("eval", questions, *SMALL, "--methods", "full", "--scoring", how, "-o", output, "--quiet")
        ways[how] = rows_of(output)
    assert [row["scoring"] for row in ways["letter"]] == ["letter", "text", "letter"]
    assert [row["scoring"] for row in ways["text"]] == ["text"] * 3
    assert ["choices" in row for row in ways["words"]] == [True, False, True]
    assert ways["letter"][0]["choices"] != ways["words"][0]["choices"]
    assert {row["answer"] for row in (ways["letter"][0], ways["words"][0])} <= {"yes", "no"}
    asked = invoke(
        "ask",
        questions.parent / "a.mp4",
        "Is it night?",
        "--choices",
        "yes,no",
        "--method",
        "full",
        *SMALL[:-2],
        "--json",
    ).document()
    assert [choice["probability"] for choice in asked["results"][0]["choices"]] == pytest.approx(
        [choice["probability"] for choice in ways["words"][0]["choices"]]
    )


def test_a_broken_clip_is_counted_and_tried_again(
    invoke: Invoke, questions: Path, tmp_path: Path, demo_clip: Path
) -> None:
    (questions.parent / "b.mp4").write_bytes(b"no video" * 99)
    output = tmp_path / "rows.jsonl"
    given = ["eval", questions, *SMALL, "--methods", "full,uniform", "-o", output]
    done = invoke(*given, "--json")
    assert done.code == 3
    assert [(row["questions"], row["failed"]) for row in done.document()["results"]] == [(2, 1)] * 2
    assert "b.mp4: failed: b.mp4 is not a video that can be read." in done.err
    assert [row["error"]["stage"] for row in rows_of(output) if "error" in row] == ["video"] * 2
    shown = invoke(*given)
    assert shown.code == 3
    assert re.search(r"full +100% .* 2, 1 failed", shown.out)
    shutil.copy(demo_clip, questions.parent / "b.mp4")
    mended = invoke(*given, "--json")
    assert mended.code == 0
    assert [(row["questions"], row["failed"]) for row in mended.document()["results"]] == [(3, 0)] * 2


def test_without_an_answer_there_are_no_figures(invoke: Invoke, questions: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        (questions.parent / name).write_bytes(b"no video" * 99)
    done = invoke("eval", questions, *SMALL, "--methods", "full,uniform")
    assert done.code == 3
    assert re.search(r"full +100% +unknown +0, 3 failed", done.out)
    document = invoke("eval", questions, *SMALL, "--methods", "full,uniform", "--json").document()
    assert {row["accuracy"] for row in document["results"]} == {None}


SET = ("eval", "--set", "shapes", *SMALL, "--methods", "full,holitom,random", "--budgets", "25,15", "--limit", "7")


def test_the_built_in_set_is_one_document_with_a_row_for_each(invoke: Invoke, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    done = invoke(*SET, "--seed", "7", "--json", "-o", output)
    assert done.code == 0, done.err
    document = done.document()
    settings = document["settings"]
    assert (settings["set"], settings["questions_file"], settings["scoring"]) == ("shapes", None, "text")
    assert (settings["questions"], settings["limit"], settings["seed"]) == (7, 7, 7)
    assert settings["videos"] == len({item.clip for item in shapes(7, 7)})
    assert [(row["method"], row["budget"], row["questions"]) for row in document["results"]] == [
        ("full", 100, 7), ("holitom", 25, 7), ("holitom", 15, 7), ("random", 25, 7), ("random", 15, 7),
    ]  # fmt: skip
    full, *others = document["results"]
    assert all(row["tokens"] < full["tokens"] for row in others)
    assert [row["method_settings"]["seed"] for row in others[2:]] == [7, 7]
    rows = rows_of(output)
    assert len(rows) == 5 * 7
    assert {row["video"] for row in rows} == {f"shapes-7-{index:06d}" for index in range(settings["videos"])}
    assert {row["scoring"] for row in rows} == {"text"}
    again = invoke(*SET, "--seed", "7", "--json", "-o", output)
    assert again.document() == document  # with its times: nothing was asked again
    assert rows_of(output) == rows
    other = invoke(*SET, "--seed", "8", "-o", output)
    assert re.search(r"shapes-8-000000: [1-9]\d* answered", other.err)
    assert len(rows_of(output)) == 2 * len(rows)


def test_the_built_in_set_is_scored_as_the_user_wants(invoke: Invoke, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    done = invoke(*SET[:-1], "1", "--methods", "full", "--scoring", "letter", "--json", "-o", output)
    assert done.document()["settings"]["scoring"] == "letter"
    (row,) = rows_of(output)
    assert row["answer"] in {choice["text"] for choice in row["choices"]}
    assert sum(choice["probability"] for choice in row["choices"]) == pytest.approx(1)


def test_questions_come_from_one_place(invoke: Invoke, questions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    invoke("eval", questions, *SET[1:]).sentence(2, "Questions come from a file or from --set, not from both.")
    invoke("eval", *SMALL).sentence(2, "There are no questions.")
    invoke("eval", "--set", "circles", *SMALL).sentence(2, "'circles' is not")
    invoke(*SET, "--decode-timeout", "9").sentence(2, "nothing is decoded, so --decode-timeout has no effect.")
    invoke(*SET, "--seed", str(2**63 - 1)).sentence(2, f"Seed {2**63 - 1} is too large")
    monkeypatch.setenv("HOLITOM_DECODE_TIMEOUT", "9")  # set once for everything, it is no mistake here
    assert invoke(*SET[:-1], "1", "--methods", "full").code == 0


WRONG = [
    (["--methods", "holytom"], 2, "There is no method 'holytom'."),
    (["--methods", "holitom:tau=2"], 2, "Setting tau is 2.0"),
    (["--budgets", "150"], 2, "The budget '150' is not a percentage above 0 and at most 100"),
    (["--methods", "holitom:inner_layer=99"], 2, "inner_layer is 99"),
    (["--methods", "full,holitom:inner_layer=99"], 2, "inner_layer is 99"),
    (["--scoring", "luck"], 2, "'luck' is not one of"),
    (["--limit", "0"], 2, "--limit'"),
    (["--model", "nowhere/at/all"], 1, "There is no directory"),
]


@pytest.mark.parametrize(("options", "code", "said"), WRONG, ids=[wrong[2] for wrong in WRONG])
def test_wrong_usage(invoke: Invoke, questions: Path, tmp_path: Path, options: list[str], code: int, said: str) -> None:
    output = tmp_path / "rows.jsonl"
    invoke("eval", questions, *SMALL, *options, "-o", output).sentence(code, said)
    assert not output.exists()


def test_questions_that_are_none(invoke: Invoke, questions: Path, tmp_path: Path) -> None:
    invoke("eval", tmp_path / "none.jsonl", *SMALL).sentence(2, "none.jsonl cannot be read")
    for line, said in (
        ({**QUESTIONS[0], "video": "gone.mp4"}, "Line 1 of"),
        ({**QUESTIONS[0], "question": "<video>?"}, "The question contains '<video>'"),
    ):
        questions.write_text(json.dumps(line), encoding="utf-8")
        invoke("eval", questions, *SMALL).sentence(2, said)
    told = invoke("eval", questions, *SMALL, "--json")
    assert told.document()["error"]["stage"] == "usage"


def test_an_output_of_something_else_is_left_alone(invoke: Invoke, questions: Path, tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("a diary\n", encoding="utf-8")
    said = "diary.txt is not a row of a batch, so nothing is added to that file."
    invoke("eval", questions, *SMALL, "-o", tmp_path / "diary.txt").sentence(1, said)
    assert (tmp_path / "diary.txt").read_text(encoding="utf-8") == "a diary\n"


def test_defaults_of_the_user_apply(invoke: Invoke, questions: Path) -> None:
    from holitom_cli.cli.config import config_file

    config_file().parent.mkdir(parents=True)
    config_file().write_text('num-frames = 3\ndevice = "cpu"\nmethod = "uniform"\n', encoding="utf-8")
    done = invoke("eval", questions, *FAST[:2], "--methods", "full", "--limit", "1", "--json")
    assert done.code == 0, done.err
    document = done.document()
    assert document["settings"]["num_frames"] == 3
    assert [(row["method"], row["tokens"]) for row in document["results"]] == [("full", 3 * 196)]
