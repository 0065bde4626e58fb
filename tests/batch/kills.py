"""A batch that is killed again and again: `python -m tests.batch.kills [CLIPS [KILLS [SEED]]]`.

Makes clips, one in twenty of them broken, runs a batch over them in one go, then another one that is killed with
SIGKILL at random moments and started again each time, and compares the rows.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.clips import make
from tests.program import FAST, PROGRAM, environment

Rows = list[dict[str, Any]]
_ENDS = (0, 3)  # exit codes of a run that came through


def main(clips: int = 200, kills: int = 20, seed: int = 0) -> None:
    """Compare, and print what was found."""
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        folder = home / "clips"
        folder.mkdir()
        for number in range(clips - clips // 20):
            make(folder / f"{number:04}.mp4", frames=16 + number % 40, size=(96 + 2 * (number // 40), 64))
        broken = broken_clips(folder, clips // 20)
        command = ["batch", str(folder), *FAST, "--no-cache", "-q", "What is shown?"]
        began = time.monotonic()
        whole = uninterrupted(command, home / "whole.jsonl", home)
        seconds = time.monotonic() - began
        most = max(1, 2 * clips // kills)
        torn = killed_and_resumed(command, home / "torn.jsonl", home, kills=kills, seed=seed, most_rows=most)
        failed = {Path(row["video"]["path"]).name for row in torn if "error" in row}
        print(f"{clips} clips, {len(broken)} of them broken; in one go {seconds:.1f} s, {len(whole)} rows")
        print(f"killed {kills} times: {len(torn)} rows, the same: {rows_by_place(torn) == rows_by_place(whole)}")
        print(f"error rows are exactly the broken clips: {failed == broken}")


def broken_clips(folder: Path, count: int = 10) -> set[str]:
    """Write clips that are broken in various ways; returns their names."""
    whole = make(folder / "whole.mp4", frames=20).read_bytes()
    contents = [b"", b"no video", whole[: len(whole) // 3], bytes(5000), whole[:40], b"\x00\x00\x00\x18ftypmp42" * 9]
    names = [f"broken{number:03}.mp4" for number in range(count)]
    for number, name in enumerate(names):
        content = contents[number % len(contents)]
        (folder / name).write_bytes(content + bytes(number // len(contents)) if content else content)
    (folder / "whole.mp4").unlink()
    return set(names)


def uninterrupted(command: Sequence[str], output: Path, home: Path) -> Rows:
    """The rows of one run."""
    with _begun(command, output, home) as process:
        assert process.wait(1800) in _ENDS
    return _rows(output)


def killed_and_resumed(
    command: Sequence[str], output: Path, home: Path, *, kills: int, seed: int, most_rows: int
) -> Rows:
    """The rows of a run that was killed so often: when up to `most_rows` rows more are there, and a moment later."""
    draw, done = random.Random(seed), 0
    while done < kills:
        rows, wait = _count(output) + draw.randint(0, most_rows), draw.uniform(0, 0.3)
        with _begun(command, output, home) as process:
            while process.poll() is None and _count(output) < rows:
                time.sleep(0.002)
            time.sleep(wait)
            if process.poll() is not None:
                assert process.returncode in _ENDS
                break  # it was through before all kills were used
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=5)
        assert alive == []
        done += 1
    return uninterrupted(command, output, home)


def rows_by_place(rows: Rows) -> dict[tuple[str, str], Any]:
    """What was said of every clip and question; AssertionError where one has two rows."""
    said = {}
    for row in rows:
        place = (row["video"]["path"], row["question"])
        assert place not in said, place
        tokens = row.get("tokens") and {name: row["tokens"][name] for name in ("visual", "prompt", "generated")}
        said[place] = (row["key"], row.get("answer"), row.get("error"), tokens)
    return said


def _begun(command: Sequence[str], output: Path, home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [PROGRAM, *command, "-o", output], env=environment(home), cwd=home, stderr=subprocess.DEVNULL
    )


def _count(output: Path) -> int:
    return output.read_bytes().count(b"\n") if output.exists() else 0


def _rows(output: Path) -> Rows:
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
