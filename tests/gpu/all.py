"""Everything that is measured on a GPU, one thing after another, each in a process and a time of its own.

    python -m tests.gpu.all OUT [--only cold,bench] [--clip CLIP] [--gpus 2]

Writes OUT/NAME.log for each, prints how each ended, and JSON on the last line; the exit code is 1 where one failed.
What fails or takes too long does not keep the others from running. Bytecode goes into a folder of its own, so that a
machine whose site-packages cannot be written imports as one where they can.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_CLIP = Path(__file__).parents[2] / "holitom_cli" / "assets" / "demo" / "shapes.mp4"
_BENCH = ("holitom_cli", "bench", "--quiet", "--model")
_FRAMES = "8,16,32,64,128,256,512"


class Step(NamedTuple):
    """One measurement."""

    name: str
    command: Sequence[str]  # a module and its arguments
    seconds: int  # that it may take
    gpus: int = 1


def steps(clip: str, checkpoint: str) -> list[Step]:
    """What there is, the most wanted first; those that need the checkpoint come behind what writes it."""
    return [
        Step("write", ("tests.gpu.true_shapes", "7b", checkpoint), 90),
        Step("cold", ("tests.gpu.cold_start", clip, checkpoint), 120),
        Step("bench", (*_BENCH, "shape:7b", "--repeats", "5", "--output", "json"), 120),
        Step("frames", (*_BENCH, "shape:7b", "--num-frames", _FRAMES, "--against", "none", "--output", "jsonl"), 180),
        Step("small", (*_BENCH, "shape:0.5b", "--repeats", "5", "--output", "json"), 90),
        Step("compress", ("tests.gpu.compress",), 120),
        Step("follow", ("tests.gpu.follow_up",), 90),
        Step("overhead", ("tests.serve.overhead", "--model", checkpoint, "--device", "cuda"), 120),
        Step("load", ("tests.serve.load",), 120),
        Step("int8", (*_BENCH, "shape:7b", "--quantize", "int8", "--against", "none", "--output", "json"), 90),
        Step("int4", (*_BENCH, "shape:7b", "--quantize", "int4", "--against", "none", "--output", "json"), 90),
        Step("methods", (*_BENCH, "shape:7b", "--methods", "all", "--budgets", "25,20,15,10,5", "--against", "none",
                         "--max-new-tokens", "4", "--output", "jsonl"), 300),
        Step("kernels", ("tests.gpu.kernels",), 60),
        Step("capped", ("tests.gpu.capped",), 300),
        Step("batch", ("tests.gpu.measure_batch", "shape:7b", "--part", "loops"), 400),
        Step("gpus", ("tests.gpu.measure_batch", "shape:7b", "--part", "gpus"), 300, gpus=2),
        Step("spread", ("tests.gpu.two_gpus",), 60, gpus=2),
    ]  # fmt: skip


def run(step: Step, out: Path, environment: dict[str, str]) -> tuple[str, float]:
    """How a step ended, and its seconds; its output is in a file."""
    began = time.monotonic()
    with (out / f"{step.name}.log").open("wb") as log:
        command = [sys.executable, "-m", *step.command]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            code = process.wait(step.seconds)
            ended = f"exit {code}" if code else "done"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its workers, too
            process.wait()
            ended = f"stopped after {step.seconds} s"
    return ended, time.monotonic() - began


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--clip", default=str(_CLIP))
    parser.add_argument("--gpus", type=int, default=1, help="that there are (default: %(default)s)")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as place:
        todo = steps(options.clip, f"{place}/checkpoint")
        wanted = (options.only or ",".join(step.name for step in todo)).split(",")
        if unknown := sorted(set(wanted) - {step.name for step in todo}):
            parser.error(f"there is no {unknown[0]}: choose from {', '.join(step.name for step in todo)}")
        environment = os.environ | {"PYTHONPYCACHEPREFIX": f"{place}/bytecode", "PYTHONUNBUFFERED": "1"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for step in todo:
            if step.name not in wanted or step.gpus > options.gpus:
                continue
            results[step.name], seconds = run(step, options.out, environment)
            print(f"{step.name:10} {seconds:6.1f} s  {results[step.name]}", flush=True)
    print(json.dumps(results))
    return int(any(ended != "done" for ended in results.values()))


if __name__ == "__main__":
    sys.exit(main())
