"""What `holitom ask` writes where: the answer on stdout, all talk on stderr, one document with --json."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import ValidationError  # type: ignore[import-untyped]

from holitom_cli import cli
from tests.program import FAST, ROOT, SCHEMA, Done, Invoke, environment, installed

QUESTION = "What is shown in the video?"
OTHER = "Is it night?"


@pytest.fixture(scope="module")
def plain(demo_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """One question, asked of the installed program."""
    return installed("ask", demo_clip, QUESTION, *FAST, home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def compared(demo_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Two questions with the baseline, as JSON."""
    options = ["-q", QUESTION, "-q", OTHER, "--baseline", "--json"]
    return installed("ask", demo_clip, *options, *FAST, home=tmp_path_factory.mktemp("home"))


def test_answer_alone_is_on_stdout_and_the_report_on_stderr(plain: Done, compared: Done) -> None:
    assert plain.code == 0, plain.err
    assert plain.out.strip()
    assert plain.out == compared.document()["results"][0]["answer"] + "\n"
    for part in ("Visual tokens", "Segments", "TTFT", "time to answer", "peak memory", "city.mp4", "noise"):
        assert part in plain.err
        assert part not in plain.out
    assert max(map(len, plain.err.splitlines())) <= 80
    assert "\x1b" not in plain.out + plain.err  # no colour and no spinner where there is no terminal


def test_json_is_one_document_of_the_published_schema(compared: Done) -> None:
    assert compared.code == 0, compared.err
    document = compared.document()
    assert [result["question"] for result in document["results"]] == [QUESTION, OTHER] * 2
    assert [result["method"] for result in document["results"]] == ["holitom"] * 2 + ["full"] * 2
    with pytest.raises(ValidationError):  # control: the schema can say no
        SCHEMA.validate(document | {"results": []})


def test_baseline_is_compared_question_by_question(compared: Done) -> None:
    ours, theirs = compared.document()["results"][:2], compared.document()["results"][2:]
    for answer, full in zip(ours, theirs, strict=True):
        assert answer["agrees_with_baseline"] is (answer["answer"] == full["answer"])
        assert "agrees_with_baseline" not in full
        assert full["tokens"]["visual"] == full["tokens"]["original"] == answer["tokens"]["original"] == 4 * 196
        assert answer["tokens"]["visual"] < full["tokens"]["visual"]
        assert answer["flops"]["true_flops_full"] == full["flops"]["true_flops"]
    assert "Against full" in compared.err
    ratio = theirs[0]["tokens"]["visual"] / ours[0]["tokens"]["visual"]
    assert re.search(rf"visual tokens +\d+ +784 +{ratio:.2f}x", compared.err)


def test_a_question_is_answered_the_same_alone_and_with_others(plain: Done, compared: Done) -> None:
    first, second = compared.document()["results"][:2]
    assert plain.out == first["answer"] + "\n"
    assert first["timings"]["stages_ms"]["vision"] == second["timings"]["stages_ms"]["vision"]  # watched once


def test_quiet_leaves_the_answer_and_warnings(invoke: Invoke, demo_clip: Path, plain: Done) -> None:
    done = invoke("ask", demo_clip, QUESTION, *FAST, "--quiet")
    assert (done.code, done.out) == (0, plain.out)
    assert done.err.startswith("warning: ")
    assert len(done.err.splitlines()) == 1


def test_without_streaming_the_answer_is_the_same(invoke: Invoke, demo_clip: Path, plain: Done) -> None:
    assert invoke("ask", demo_clip, QUESTION, *FAST, "--no-stream").out == plain.out


def test_streaming_writes_pieces_as_they_come(invoke: Invoke, demo_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from holitom_cli.cli import ask, console, session

    pieces: list[str] = []

    def listen(text: str) -> None:
        pieces.append(text)
        console.write(text)

    for module in (ask, session):
        monkeypatch.setattr(module, "write", listen)
    streamed = invoke("ask", demo_clip, QUESTION, *FAST)
    assert len(pieces) > 2
    assert "".join(pieces) == streamed.out
    pieces.clear()
    invoke("ask", demo_clip, QUESTION, *FAST, "--no-stream")
    assert pieces == [streamed.out]  # control: whole


def test_questions_come_from_everywhere_in_order(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.txt"
    file.write_bytes("\ufeffIs it day?\r\n\r\n  Wie spät ist es? \n".encode())
    done = invoke("ask", demo_clip, "-", "-q", OTHER, "-Q", file, *FAST, "--json", stdin=f"{QUESTION}\n")
    asked = [result["question"] for result in done.document()["results"]]
    assert asked == [QUESTION, OTHER, "Is it day?", "Wie spät ist es?"]
    assert "Wie spät ist es?" in done.out  # readable as it stands


def test_several_answers_are_told_apart(invoke: Invoke, demo_clip: Path, compared: Done) -> None:
    done = invoke("ask", demo_clip, "-q", QUESTION, "-q", OTHER, *FAST)
    assert done.out == "".join(f"{result['answer']}\n" for result in compared.document()["results"][:2])
    assert done.err.index(QUESTION) < done.err.index(OTHER)


def test_sampling_follows_its_seed(invoke: Invoke, demo_clip: Path, plain: Done) -> None:
    options = [*FAST, "--quiet", "--temperature", "5", "--seed"]
    first, again, other = (invoke("ask", demo_clip, QUESTION, *options, seed).out for seed in "112")
    assert first == again
    assert len({first, other, plain.out}) == 3


def test_module_is_the_program(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "holitom_cli", "--version"], capture_output=True, text=True, check=True, timeout=30
    )
    assert shown.stdout == installed("--version", home=tmp_path).out


@pytest.mark.parametrize("command", [["methods"], ["ask", "CLIP", QUESTION, *FAST, "--server", "off", "--quiet"]])
def test_garbage_is_collected_once_all_is_imported(command: list[str], demo_clip: Path, tmp_path: Path) -> None:
    program = (
        "import atexit, gc, sys\natexit.register(lambda: print(gc.isenabled(), file=sys.stderr))\n"
        "from holitom_cli.cli import main; main()"
    )
    arguments = [str(demo_clip) if word == "CLIP" else word for word in command]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True, timeout=60,
        env=environment(tmp_path),
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == "True"


@pytest.mark.parametrize(
    ("arguments", "started"), [("ask clip.mp4 What?", 1), ("ask --help", 0), ("ask", 0), ("batch clips -q What?", 0)]
)
def test_a_decoder_starts_before_anything_else(arguments: str, started: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it cannot, that is no matter yet: it is tried again where it is needed, which says why."""
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise BlockingIOError("no more processes")

    monkeypatch.setattr("holitom_cli.video.worker_link.warm_up", fail)
    monkeypatch.setattr("sys.argv", ["holitom", *arguments.split()])
    cli._start_decoder()
    assert len(calls) == started


def test_only_what_starts_a_decoder_is_imported_before_it() -> None:
    program = (
        "import sys\nsys.argv[1:] = ['ask', 'clip.mp4', 'What?']\n"
        "sys.addaudithook(lambda event, _: event == 'subprocess.Popen' and print(*sys.modules))\n"
        "from holitom_cli import cli\ncli._start_decoder()"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT
    )
    imported = set(done.stdout.split())
    assert "holitom_cli.video.worker_link" in imported
    assert imported.isdisjoint({"typing", "json", "queue", "dataclasses", "pathlib", "typer"})
