"""Ctrl-C at any moment, closed pipes, and real terminals."""

from __future__ import annotations

import importlib.machinery
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Self

import psutil
import pytest

from tests.program import FAST, PROGRAM, Invoke, environment

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and terminals are others there")

LIMIT_SECONDS = 0.5
# Enough work to be interrupted in: prefill takes seconds, and so do the tokens after it.
LONG = [*FAST[:4], "--num-frames", "24", "--method", "full", "--max-new-tokens", "4000"]
LONG_ANSWER = [*FAST[:4], "--num-frames", "8", "--temperature", "5", "--max-new-tokens", "4000"]


class Running:
    """A program whose stderr and stdout are listened to."""

    def __init__(self, command: list[str | Path], home: Path) -> None:
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            list(map(str, command)), cwd=home, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.pipes = (self.process.stdout, self.process.stderr)
        self.heard = ["", ""]  # on stdout, on stderr
        self.threads = [threading.Thread(target=self._listen, args=(place,), daemon=True) for place in (0, 1)]
        for thread in self.threads:
            thread.start()

    def _listen(self, place: int) -> None:
        while piece := self.pipes[place].read1():  # type: ignore[attr-defined]
            self.heard[place] += piece.decode(errors="replace")

    def until(self, happens: Callable[[], object]) -> None:
        """Wait until this is so."""
        deadline = time.monotonic() + 60
        while not happens():
            assert self.process.poll() is None, self.heard
            assert time.monotonic() < deadline, self.heard
            time.sleep(0.002)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)  # type: ignore[no-any-return,unused-ignore]

    def interrupt(self) -> float:
        """Seconds from SIGINT to the end."""
        start = time.perf_counter()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(20)
        return time.perf_counter() - start

    def end(self) -> str:
        """Everything it said."""
        for thread in self.threads:
            thread.join(10)
        return "".join(self.heard)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(20)
        self.end()
        for pipe in self.pipes:
            pipe.close()


def ask(clip: Path, options: list[str]) -> list[str | Path]:
    return [PROGRAM, "ask", clip, "What?", *options]


