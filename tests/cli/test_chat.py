"""holitom chat: a conversation in lines, at a terminal and in a pipe."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from holitom_cli.cli.chat import _history
from holitom_cli.cli.console import Talk
from holitom_cli.cli.guard import signals_are_lent
from holitom_cli.cli.room import COMMANDS
from holitom_cli.model.loading import load_model
from holitom_cli.model.prompt import Turn
from holitom_cli.pipeline import ask, watch
from holitom_cli.types import Added, Answer, Sampling
from tests.make_random_checkpoint import RANDOM
from tests.make_readme import _console, _prepare
from tests.program import FAST, PROGRAM, ROOT, Invoke, check_prose, environment
from tests.test_docs import README, blocks

FIRST, NEXT = "What is shown in the video?", "And where is it?"


def chat(invoke: Invoke, clip: Path | None, *lines: str, options: tuple[str, ...] = ()) -> tuple[list[str], str, int]:
    """Answers, what was said besides, and the exit code."""
    given = [clip] if clip else []
    done = invoke("chat", *given, *FAST, *options, stdin="".join(f"{line}\n" for line in lines))
    assert "Traceback" not in done.err
    assert "This should not have happened" not in done.err
    return done.out.splitlines(), " ".join(done.err.split()), done.code


def asked(invoke: Invoke, clip: Path, question: str, *options: str) -> str:
    done = invoke("ask", clip, question, *FAST, "--no-cache", *options)
    assert done.code == 0, done.err
    return done.out.rstrip("\n")


def test_questions_know_those_before_them(invoke: Invoke, demo_clip: Path) -> None:
    answers, said, code = chat(invoke, demo_clip, FIRST, NEXT, "", "/new", NEXT)
    assert code == 0
    assert len(answers) == 3
    alone = asked(invoke, demo_clip, NEXT)
    assert answers[0] == asked(invoke, demo_clip, FIRST)
    assert answers[2] == alone
    assert answers[1] != alone  # what was said before counts
    assert said.count("Loading") == said.count("Reading frames") == 1
    assert said.count("random weights: its answers are noise") == 1  # a warning is told once


# What a line changes, and the options of `ask` that say the same.
CHANGES = {
    "/at 0:02-4": ("--start", "2", "--end", "4"),
    "/at 2-4 3": ("--start", "2", "--end", "4", "--num-frames", "3"),
    "/at -4.5--1": ("--start", "-4.5", "--end", "-1"),
    "/method fastv drop=0.25": ("--method", "fastv", "--set", "drop=0.25"),
    "/method vidcom2+inner": ("--method", "vidcom2+inner"),
    "/set num_frames=6": ("--num-frames", "6"),
    "/set retain_ratio=0.5 tau=0.5": ("--retain-ratio", "0.5", "--tau", "0.5"),
    "/set max_new_tokens=2": ("--max-new-tokens", "2"),
    "/set temperature=2.5 seed=3": ("--temperature", "2.5", "--seed", "3"),
}


@pytest.mark.parametrize("line", CHANGES)
def test_what_a_command_changes_is_what_the_option_means(invoke: Invoke, demo_clip: Path, line: str) -> None:
    answers, _, code = chat(invoke, demo_clip, line, FIRST)
    same = asked(invoke, demo_clip, FIRST, *CHANGES[line])
    assert (answers, code) == ([same], 0)
    assert same != asked(invoke, demo_clip, FIRST)  # control


def test_changes_add_up_and_the_conversation_goes_on(invoke: Invoke, demo_clip: Path) -> None:
    answers, said, code = chat(
        invoke, demo_clip, "/at 2-4", "/method full", "/set num_frames=3", FIRST, NEXT, "/new", "/at", FIRST, "/set"
    )
    assert code == 0
    options = ("--method", "full", "--num-frames", "3")
    assert answers[0] == asked(invoke, demo_clip, FIRST, "--start", "2", "--end", "4", *options)
    assert answers[2] == asked(invoke, demo_clip, FIRST, *options)
    assert "num_frames 3" in said
    before, _, _ = chat(invoke, demo_clip, FIRST, "/method full", NEXT)
    fresh, _, _ = chat(invoke, demo_clip, "/method full", NEXT)
    assert before[1] != fresh[0]  # the turn before the change is not forgotten


def test_a_clip_may_come_later_and_another_one_after_it(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:
    shapes = tmp_path / "two words.mp4"
    shutil.copy(ROOT / "holitom_cli" / "assets" / "demo" / "shapes.mp4", shapes)
    answers, said, code = chat(
        invoke, None, FIRST, "/method full", f"/open {demo_clip}", FIRST, f'/open "{shapes}"', FIRST
    )
    assert code == 3
    assert answers == [asked(invoke, clip, FIRST, "--method", "full") for clip in (demo_clip, shapes)]
    assert "error: No clip is open yet. hint: As in: /open clip.mp4" in said
    assert "A new conversation begins. To go on with one, bring a clip in by /add." in said


@pytest.fixture(scope="module")
def other_clip() -> Path:
    return ROOT / "holitom_cli" / "assets" / "demo" / "shapes.mp4"


def in_python(clips: list[tuple[Path, int, Sampling]], *questions: tuple[str, str]) -> list[Answer]:
    """Answers to questions, each with a method, about clips, each with its turn and what of it is seen."""
    model = load_model(RANDOM, device="cpu")
    answers: list[Answer] = []
    for number, (question, method) in enumerate(questions):
        turns = [Turn(answer.question, answer.text) for answer in answers]
        there = [
            Added(watch(model, file, sampling=way, method=method), turn) for file, turn, way in clips if turn <= number
        ]
        answers.append(ask(model, there[0].watched, question, max_new_tokens=5, turns=turns, added=there[1:]))
    return answers


WHOLE = Sampling(num_frames=4)


def test_a_clip_is_brought_into_the_conversation(invoke: Invoke, demo_clip: Path, other_clip: Path) -> None:
    questions = (FIRST, NEXT, "Which of them has more colours?")
    lines = [questions[0], f"/add '{other_clip}'", *questions[1:], "/stats", "/new", FIRST]
    answers, said, code = chat(invoke, demo_clip, *lines)
    assert code == 0
    expected = in_python([(demo_clip, 0, WHOLE), (other_clip, 1, WHOLE)], *((text, "holitom") for text in questions))
    both = in_python([(demo_clip, 0, WHOLE), (other_clip, 0, WHOLE)], (FIRST, "holitom"))
    assert answers[:3] == [answer.text for answer in expected]
    assert answers[3] == both[0].text  # /new forgets turns, but no clip
    without, _, _ = chat(invoke, demo_clip, *questions, FIRST)
    assert without[0] == answers[0]
    assert without[1:] != answers[1:]  # control
    one, other = len(expected[1].earlier[0].visual), len(expected[1].visual)
    assert f"city.mp4: 4 frames, {one} of 784 visual tokens" in said
    assert f"shapes.mp4: 4 frames, {other} of 784 visual tokens" in said
    assert f"2 clips: 8 frames, {one + other} of 1,568 visual tokens" in said
    stats = said[said.index("/stats") :]
    tokens = expected[2].tokens
    assert f"{tokens.prompt} tokens = {one + other} visual + 2 newlines + {tokens.text} text" in stats
    assert "8 frames x 196 patches" in stats
    assert "+2 newline tokens" in stats
    assert "Segments of city.mp4" in stats
    assert "Segments of shapes.mp4" in stats
    assert stats.count(" decoder ") == 2
    known = re.search(r"(\d+) of its prompt's (\d+) tokens were known", stats)
    assert known
    assert int(known[1]) > expected[1].tokens.prompt - 4


# With two clips, what a line changes: how the last one is seen, or the method; and the frames that are told of then.
CHANGES_OF_TWO = {
    "/at 1-2": (Sampling(num_frames=4, start_seconds=1, end_seconds=2), "holitom", [("shapes", "4")]),
    "/set num_frames=6": (Sampling(num_frames=6), "holitom", [("shapes", "6")]),
    "/method uniform": (WHOLE, "uniform", [("city", "4"), ("shapes", "4")]),
}


@pytest.mark.parametrize("line", CHANGES_OF_TWO)
def test_what_a_command_changes_of_several_clips(invoke: Invoke, demo_clip: Path, other_clip: Path, line: str) -> None:
    answers, said, code = chat(invoke, demo_clip, FIRST, f"/add {other_clip}", line, NEXT)
    part, method, seen = CHANGES_OF_TWO[line]
    asked_then = in_python([(demo_clip, 0, WHOLE), (other_clip, 1, part)], (FIRST, "holitom"), (NEXT, method))
    unchanged, _, _ = chat(invoke, demo_clip, FIRST, f"/add {other_clip}", NEXT)
    assert (answers, code) == ([answer.text for answer in asked_then], 0)
    assert answers[1] != unchanged[1]  # control
    assert re.findall(r"(\w+)\.mp4: (\d+) frames", said[said.index(line) :]) == seen


def test_what_is_wrong_with_several_clips(invoke: Invoke, demo_clip: Path, other_clip: Path, tmp_path: Path) -> None:
    _, said, code = chat(invoke, None, f"/add {other_clip}")
    assert code == 3
    assert "error: No clip is open yet. hint: As in: /open clip.mp4" in said
    add = f"/add {other_clip}"
    lines = (
        FIRST,
        "/add",
        "/add nothing.mp4",
        "/stats",
        add,
        "/stats",
        NEXT,
        "/report out.html",
        f"/open {other_clip}",
        FIRST,
    )
    answers, said, code = chat(invoke, demo_clip, *lines, "/report out.html", "/save")
    assert code == 3
    expected = in_python([(demo_clip, 0, WHOLE), (other_clip, 1, WHOLE)], (FIRST, "holitom"), (NEXT, "holitom"))
    assert answers == [*(answer.text for answer in expected), asked(invoke, other_clip, FIRST)]
    for sentence in (
        "error: /add needs a file. hint: As in: /add clip.mp4",
        "error: Nothing has been answered yet about what is seen now.",  # behind what was added
        "error: A page shows one clip, but the answers are about 2. hint: Look at one by /open and ask again,",
    ):
        assert said.count(sentence) == 1
    assert said.count("error: ") == 4
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert NEXT not in page
    transcript = (tmp_path / "chat.md").read_text(encoding="utf-8")
    assert f"{answers[0]}\n\n*(and shapes.mp4)*\n\n**{NEXT}**" in transcript


def test_a_clip_for_which_there_is_no_room_is_not_read(
    invoke: Invoke, demo_clip: Path, other_clip: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    shutil.copytree(RANDOM, small)
    config = json.loads((small / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["max_position_embeddings"] = 1200  # for one clip of 784 tokens
    (small / "config.json").write_text(json.dumps(config), encoding="utf-8")
    options = ("--model", str(small), "--method", "full", "--no-cache")
    lines = (f"/open {demo_clip}", f"/add {other_clip}", FIRST, "/set num_frames=1", f"/add {other_clip}", NEXT)
    answers, said, code = chat(invoke, None, *lines, options=options)
    assert (len(answers), code) == (2, 3)
    assert said.count("Reading frames") == 3
    told = "4 frames need up to 1,634 positions with method full, but the model has 1,200."
    assert f"error: {told} hint: Use --num-frames 1 or fewer, or keep fewer tokens." in said


def test_named_subtitles_are_one_clips(invoke: Invoke, demo_clip: Path, other_clip: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.srt"
    words.write_text("1\n00:00:00,000 --> 00:00:09,000\nGood evening.\n", encoding="utf-8")
    given = ("--subtitles", str(words))
    _, said, _ = chat(invoke, demo_clip, f"/add {other_clip}", FIRST, "/stats", options=given)
    assert said.count("Good evening.") == 1
    _, said, _ = chat(invoke, demo_clip, f"/open {other_clip}", FIRST, "/stats", options=given)
    assert "Good evening." not in said
    _, said, _ = chat(invoke, None, "/open nothing.mp4", f"/open {other_clip}", FIRST, "/stats", options=given)
    assert said.count("Good evening.") == 1


def test_what_was_seen_before_is_not_read_again(invoke: Invoke, demo_clip: Path) -> None:
    first, _, _ = chat(invoke, demo_clip, FIRST)
    again, said, _ = chat(invoke, demo_clip, FIRST, "/method full", FIRST, "/method holitom", FIRST)
    assert again[0] == first[0]
    assert said.count("Reading frames") == 1  # for the other method: the cache has no frames
    _, said, _ = chat(invoke, demo_clip, "/method fastv", "/method evs", options=("--no-cache",))
    assert said.count("Reading frames") == 1
    _, said, _ = chat(invoke, demo_clip, "/at 1-3", "/at", options=("--no-cache",))
    assert said.count("Reading frames") == 3  # control


WRONG = {
    "/nope": "There is no command '/nope'.",
    "/open": "/open needs a file.",
    "/open nothing.mp4": "nothing.mp4",
    "/add": "/add needs a file.",
    "/add nothing.mp4": "nothing.mp4",
    "/at soon": "/at 'soon' is no part of a clip.",
    "/at 1-2 many": "is no part of a clip",
    "/at 1:2:3:4-5": "/at '1:2:3:4' is no time.",
    "/at 4-2": "The range from 4 s to 2 s is empty.",
    "/method nothing": "There is no method 'nothing'.",
    "/method fastv layer": "/method 'layer' is not KEY=VALUE.",
    "/method fastv layer=99": "layer",
    "/set tau": "/set 'tau' is not KEY=VALUE.",
    "/set drop=0.5": "has no setting 'drop'",
    "/set temperature=hot": "/set temperature is 'hot', which is not a number.",
    "/set seed=1.5": "/set seed is '1.5', which is not a whole number.",
    "/set temperature=-1": "Setting temperature is -1.0",
    "/set num_frames=0": "0 frames were asked for.",
    "/stats": "Nothing has been answered yet about what is seen now.",
    "/report": "/report needs a file.",
    "/report out.html": "Nothing has been answered yet about what is seen now.",
    "/report nowhere/out.html": "There is no folder nowhere",
    "/save nowhere/chat.md": "There is no folder nowhere",
    "What is <video>?": "contains '<video>'",
}


def test_an_error_is_a_sentence_and_changes_nothing(invoke: Invoke, demo_clip: Path) -> None:
    answers, said, code = chat(invoke, demo_clip, *WRONG, FIRST, "/set temperature=-1 tau=0.1", "/new", FIRST)
    assert code == 3
    assert answers == [asked(invoke, demo_clip, FIRST)] * 2
    told = re.findall(r"error: (.*?) hint: (.*?)(?= /\w|  ?error:| What is|$)", said)
    assert len(told) == len(WRONG) + 1
    for (message, hint), expected in zip(told, [*WRONG.values(), "Setting temperature"], strict=True):
        assert expected in message
        check_prose(message, hint)


def test_a_broken_disk_ends_nothing(invoke: Invoke, demo_clip: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    answers, said, code = chat(invoke, demo_clip, FIRST, "/save /dev/full", NEXT)
    assert (len(answers), code) == (2, 3)
    assert "error: No space left on device." in said


def test_bytes_that_are_no_text_are_told(tmp_path: Path, demo_clip: Path) -> None:
    done = subprocess.run(
        list(map(str, [PROGRAM, "chat", demo_clip, *FAST])),
        cwd=tmp_path, env=environment(tmp_path), input=b"Wh\xffo?\nWho?\n", capture_output=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert b"is not valid text" in done.stderr
    assert (done.returncode, done.stdout.count(b"\n")) == (3, 1)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["nothing.mp4"], 1, "nothing.mp4"),
        (["--method", "nothing"], 2, "There is no method"),
        (["--temperature", "-1"], 2, "Setting temperature"),
        (["--model", "/nowhere"], 1, "nowhere"),
    ],
)
def test_what_is_wrong_from_the_start_is_told_at_once(
    invoke: Invoke, arguments: list[str], code: int, sentence: str
) -> None:
    invoke("chat", *FAST, *arguments, stdin=FIRST).sentence(code, sentence)


def test_reports_and_transcripts(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:
    answers, said, code = chat(
        invoke, demo_clip, "Gone?", "/at 1-3", FIRST, NEXT, "/stats", "/report out.html", "/save", "/new", "Who?",
        "/save 'other name.md'", "/report later.html",
    )  # fmt: skip
    assert code == 0
    assert answers[4:] == []
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert FIRST in page
    assert NEXT in page
    assert "Gone?" not in page  # that was about all of the clip
    assert FIRST not in (tmp_path / "later.html").read_text(encoding="utf-8")
    transcript = (tmp_path / "chat.md").read_text(encoding="utf-8")
    assert transcript.startswith(f"# city.mp4\n\n**Gone?**\n\n{answers[0]}\n\n*(looking at 1-3)*\n\n**{FIRST}**\n\n")
    assert (tmp_path / "other name.md").read_text(encoding="utf-8").endswith(f"---\n\n**Who?**\n\n{answers[3]}\n")
    known = re.search(
        r"Kept for the next question: [\d.]+ [KM]iB\. (\d+) of its prompt's (\d+) tokens were known", said
    )
    assert known
    assert 0.8 < int(known[1]) / int(known[2]) < 1
    assert f"asked {NEXT}" in said


def test_help_lists_every_command(invoke: Invoke) -> None:
    _, said, code = chat(invoke, None, "/help", "/quit", "/nope")
    assert code == 0  # what comes after the end is not heard
    assert [name for name in COMMANDS if f"{name} " not in said] == []
    assert "Ctrl-C stops an answer, Ctrl-D leaves." in said


def test_the_readmes_conversation_is_todays(tmp_path: Path) -> None:
    (shown,) = (block for block in blocks(README, "console") if "holitom chat" in block)
    _prepare(tmp_path)
    assert _console(shown, tmp_path) == shown
    assert "top right" in shown


def test_a_lent_wake_up_socket_comes_back() -> None:
    with socket.socket() as ours, socket.socket() as theirs:
        for one in (ours, theirs):
            one.setblocking(False)
        before = signal.set_wakeup_fd(ours.fileno())
        try:
            with signals_are_lent():
                assert signal.set_wakeup_fd(theirs.fileno()) == -1
        finally:
            assert signal.set_wakeup_fd(before) == ours.fileno()


# --- at a terminal -------------------------------------------------------------------------------

needs_terminals = pytest.mark.skipif(sys.platform == "win32", reason="signals and terminals are others there")


class Typist:
    """Types into a program's terminal, and reads what is there."""

    def __init__(self, process: subprocess.Popen[bytes], terminal: int) -> None:
        self.process, self._terminal = process, terminal
        self._text = b""
        self._seen = 0

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def until(self, pattern: str) -> str:
        """Wait for this behind what was waited for last; returns everything up to there."""
        deadline = time.monotonic() + 30
        while not (found := re.search(pattern, self._text[self._seen :].decode(errors="replace"))):
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, (pattern, self._text[self._seen :])
            try:
                piece = os.read(self._terminal, 65536)
            except OSError:  # how Linux says that the last writer is gone
                piece = b""
            assert piece, (pattern, self._text[self._seen :])
            self._text += piece
        text = self._text[self._seen :].decode(errors="replace")[: found.end()]
        self._seen += len(text.encode())
        return text

    def end(self) -> int:
        while True:
            try:
                if not os.read(self._terminal, 65536):
                    break
            except OSError:
                break
        return self.process.wait(20)


