"""Two nodes of a Ray cluster against one: `python -m tests.batch.measure_cluster [--clips 100] [--rounds 1]`.

A node is kept to one core of this machine, with a model and decoders on it, as a machine of its own would be; the first
one's has Ray's head and the command on it, too, with two nodes as with one. Clips,
several times as many for two nodes as for one, are asked one question each of the demo model's size; rows count from
the first to the last, so that starting is left out. Rounds of one and of two nodes take turns, for machines that do
other things besides. Prints a table, and JSON on the last line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.batch.ray_cluster import running
from tests.clips import make
from tests.program import PROGRAM, environment

_ANSWERS = ("--temperature", "5")  # they never end early


def rate(home: Path, clips: int, tokens: int, nodes: int) -> float:
    """Rows a second, from the first to the last."""
    output = home / "rows.jsonl"
    output.unlink(missing_ok=True)
    command: list[str | Path] = [
        PROGRAM,
        "batch",
        home / "clips",
        "--sample",
        str(clips * nodes),
        "-q",
        "What happens?",
        "--no-cache",
    ]
    command += ["--model", "demo", "--num-frames", "8", "--max-new-tokens", str(tokens), *_ANSWERS, "-o", output]
    with running(nodes, "--pinned") as address:
        run = subprocess.Popen(
            [*command, "--engine", "ray"],
            env=environment(home, RAY_ADDRESS=address), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            preexec_fn=lambda: os.sched_setaffinity(0, {0}),  # noqa: PLW1509  # no other thread is there
        )  # fmt: skip
        moments: list[float] = []
        while run.poll() is None:
            rows = output.read_bytes().count(b"\n") if output.exists() else 0
            moments += [time.monotonic()] * (rows - len(moments))
            time.sleep(0.01)
        assert run.returncode == 0, run.stderr and run.stderr.read().decode()
    return (len(moments) - 1) / (moments[-1] - moments[0])


def main(clips: int, tokens: int, rounds: int) -> None:
    """Measure, and print."""
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        (home / "clips").mkdir()
        for number in range(2 * clips):
            make(home / "clips" / f"{number:03}.mp4", frames=50 + number)
        found: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(rounds):
            for nodes, rates in found.items():
                rates.append(rate(home, clips, tokens, nodes))
                print(f"{nodes} nodes: {rates[-1]:.2f} rows a second", flush=True)
    ratios = [two / one for one, two in zip(found[1], found[2], strict=True)]
    print(f"{'':8}{'rows a second':>16}")
    for nodes, rates in found.items():
        print(f"{nodes} nodes {statistics.median(rates):>16.2f}")
    print(f"ratio   {statistics.median(ratios):>16.2f}")
    told = {"clips_a_node": clips, "tokens": tokens, "cores": os.cpu_count(), "python": sys.version.split()[0]}
    print(json.dumps(told | {"rows_a_second": found, "ratios": ratios, "ratio": statistics.median(ratios)}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    main(given.clips, given.tokens, given.rounds)