MOMENTS: dict[str, tuple[list[str], Callable[[Running], object]]] = {
    "start": (LONG, lambda running: time.monotonic() > running.began + 0.1),
    "imports": (LONG, lambda running: time.monotonic() > running.began + 0.4),
    "torch's import": (LONG, lambda running: time.monotonic() > running.began + 0.6),
    "the end of it": (LONG, lambda running: time.monotonic() > running.began + 0.9),
    "loading": (LONG, lambda running: "Loading " in running.heard[1]),
    "decoding": (LONG, lambda running: "Reading frames" in running.heard[1] and running.children()),
    "watching": (LONG, lambda running: "Watching" in running.heard[1]),
    "prefill": (LONG, lambda running: "Answering" in running.heard[1]),
    "answering": (LONG_ANSWER, lambda running: running.heard[0]),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_ends_it_within_half_a_second(tmp_path: Path, demo_clip: Path, moment: str) -> None:
    options, has_come = MOMENTS[moment]
    taken: list[float] = []
    while not taken or (taken[-1] > LIMIT_SECONDS and len(taken) < 3):  # others share the machine
        with Running(ask(demo_clip, options), tmp_path) as running:
            running.until(lambda running=running: has_come(running))  # type: ignore[misc]
            children = running.children()
            taken.append(running.interrupt())
            assert running.process.returncode == 130
            said = running.end()
        assert "Traceback" not in said
        assert "KeyboardInterrupt" not in said
        assert "error" not in said
        assert psutil.wait_procs(children, timeout=2)[1] == []  # no decoder is left behind
    assert min(taken) <= LIMIT_SECONDS


BUSY = """
import hashlib, sys
from holitom_cli.cli.guard import watch_for_interrupts
if "guarded" in sys.argv:
    watch_for_interrupts()
print("busy", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 20_000_000)
"""


@pytest.mark.parametrize("guarded", [True, False])
def test_native_code_is_interrupted_too(tmp_path: Path, guarded: bool) -> None:
    """One call that does not come back for seconds; without the guard, the control, Ctrl-C has to wait for it."""
    with Running([sys.executable, "-c", BUSY, "guarded" if guarded else ""], tmp_path) as running:
        running.until(lambda: "busy" in running.heard[0])
        if guarded:
            assert running.interrupt() <= 2 * LIMIT_SECONDS
            assert running.process.returncode == 130
        else:
            running.process.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                running.process.wait(3 * LIMIT_SECONDS)


@pytest.mark.parametrize(
    "command",
    [["--help"], ["methods"], ["methods", "--json"], ["--version"]],
    ids=" ".join,
)
def test_a_closed_pipe_is_no_error(tmp_path: Path, command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [PROGRAM, *command],
        stdout=writer, stderr=subprocess.PIPE, env=environment(tmp_path), cwd=tmp_path, timeout=60, check=False,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_reader_that_leaves_early_ends_the_answer(tmp_path: Path, demo_clip: Path) -> None:
    """As in `holitom ask ... 2>&1 | head -c 1`."""
    process = subprocess.Popen(
        list(map(str, ask(demo_clip, LONG_ANSWER))),
        cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.stdout.close()
    assert process.wait(60) == 0


@pytest.mark.parametrize("command", [["methods"], ["--version"]], ids=" ".join)
def test_a_full_disk_is_an_error(tmp_path: Path, command: list[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [PROGRAM, *command],
            stdout=full, stderr=subprocess.PIPE, env=environment(tmp_path), text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: No space left on device.\nhint: ")
    assert "Traceback" not in done.stderr


def test_missing_standard_streams_are_no_error(tmp_path: Path, demo_clip: Path) -> None:
    for command, closed in (("methods", ">&-"), ("--help", "2>&-"), ("--help", ">&- 2>&- <&-")):
        line = f'"$0" {command} {closed}'
        done = subprocess.run(["sh", "-c", line, PROGRAM], env=environment(tmp_path), timeout=60, check=False)
        assert done.returncode == 0, closed
    asked = subprocess.run(
        ["sh", "-c", '"$0" ask "$1" - <&-', PROGRAM, demo_clip],
        env=environment(tmp_path), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert asked.returncode == 2
    assert asked.stderr.startswith("error: A question is empty.")


class Screen:
    """What a terminal shows after these bytes: enough of one for spinners and reports."""

    def __init__(self, text: str) -> None:
        self.lines = [""]
        self.row = 0
        self.column = 0
        self.cursor = True
        for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|.|\n", text, re.DOTALL):
            self._take(token)

    def _take(self, token: str) -> None:
        if token == "\r":
            self.column = 0
        elif token == "\n":
            self.row += 1
            self.lines += [""] * (self.row + 1 - len(self.lines))
        elif token == "\x1b[2K":
            self.lines[self.row] = ""
        elif match := re.fullmatch(r"\x1b\[(\d+)A", token):
            self.row -= int(match[1])
        elif token in ("\x1b[?25l", "\x1b[?25h"):
            self.cursor = token.endswith("h")
        elif re.fullmatch(r"\x1b\[[0-9;]*m", token):
            pass  # colours
        else:
            assert token.isprintable(), repr(token)
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + token + line[self.column + 1 :]
            self.column += 1


def at_a_terminal(command: list[str | Path], home: Path, interrupt_at: str = "", **variables: str) -> tuple[int, str]:
    """Exit code and all output of a program whose streams are one terminal."""
    ours, theirs = os.openpty()
    shown = environment(home, TERM="xterm-256color", **variables)
    process = subprocess.Popen(list(map(str, command)), stdin=theirs, stdout=theirs, stderr=theirs, env=shown, cwd=home)
    os.close(theirs)
    text = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # how Linux says that the last writer is gone
            break
        if not piece:
            break
        text += piece
        if interrupt_at and interrupt_at.encode() in text:
            process.send_signal(signal.SIGINT)
            interrupt_at = ""
    os.close(ours)
    return process.wait(20), text.decode()


def test_a_spinner_does_not_swallow_the_answer(invoke: Invoke, tmp_path: Path, demo_clip: Path) -> None:
    question = "What is shown in the video?"
    piped = invoke("ask", demo_clip, question, *FAST, "--quiet")
    code, text = at_a_terminal([PROGRAM, "ask", demo_clip, question, *FAST], tmp_path)
    assert code == 0
    assert "Loading " in text  # the spinner was there
    assert "\x1b[1m" in text
    screen = Screen(text)
    assert screen.lines[0] == piped.out.rstrip("\n") != ""
    assert screen.lines[1].startswith("city.mp4")
    assert screen.cursor
    assert max(map(len, screen.lines)) <= 80, max(screen.lines, key=len)
    assert not [line for line in screen.lines if "Answering" in line or "Loading" in line]


def test_ctrl_c_gives_the_cursor_back(tmp_path: Path, demo_clip: Path) -> None:
    code, text = at_a_terminal(ask(demo_clip, LONG), tmp_path, interrupt_at="Answering")
    assert code == 130
    assert "\x1b[?25l" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_no_color_and_a_narrow_terminal(tmp_path: Path) -> None:
    code, plain = at_a_terminal([PROGRAM, "methods", "holitom"], tmp_path, NO_COLOR="1", COLUMNS="40")
    assert code == 0
    assert not re.search(r"\x1b\[[0-9;]*3\d", plain)  # no colour; bold and dim may stay
    assert max(map(len, Screen(plain).lines)) <= 40
    _, wide = at_a_terminal([PROGRAM, "ask", "nope", "What?"], tmp_path)
    assert re.search(r"\x1b\[[0-9;]*31m", wide)  # control: errors are red otherwise


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_what_a_model_makes_up_does_not_act_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from holitom_cli.cli.console import write

    hostile = "red \x1b[31mtext\x07\nsecond\r\x9b2J line \u202e"
    write(hostile)
    assert capsys.readouterr().out == hostile  # data: untouched in a pipe
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    write(hostile)
    shown = terminal.getvalue()
    assert shown.count("\n") == 1
    assert all(char.isprintable() for char in shown if char != "\n")
    assert "\\x1b[31mtext" in shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_encoding_of_stdout_will_do(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    from holitom_cli.cli import console

    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    console.write("Straße 橋 🌉\n")
    console.write_json({"answer": "Straße 橋 🌉"}, indent=None)
    text, document = written.getvalue().decode(encoding).splitlines()
    assert json.loads(document) == {"answer": "Straße 橋 🌉"}
    assert text == ("Straße 橋 🌉" if encoding == "utf-8" else text)
    assert ("橋" in document) is ("橋" in text) is (encoding == "utf-8")


def test_nothing_is_raised_into_torchs_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its C++ lets no exception through: the process would abort. The watching thread ends it all the same."""
    from holitom_cli.cli.guard import _raise_where_it_can_be

    module = types.ModuleType("torch")
    module.__spec__ = importlib.machinery.ModuleSpec("torch", None)
    monkeypatch.setitem(sys.modules, "torch", module)
    with pytest.raises(KeyboardInterrupt):
        _raise_where_it_can_be(signal.SIGINT, None)
    module.__spec__._initializing = True  # type: ignore[attr-defined]
    _raise_where_it_can_be(signal.SIGINT, None)
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(KeyboardInterrupt):
        _raise_where_it_can_be(signal.SIGINT, None)