@contextmanager
def typing(home: Path, *arguments: str | Path) -> Iterator[Typist]:
    import termios

    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    shown = environment(home, TERM="xterm-256color", PROMPT_TOOLKIT_NO_CPR="1")
    command = list(map(str, [PROGRAM, "chat", *arguments]))
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=shown, cwd=home)
    os.close(theirs)
    try:
        yield Typist(process, ours)
    finally:
        process.kill()
        process.wait(20)
        os.close(ours)


PROMPT = r"\x1b\[\?2004h"  # what is pasted comes in brackets from here on: a line is waited for


@pytest.fixture
def endless(tmp_path: Path) -> tuple[str, ...]:
    """Options with which answers do not end by themselves."""
    copy = tmp_path / "endless"
    shutil.copytree(RANDOM, copy)
    settings = copy / "generation_config.json"
    content = json.loads(settings.read_text(encoding="utf-8"))
    token = json.loads((copy / "config.json").read_text(encoding="utf-8"))["image_token_index"]
    settings.write_text(json.dumps(content | {"eos_token_id": token}), encoding="utf-8")
    return ("--model", str(copy), "--device", "cpu", "--num-frames", "4", "--max-new-tokens", "30000")


@needs_terminals
def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(tmp_path: Path, demo_clip: Path, endless: tuple[str, ...]) -> None:
    with typing(tmp_path, demo_clip, *endless) as typist:
        typist.until(PROMPT)
        for _ in range(3):  # the guard hears of every one of them
            typist.type("What?\r")
            typist.until(r"(\w+ ){20}")
            typist.process.send_signal(signal.SIGINT)
            typist.until("Stopped")
            typist.until(PROMPT)
        typist.type("abc\x03")  # gives the line up
        for line in ("/set max_new_tokens=3", "Who?", "/save"):
            typist.until(PROMPT)
            typist.type(f"{line}\r")
        typist.until("Wrote ")
        typist.until(PROMPT)
        typist.type("\x04")
        assert typist.end() == 0
    transcript = (tmp_path / "chat.md").read_text(encoding="utf-8")
    parts = transcript.split("\n\n")
    assert parts.count("**What?**") == 3
    assert len(parts[2].split()) >= 20  # as far as it came
    assert parts[-2] == "**Who?**"
    assert "abc" not in transcript


