"""The same questions through lmms-eval and through `holitom eval`, answer by answer.

`python -m tests.lmms.compare --lmms-python PYTHON` makes clips and questions, runs the task of this folder in the
environment of that interpreter, `holitom eval` in the environment of this one, and fails where an answer differs.
docs/lmms-eval.md says how to make that environment.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TASK = Path(__file__).parent / "task"
NAME = "holitom_shapes"

Answers = Mapping[tuple[str, str], str]  # (video, question): answer


@dataclass(frozen=True)
class Run:
    """What one program made of a set of questions."""

    accuracy: float
    answers: Answers


def main() -> None:
    """Compare every method of the command line; the exit code says whether all agreed."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(options.folder or folder)
        _make_questions(place, options.clips, options.first)
        agreed = [_compare(place, method, options) for method in options.methods.split(",")]
    sys.exit(0 if all(agreed) else 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lmms-python", required=True, help="interpreter of an environment with lmms-eval and holitom")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--methods", default="full,holitom", help="separated by commas; compared at --budget")
    parser.add_argument("--budget", type=int, default=15, help="percent of the visual tokens; one of holitom's presets")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--first", type=int, default=0, help="number of the first clip")
    parser.add_argument("--processes", type=int, default=1, help="of lmms-eval, by torchrun, on the CPU")
    parser.add_argument("--folder", help="keep clips, questions and results here")
    return parser.parse_args()


def _make_questions(place: Path, clips: int, first: int) -> None:
    from holitom_cli.quality.clips import write_set

    path = write_set(place, range(first, first + clips))
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(dict.fromkeys(lines)) + "\n", encoding="utf-8")  # `holitom eval` asks the same once


def _compare(place: Path, method: str, options: argparse.Namespace) -> bool:
    theirs = run_lmms_eval(place, method, options.budget, options.model, options.lmms_python, options.processes)
    ours = run_holitom_eval(place, method, options.budget, options.model)
    wrong = differences(theirs, ours)
    print(f"{method}: lmms-eval {theirs.accuracy:.4f}, holitom eval {ours.accuracy:.4f}, {len(ours.answers)} questions")
    print("\n".join(wrong) or "every answer is the same", flush=True)
    return not wrong


def differences(theirs: Run, ours: Run) -> list[str]:
    """What the two do not agree about, nothing if they agree about every answer and the accuracy."""
    found = [f"only one has {key}" for key in sorted(theirs.answers.keys() ^ ours.answers.keys())]
    pairs = {
        key: (theirs.answers[key], ours.answers[key]) for key in sorted(theirs.answers.keys() & ours.answers.keys())
    }
    # lmms-eval strips answers itself.
    found += [f"{key}: {one!r} and {other!r}" for key, (one, other) in pairs.items() if one.strip() != other.strip()]
    if abs(theirs.accuracy - ours.accuracy) > 1e-9:
        found.append(f"accuracy {theirs.accuracy} and {ours.accuracy}")
    if not ours.answers:
        found.append("there are no answers")
    return found


def run_lmms_eval(place: Path, method: str, budget: int, model: str, python: str, processes: int) -> Run:
    """lmms-eval's own run of the task, in the environment of another interpreter, without a network."""
    output = Path(tempfile.mkdtemp(prefix=f"lmms-{method}-", dir=place))
    share = {"full": "", "holitom": f",preset={budget}"}.get(method, f",retain_ratio={budget / 100}")
    module = ["-m", "lmms_eval", "--model", "holitom"]
    if processes > 1:
        module = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", *module]
    arguments = [f"--model_args=pretrained={model},method={method}{share}", f"--tasks={NAME}"]
    kept = ["--include_path", str(TASK), "--log_samples", "--output_path", str(output)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "hub"), "OMP_NUM_THREADS": "1"}
    several = {"ACCELERATE_USE_CPU": "true"} if processes > 1 else {}
    command = [python, *module, *arguments, *kept]
    done = subprocess.run(
        command, cwd=place, env=os.environ | offline | several, capture_output=True, text=True, check=False
    )
    results = sorted(output.rglob("*_results.json"))
    if not results:  # lmms-eval ends with 0 where its model failed, too
        sys.exit(f"lmms-eval gave no result:\n{done.stdout}\n{done.stderr}")
    score = json.loads(results[-1].read_text(encoding="utf-8"))["results"][NAME]["accuracy,none"]
    (samples,) = output.rglob(f"*_samples_{NAME}.jsonl")
    asked = [_key(row) for row in _rows(place / "questions.jsonl")]
    return Run(score, {asked[row["doc_id"]]: row["filtered_resps"] for row in _rows(samples)})


def run_holitom_eval(place: Path, method: str, budget: int, model: str) -> Run:
    """The same questions with `holitom eval`, answered in words."""
    rows = Path(tempfile.mkdtemp(prefix=f"eval-{method}-", dir=place)) / "rows.jsonl"
    wanted = ["--methods", method, "--budgets", str(budget), "--scoring", "text", "--model", model]
    command = [sys.executable, "-m", "holitom_cli", "eval", str(place / "questions.jsonl"), *wanted]
    done = subprocess.run([*command, "--output", str(rows), "--json"], stdout=subprocess.PIPE, text=True, check=True)
    (result,) = json.loads(done.stdout)["results"]
    return Run(result["accuracy"], {_key(row): row["answer"] for row in _rows(rows)})


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["video"], row["question"]


if __name__ == "__main__":
    main()
