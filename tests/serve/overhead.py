"""What `ask` costs beside its answer where a server gives it: `python -m tests.serve.overhead [--rounds 10]`.

Each round starts `holitom ask` anew: about a clip that the server has never seen, then again about the same one, and by
itself. Overhead is the process's wall time, from its start to its end, without the stages that its record counts:
starting Python, finding the server, sending frames and printing. Processor time is the client's and its decoder's; a
busy machine changes it less. The last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.clips import make
from tests.program import PROGRAM, environment
from tests.serve.test_local import server

FRAMES = 32


def main() -> int:
    """Measure and print; returns the exit code, 1 where an answer was not the server's or differed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", default="640x360", help="of the clips' pictures")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        rows: dict[str, list[dict[str, float]]] = {"new clip": [], "known clip": [], "without a server": []}
        floors = {"python": [], "holitom --version": []}  # type: dict[str, list[float]]
        wrong = 0
        asked = functools.partial(run, home, options.model, options.device)
        with server(home, options.model, device=options.device):
            for number in range(-1, options.rounds):  # the first round is not counted
                clip = home / f"{number}.mp4"
                make(clip, frames=60 + number, size=(width, height))
                said = {
                    "new clip": asked(clip),
                    "known clip": asked(clip),
                    "without a server": asked(clip, "--server", "off", "--no-cache"),
                }
                wrong += len({told["answer"] for _, told in said.values()}) > 1
                wrong += [told["served"] for _, told in said.values()] != [True, True, False]
                if number < 0:
                    continue
                for name, (row, _) in said.items():
                    rows[name].append(row)
                floors["python"].append(timed(lambda: start(home, sys.executable, "-c", "")))
                floors["holitom --version"].append(timed(lambda: start(home, str(PROGRAM), "--version")))
    told = {name: {key: middle(row[key] for row in found) for key in found[0]} for name, found in rows.items()}
    show(told, {name: middle(found) for name, found in floors.items()})
    print(json.dumps({"rounds": options.rounds, "wrong": wrong, "ms": told} | {
        "floor_ms": {name: middle(found) for name, found in floors.items()}}))  # fmt: skip
    return 1 if wrong else 0


def run(home: Path, model: str, device: str, clip: Path, *options: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Ask once; milliseconds, and what was said by whom."""
    before, spent = time.perf_counter(), processor_seconds()
    out = start(
        home, str(PROGRAM), "ask", str(clip), "What happens?", "--model", model, "--device", device,
        "--json", "--quiet", "--num-frames", str(FRAMES), *options,
    )  # fmt: skip
    wall = (time.perf_counter() - before) * 1000
    document = json.loads(out)
    (result,) = document["results"]
    answer = result["timings"]["time_to_answer_s"] * 1000
    row = {
        "wall": wall,
        "answer": answer,
        "overhead": wall - answer,
        "processor": (processor_seconds() - spent) * 1000,
    }
    return row, {"answer": result["answer"], "served": "served_by" in document}


def start(home: Path, *command: str) -> str:
    with_bytecode = environment(home, PYTHONPYCACHEPREFIX=str(home / "bytecode"))  # as where somebody has installed it
    with_bytecode.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=with_bytecode, timeout=120)
    return done.stdout


def processor_seconds() -> float:
    """What all processes have taken that were started here and have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def timed(work: Callable[[], object]) -> float:
    before = time.perf_counter()
    work()
    return (time.perf_counter() - before) * 1000


def middle(numbers: Any) -> float:
    return round(float(statistics.median(numbers)), 1)


def show(told: dict[str, dict[str, float]], floors: dict[str, float]) -> None:
    print(f"{'milliseconds, medians':<24}{'wall':>10}{'answer':>10}{'overhead':>10}{'processor':>10}")
    for name, row in told.items():
        print(f"{name:<24}" + "".join(f"{value:>10.1f}" for value in row.values()))
    for name, wall in floors.items():
        print(f"{name:<24}{wall:>10.1f}")


if __name__ == "__main__":
    sys.exit(main())