@needs_terminals
def test_ctrl_c_while_a_clip_is_watched(tmp_path: Path, demo_clip: Path) -> None:
    with typing(tmp_path, *FAST[:4], "--num-frames", "100", "--method", "full", "--no-cache") as typist:
        typist.until(PROMPT)
        typist.type(f"/open {demo_clip}\r")
        typist.until("Watching|Reading")
        typist.process.send_signal(signal.SIGINT)
        typist.until("Stopped")
        typist.until(PROMPT)
        typist.type("What?\r")
        typist.until("No clip is open yet")
        typist.until(PROMPT)
        typist.type(f"/set num_frames=2\r/open {demo_clip}\r")
        typist.until("2 frames")


@needs_terminals
def test_lines_are_remembered_for_their_user_alone(tmp_path: Path, demo_clip: Path) -> None:
    with typing(tmp_path, demo_clip, *FAST) as typist:
        typist.until(PROMPT)
        typist.type("Whose is it?\r")
        typist.until(PROMPT)
        typist.type("\x04")
        assert typist.end() == 0
    (file,) = tmp_path.rglob("chat-history")
    assert file == tmp_path / ".local" / "share" / "holitom" / "chat-history"
    assert file.stat().st_mode & 0o777 == 0o600
    assert "Whose is it?" in file.read_text(encoding="utf-8")
    with typing(tmp_path, *FAST) as typist:
        typist.until(PROMPT)
        typist.type("\x1b[A")  # up
        typist.until(re.escape("Whose is it?"))


@needs_terminals
def test_a_history_that_cannot_be_kept_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with typing(tmp_path, *FAST, "--data-dir", "file") as typist:
        typist.until("What is typed will not be remembered")
        typist.until(PROMPT)


def test_a_line_that_cannot_be_remembered_is_asked_all_the_same(tmp_path: Path) -> None:
    history = _history(tmp_path, Talk(quiet=True))
    history.append_string("first")
    (file,) = tmp_path.rglob("chat-history")
    assert "+first" in file.read_text(encoding="utf-8")
    file.unlink()
    file.mkdir()
    history.append_string("second")
    assert list(history.get_strings())[-1] == "second"


@needs_terminals
def test_ctrl_c_in_a_pipe_ends_it(tmp_path: Path, demo_clip: Path, endless: tuple[str, ...]) -> None:
    command = list(map(str, [PROGRAM, "chat", demo_clip, *endless]))
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(tmp_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"What?\nWho?\n")
        process.stdin.flush()
        assert process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
