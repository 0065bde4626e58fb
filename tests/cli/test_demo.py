"""`holitom demo`: the bundled model, asked about the bundled clip, as somebody does who has just installed it."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import ValidationError  # type: ignore[import-untyped]

from holitom_cli.model.hub import DEMO, locate
from tests.program import FAST, SCHEMA, Done, Invoke, installed

FOLDER = locate(DEMO).path
QUESTIONS: list[dict[str, Any]] = [
    json.loads(line) for line in (FOLDER / "questions.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """What the installed program shows, in an empty home."""
    return installed("demo", home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Any:
    done = installed("demo", "--json", home=tmp_path_factory.mktemp("home"))
    assert done.code == 0, done.err
    return done.document()


def test_questions_with_answers_are_on_stdout(shown: Done, document: Any) -> None:
    assert shown.code == 0, shown.err
    lines = shown.out.splitlines()
    assert lines[::2] == [question["question"] for question in QUESTIONS]
    for line, result in zip(lines[1::2], document["results"], strict=True):
        verdict = "right" if result["correct"] else f"wrong: {result['expected']}"
        assert line.strip() == f"{result['answer'].strip()}  {verdict}"


def test_the_report_is_short_and_says_what_next(shown: Done, invoke: Invoke, document: Any) -> None:
    for part in ("shapes.mp4", "demo, bundled with holitom", "Visual tokens", "spatial merge", "vision", "6 answers"):
        assert part in shown.err
    assert "\x1b" not in shown.out + shown.err
    *_, own = re.findall(r"^  holitom (ask .* --model demo)$", shown.err, re.MULTILINE)
    path, question = re.fullmatch(r'ask (\S+) "(.*)" --model demo', own).groups()  # type: ignore[union-attr]
    asked = invoke("ask", path, question, "--model", "demo", "--max-new-tokens", "1", "--json").document()
    assert asked["video"] == document["video"]
    assert asked["results"][0]["tokens"]["funnel"] == document["results"][0]["tokens"]["funnel"]


def test_json_is_one_document_with_what_is_right(document: Any) -> None:
    assert document["model"]["kind"] == "demo"
    assert document["sampling"]["frames"] == 32
    results = document["results"]
    assert [(result["question"], result["expected"]) for result in results] == [
        (question["question"], question["answer"]) for question in QUESTIONS
    ]
    assert all(result["correct"] is (result["answer"].strip() == result["expected"]) for result in results)
    assert not [warning for result in results for warning in result["warnings"] if "other clips" in warning]
    with pytest.raises(ValidationError):  # control: the schema looks at what is new
        SCHEMA.validate(document | {"results": [results[0] | {"correct": "yes"}]})


def test_every_answer_is_right(document: Any) -> None:
    assert [result["answer"].strip() for result in document["results"]] == [item["answer"] for item in QUESTIONS]


def test_the_questions_are_of_several_kinds_and_fit_the_generator() -> None:
    """What is bundled is what the rule finds today, unless the model stumbled over an earlier clip."""
    from tests.bundle_demo import candidates

    assert len({question["type"] for question in QUESTIONS}) == len(QUESTIONS) == 6
    asked = [question["question"] for question in QUESTIONS]
    found = (scene for _, scene in zip(range(50), candidates(), strict=False))
    assert any([question.text for question in scene.questions] == asked for scene in found)


def test_no_network_is_used(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []

    def refuse(*arguments: object) -> None:
        called.append(arguments)
        raise OSError("there is no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert invoke("demo", "--device", "cpu").code == 0
    assert called == []
    with pytest.raises(OSError, match="no network"):  # control
        socket.create_connection(("127.0.0.1", 9))


def test_a_device_that_is_not_there(invoke: Invoke) -> None:
    invoke("demo", "--device", "abacus").sentence(2, "'abacus' is not a device.")
    assert invoke("demo", "--device", "abacus", "--json").document()["error"]["stage"] == "usage"


def test_a_damaged_installation_is_told(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from holitom_cli.model import hub

    monkeypatch.setattr(hub, "__file__", str(tmp_path / "model" / "hub.py"))
    invoke("demo").sentence(2, "questions.jsonl cannot be read")


def test_a_small_model_takes_one_thread_and_leaves_others_theirs(
    invoke: Invoke, demo_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    assert invoke("ask", demo_clip, "What?", *FAST).code == 0
    assert invoke("demo", "--device", "cpu").code == 0
    assert asked == [1, 1]
    monkeypatch.setattr("holitom_cli.cli.session._SMALL", 1)  # as if it were a large one
    assert invoke("ask", demo_clip, "What?", *FAST).code == 0
    assert asked == [1, 1]


def test_what_is_wrong_is_said_beside_what_is_right(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer but the first is made right, by the dictation of its words."""
    from holitom_cli import pipeline

    asked = pipeline.ask
    right = {item["question"]: item["answer"] for item in QUESTIONS[1:]}

    def dictate(model: Any, watched: Any, question: str, *, on_text: Any = None, **options: Any) -> Any:
        said = right.get(question, "nothing")
        if on_text:
            on_text(said)
        return replace(asked(model, watched, question, **options), text=said)

    monkeypatch.setattr(pipeline, "ask", dictate)
    lines = invoke("demo", "--device", "cpu").out.splitlines()
    assert lines[1] == f"  nothing  wrong: {QUESTIONS[0]['answer']}"
    assert lines[3::2] == [f"  {item['answer']}  right" for item in QUESTIONS[1:]]
    results = invoke("demo", "--device", "cpu", "--json").document()["results"]
    assert [result["correct"] for result in results] == [False, *[True] * 5]
