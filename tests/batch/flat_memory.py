"""Memory of a batch over many tiny clips: `python -m tests.batch.flat_memory [CLIPS]`.

Runs `holitom batch` on that many different clips, 2,000 by default, and notes what its process has written to while
rows come. Afterwards no process of it may be left, with which shared memory goes, since it has no name, and a
second run must get the file's lock. What a run has to remember of a clip is its path, its key and its job. The last
line is JSON; the exit code is 1 where memory grows by more than that, or something is left. Linux alone tells memory
this way.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import linear_regression

import psutil

from tests.clips import make
from tests.program import FAST, PROGRAM, environment

MOST_BYTES_A_CLIP = 5_000  # the pictures of one clip, for the model, are 1.8 MB
_LOOKS = 20


def main(count: int = 2000) -> int:
    """Run, print, and say whether it is as it should be."""
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        make_clips(home / "clips", count)
        command: list[str | Path] = [PROGRAM, "batch", "clips", *FAST, "--no-cache", "--rows", "4"]
        command += ["-q", "What?", "-o", "rows.jsonl"]
        run = subprocess.Popen(command, cwd=home, env=environment(home), stderr=subprocess.DEVNULL)
        looks, family = watch(run, home / "rows.jsonl", count)
        code = run.wait()
        _, left = psutil.wait_procs(family, timeout=5)
        again = subprocess.run(command, cwd=home, env=environment(home), capture_output=True, text=True, check=False)
    growth = linear_regression(*zip(*looks[_LOOKS // 4 : -1], strict=True)).slope  # in the last one it is ending
    print(f"{'rows':>6}{'MB':>8}")
    for done, used in looks:
        print(f"{done:>6}{used / 1e6:>8.1f}")
    skipped = f"{count} skipped" in again.stderr
    told = {"clips": count, "exit": code, "bytes_a_clip": round(growth)}
    left_over = {"processes": len(left), "second_run_skips_all": skipped}
    print(json.dumps(told | left_over | {"megabytes": [round(used / 1e6, 1) for _, used in looks]}))
    return int(code != 0 or growth > MOST_BYTES_A_CLIP or bool(left) or not skipped)


def make_clips(folder: Path, count: int) -> None:
    """Different clips of few small pictures: one film, and a number behind its end that no decoder reads."""
    folder.mkdir()
    film = make(folder / "film.mp4", frames=8, size=(96, 64)).read_bytes()
    (folder / "film.mp4").unlink()
    for number in range(count):
        box = number.to_bytes(8)
        (folder / f"{number:05}.mp4").write_bytes(film + (8 + len(box)).to_bytes(4) + b"free" + box)


def watch(run: subprocess.Popen[bytes], output: Path, count: int) -> tuple[list[tuple[int, int]], list[psutil.Process]]:
    """Rows, the fewest bytes on the way to them, since what clips bring goes again; and every process there was."""
    looks: list[tuple[int, int]] = []
    family: dict[int, psutil.Process] = {run.pid: psutil.Process(run.pid)}
    fewest = sys.maxsize
    while run.poll() is None:
        done = output.read_bytes().count(b"\n") if output.exists() else 0
        with suppress(psutil.Error):
            family |= {one.pid: one for one in family[run.pid].children(recursive=True)}
            fewest = min(fewest, family[run.pid].memory_full_info().uss)
            if done >= (len(looks) + 1) * count // _LOOKS:
                looks.append((done, fewest))
                fewest = sys.maxsize
        time.sleep(0.1)
    return looks, list(family.values())


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
