"""`holitom ask --inline` in stand-ins for terminals: what they get is the frames with what was kept, or a sentence."""

from __future__ import annotations

import io
import os
import re
import select
import struct
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from holitom_cli.cli import inline
from holitom_cli.errors import UsageError
from tests.program import FAST, PROGRAM, Invoke, environment

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="terminals are others there")

COLUMNS, ROWS, CELL = 80, 30, (10, 20)
SIXELS = {b"\x1b[c": b"\x1b[?62;4;22c"}
NOTHING = {b"\x1b[c": b"\x1b[?62;22c"}
KITTY = NOTHING | {b"\x1b_Gi=": b"\x1b_Gi=1;OK\x1b\\"}  # it answers the query, which begins so


def in_terminal(command: list[str | Path], home: Path, replies: Mapping[bytes, bytes]) -> tuple[int, bytes]:
    """Run a command in a terminal that answers as `replies` say: exit code and everything that it was sent."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    size = struct.pack("HHHH", ROWS, COLUMNS, COLUMNS * CELL[0], ROWS * CELL[1])
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    child = environment(home) | {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    process = subprocess.Popen(
        list(map(str, command)), cwd=home, env=child, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    sent, open_queries, deadline = b"", dict(replies), time.monotonic() + 90
    while time.monotonic() < deadline:
        if not select.select([ours], [], [], 0.05)[0]:
            if process.poll() is not None:
                break
            continue
        try:
            sent += os.read(ours, 65536)
        except OSError:  # Linux's way of saying that nobody has it open any more
            break
        for query in [query for query in open_queries if query in sent]:
            os.write(ours, open_queries.pop(query))
    os.close(ours)
    return process.wait(20), sent


def decoded_sixels(data: str) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """The picture (H, W, 3) of a sixel stream, by the rules of DEC's manual."""
    width, height = map(int, re.findall(r'^"\d+;\d+;(\d+);(\d+)', data)[0])
    picture, palette = np.zeros((height + 6, width, 3), np.uint8), {}
    x = y = colour = 0
    for kind, numbers, char in re.findall(r'(["#!$-])([\d;]*)|([?-~])', data):
        parts = [int(part) for part in numbers.split(";") if part]
        if kind == "#":
            colour = parts[0]
            if len(parts) == 5:
                palette[colour] = [round(255 * share / 100) for share in parts[2:]]
        elif kind == "$":
            x = 0
        elif kind == "-":
            x, y = 0, y + 6
        elif kind == "!":
            count = parts[0]
            continue
        elif char:
            for bit in range(6):
                if (ord(char) - 63) >> bit & 1:
                    picture[y + bit, x : x + count] = palette[colour]
            x += count
        count = 1
    return picture[:height]


def sheet(home: Path, clip: Path) -> Image.Image:
    """What the same question gives as a contact sheet."""
    command = [PROGRAM, "ask", clip, "What is there?", *FAST, "--contact-sheet", "sheet.png", "--quiet", "--no-cache"]
    done = subprocess.run(list(map(str, command)), cwd=home, env=environment(home), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return Image.open(home / "sheet.png").convert("RGB")


def frames_of(picture: Image.Image, across: int, count: int) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    """Small versions of a strip's first frames, by its proportions: gaps and labels left out."""
    width = picture.width / across
    boxes = [
        (n * width + 0.06 * width, 0.12 * picture.height, (n + 0.9) * width, 0.7 * picture.height) for n in range(count)
    ]
    return [np.asarray(picture.crop(tuple(map(round, box))).resize((8, 6)), dtype=float) for box in boxes]  # type: ignore[arg-type]


def check_alike(strip: Image.Image, home: Path, clip: Path) -> None:
    """The strip shows the frames of the contact sheet, in order."""
    whole = sheet(home, clip)
    row = whole.height // 2
    halves = [whole.crop((0, top, whole.width, top + row)) for top in (0, row)]
    wanted = [frame for half in halves for frame in frames_of(half, 2, 2)]
    found = frames_of(strip, 4, 4)
    apart = np.array([[np.abs(one - other).mean() for other in wanted] for one in found])
    assert apart.diagonal().max() < 25
    assert apart.argmin(axis=1).tolist() == [0, 1, 2, 3]  # each is most like its own


COMMAND: list[str | Path] = [PROGRAM, "ask", "clip.mp4", "What is there?", *FAST, "--inline", "--no-cache"]


@pytest.fixture
def home(tmp_path: Path, demo_clip: Path) -> Path:
    (tmp_path / "clip.mp4").symlink_to(demo_clip)
    return tmp_path


def test_a_terminal_with_sixels_shows_the_frames(home: Path) -> None:
    code, sent = in_terminal(COMMAND, home, SIXELS)
    assert code == 0, sent
    (data,) = re.findall(rb"\x1bP[\d;]*q(.*?)\x1b\\", sent, re.DOTALL)
    picture = Image.fromarray(decoded_sixels(data.decode("ascii")))
    assert picture.width <= COLUMNS * CELL[0]
    assert picture.height <= (ROWS - 2) * CELL[1]
    check_alike(picture, home, Path("clip.mp4"))


def test_kitty_shows_the_frames(home: Path) -> None:
    code, sent = in_terminal(COMMAND, home, KITTY)
    assert code == 0, sent
    pieces = re.findall(rb"\x1b_Gi=\d+,m=[01],f=100,q=2;([^\x1b]*)\x1b", sent)
    assert pieces
    picture = Image.open(io.BytesIO(b64decode(b"".join(pieces)))).convert("RGB")
    assert "\U0010eeee" in sent.decode("utf-8")  # where it stands
    check_alike(picture, home, Path("clip.mp4"))


def test_another_terminal_gets_a_sentence_and_the_answer(home: Path) -> None:
    code, sent = in_terminal(COMMAND, home, NOTHING)
    assert code == 0, sent
    words = " ".join(re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", sent.decode("utf-8")).split())
    assert words.count("This terminal shows no pictures") == 1
    assert b"\x1bPq" not in sent
    assert "holitom keeps" in words


def test_where_there_is_no_terminal_it_is_told(invoke: Invoke, home: Path) -> None:
    done = invoke("ask", home / "clip.mp4", "What is there?", *FAST, "--inline")
    assert done.code == 0, done.err
    assert inline.CANNOT in " ".join(done.err.split())


def test_nothing_is_asked_of_a_terminal_without_the_option(home: Path) -> None:
    command = [part for part in COMMAND if part != "--inline"]
    code, sent = in_terminal(command, home, SIXELS)
    assert code == 0, sent
    assert b"\x1b[c" not in sent
    assert b"\x1bP" not in sent


def test_quiet_has_no_report_to_show_it_in(invoke: Invoke, home: Path) -> None:
    done = invoke("ask", home / "clip.mp4", "What is there?", *FAST, "--inline", "--quiet")
    done.sentence(2, "With --quiet there is no report, so --inline has no effect.")


def test_without_the_library_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "__stdin__", Terminal())
    monkeypatch.setattr(sys, "__stdout__", Terminal())
    monkeypatch.setitem(sys.modules, "textual_image.renderable", None)
    with pytest.raises(UsageError, match="need the library textual-image") as caught:
        inline.painter(Console(force_terminal=True))
    assert "pip install textual-image" in caught.value.hint
    assert inline.painter(Console(force_terminal=False)) is None
