"""Many clients at once against a server: `python -m tests.serve.load [--clients 64] [--rounds 2]`.

First every question by itself, one after another; then all clients at once; then again beside clients that read slowly,
leave in the middle or send junk. Every answer has to be the pipeline's own, and no place and no row may be taken in the
end. The last line on stdout is JSON, and the exit code is 1 where something was wrong.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.clips import make
from tests.serve.conftest import DEMO_CLIP
from tests.serve.served import Served, asked, load, serving, stream
from tests.serve.test_answers import QUESTIONS, alone, raw

Pair = tuple[Path, str]
ROWS = 16


def main() -> int:
    """Run all of it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2, help="questions of each client")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        own = answers([DEMO_CLIP, *(make_clip(Path(folder), frames) for frames in (20, 40, 60))])
        with serving(lambda: load("demo"), Path(folder), rows=ROWS, places=4 * options.clients) as served:
            told = measure(served, own, options.clients, options.rounds)
    print(json.dumps(told))
    return 1 if told["wrong"] or told["places_taken"] or told["rows_taken"] else 0


def make_clip(folder: Path, frames: int) -> Path:
    path = folder / f"{frames}.mp4"
    make(path, frames=frames)
    return path


def answers(clips: Sequence[Path]) -> dict[Pair, str]:
    """What the pipeline says by itself."""
    model = load("demo")
    return {(clip, question): alone(model, clip, question).text for clip in clips for question in QUESTIONS}


def measure(served: Served, own: dict[Pair, str], clients: int, rounds: int) -> dict[str, Any]:
    pairs = [pair for pair, _ in zip(itertools.cycle(own), range(clients * rounds), strict=False)]
    ask(served, list(own), 1)  # clips are looked at, and libraries loaded
    single_seconds, by_itself = ask(served, pairs, 1)
    together_seconds, together = ask(served, pairs, clients)
    with rough_company(served) as joined:
        rough_seconds, rough = ask(served, pairs, clients)
        joined.set()
    served.settle()
    wrong = sum(
        heard != own[pair] for said in (by_itself, together, rough) for heard, pair in zip(said, pairs, strict=True)
    )
    return {
        "clients": clients,
        "questions": len(pairs),
        "rows": ROWS,
        "different_answers": len(set(own.values())),
        "wrong": wrong,
        "one_by_one_per_second": round(len(pairs) / single_seconds, 2),
        "together_per_second": round(len(pairs) / together_seconds, 2),
        "together_beside_rough_clients_per_second": round(len(pairs) / rough_seconds, 2),
        "speedup": round(single_seconds / together_seconds, 2),
        "places_taken": served.places_taken,
        "rows_taken": served.engine.speaking,
    }


def ask(served: Served, pairs: Sequence[Pair], clients: int) -> tuple[float, list[str]]:
    """Seconds that all questions take so many clients, and what each heard."""
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        heard = list(pool.map(lambda pair: stream(served, messages=[asked(*pair)]).text, pairs))
    return time.perf_counter() - began, heard


class rough_company:  # noqa: N801  # used as a function
    """Clients that read nothing, leave or send junk, until the event that it gives is set."""

    def __init__(self, served: Served) -> None:
        self._served, self._over = served, threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._slow, self._leaving, self._junk)]

    def __enter__(self) -> threading.Event:
        for thread in self._threads:
            thread.start()
        return self._over

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _body(self) -> dict[str, Any]:
        return self._served.body(DEMO_CLIP, QUESTIONS[2], stream=True, temperature=2, max_tokens=200)

    def _slow(self) -> None:
        with ExitStack() as held:
            for _ in range(8):
                held.enter_context(raw(self._served, self._body()))
            self._over.wait()

    def _leaving(self) -> None:
        while not self._over.wait(0.05):
            raw(self._served, self._body()).close()

    def _junk(self) -> None:
        for junk in itertools.cycle((b"{", b"[]", b'{"model": "demo"}', b"\xff" * 1000)):
            if self._over.wait(0.05):
                return
            assert self._served.post(junk).status_code == 400


if __name__ == "__main__":
    sys.exit(main())
