"""`holitom batch --engine ray`, on a cluster of two nodes that are processes here: the rows of one machine, once."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.batch.kills import rows_by_place
from tests.batch.ray_cluster import running
from tests.clips import make
from tests.program import FAST, PROGRAM, SCHEMA, Invoke, environment, installed

CLUSTER = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")
ASK = ("--no-cache", "-q", "What?", "-q", "Why?")
SLOW = (*FAST[:6], "--max-new-tokens", "400", "--temperature", "5")
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running(2) as found:
        yield found


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(5):
        make(folder / f"{number}.mp4", frames=20 + number)
    shutil.copy(folder / "0.mp4", folder / "twin.mp4")
    (folder / "broken.mp4").write_text("no", encoding="utf-8")
    return folder


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        SCHEMA.validate(row)
    return rows


def models() -> list[psutil.Process]:
    """The processes of models, anywhere on this machine."""
    return [one for one in psutil.process_iter() if "Answerer" in _command(one)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def begun(home: Path, address: str, *command: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [PROGRAM, "batch", *map(str, command), "--engine", "ray"],
        env=environment(home, RAY_ADDRESS=address), cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def until_rows(process: subprocess.Popen[bytes], output: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while not (output.exists() and output.read_bytes().count(b"\n") >= count):
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@CLUSTER
def test_the_rows_are_those_of_one_machine(address: str, clips: Path, tmp_path: Path) -> None:
    """Named by relative paths, which other machines cannot know."""
    command = ["batch", "clips", *FAST, *ASK]
    alone = installed(*command, "-o", "alone.jsonl", home=tmp_path)
    there = installed(*command, "--engine", "ray", "-o", "rows.jsonl", home=tmp_path, RAY_ADDRESS=address, timeout=200)
    assert (alone.code, there.code) == (3, 3), there.err
    assert "Traceback" not in there.err
    expected, made = (rows_of(tmp_path / name) for name in ("alone.jsonl", "rows.jsonl"))
    assert len(made) == len({row["key"] for row in made}) == 12  # of two equal clips one is answered
    keys = {row["key"]: (row.get("answer"), row.get("error"), row.get("model")) for row in expected}
    assert {row["key"]: (row.get("answer"), row.get("error"), row.get("model")) for row in made} == keys
    mixed = installed(*command, "-o", "rows.jsonl", home=tmp_path)  # this machine knows those rows, too
    assert "0 answered, 0 failed, 12 skipped, 2 failed before" in mixed.err
    assert len(rows_of(tmp_path / "rows.jsonl")) == 12


@CLUSTER
def test_windows_are_rows_on_a_cluster_too(address: str, clips: Path, tmp_path: Path, demo_clip: Path) -> None:
    command = ["batch", str(demo_clip), "clips/broken.mp4", *FAST, "--no-cache", "-q", "What?", "--every", "2s"]
    alone = installed(*command, "-o", "alone.jsonl", home=tmp_path)
    there = installed(
        *command, "--engine", "ray", "--rows", "3", "-o", "rows.jsonl", home=tmp_path, RAY_ADDRESS=address, timeout=200
    )
    assert (alone.code, there.code) == (3, 3), there.err
    said = [
        {(row["key"], row.get("start_s"), row.get("end_s"), row.get("answer")) for row in rows_of(tmp_path / name)}
        for name in ("alone.jsonl", "rows.jsonl")
    ]
    assert said[0] == said[1]
    assert len(said[1]) == 5


@CLUSTER
@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_a_killed_model_and_a_killed_run_lose_nothing(address: str, clips: Path, tmp_path: Path) -> None:
    command = ["clips", *SLOW, *ASK, "--rows", "2"]
    assert installed("batch", *command, "-o", "whole.jsonl", home=tmp_path).code == 3
    output = tmp_path / "rows.jsonl"
    with begun(tmp_path, address, *command, "-o", output) as run:
        until_rows(run, output, 1)
        first = models()
        first[0].send_signal(signal.SIGKILL)  # a model, with what it had begun
        until_rows(run, output, 3)
        run.kill()  # and then all of it
    torn = {row["key"] for row in rows_of(output) if "answer" in row}
    assert len(first) == 2
    assert torn
    done = installed(
        "batch", *command, "--engine", "ray", "-o", output, home=tmp_path, RAY_ADDRESS=address, timeout=200
    )
    assert done.code == 3, done.err
    answered, skipped = (int(done.err.splitlines()[-1].split(", ")[place].split()[0]) for place in (0, 2))
    assert answered == 10 - len(torn)  # of ten, those that were there are not made again
    assert skipped == len(torn) + 2  # and the twin's
    made = [row for row in rows_of(output) if "answer" in row]
    assert len(made) == 10
    whole = {row["key"]: row["answer"] for row in rows_of(tmp_path / "whole.jsonl") if "answer" in row}
    assert {row["key"]: row["answer"] for row in made} == whole
    psutil.wait_procs(models(), timeout=20)
    assert models() == []


POISONED = """
import os, sys
from pathlib import Path
from holitom_cli import methods
from holitom_cli.batch.cluster import Cluster, Order, connect
from holitom_cli.batch.ledger import Ledger
from holitom_cli.batch.questions import Asked, Job
from holitom_cli.batch.runner import Plan
from holitom_cli.cli.tally import row_of
from holitom_cli.types import Answer, Generation, Sampling

def poisoned(item):
    if item.job.clip.name == "2.mp4" and isinstance(item.outcome, Answer):
        os._exit(7)
    return row_of(item)

connect()
jobs = [Job(Path(f"clips/{n}.mp4"), (Asked("What?"), Asked("Why?")), number=n) for n in range(5)]
plan = Plan(methods.get("holitom"), Generation(5), Sampling(4), rows=2)
order = Order((sys.argv[1], None, "float32"), sys.argv[1], "cpu", plan)
for made in Cluster(jobs, order, Ledger(), poisoned):
    print(made.job.number, made.row.get("error", {}).get("message", "answered"), flush=True)
"""


@CLUSTER
def test_a_clip_that_ends_models_fails_alone(address: str, clips: Path, tmp_path: Path) -> None:
    """Ray would try it for ever."""
    done = subprocess.run(
        [sys.executable, "-c", POISONED, FAST[1]],
        env=environment(tmp_path, RAY_ADDRESS=address), cwd=tmp_path, capture_output=True, text=True, timeout=200,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    failed = ["2 2.mp4 ended its worker process twice."] * 2
    said = [line for line in done.stdout.splitlines() if line[0].isdigit()]  # Ray tells there of processes that died
    assert sorted(said) == sorted([f"{n} answered" for n in (0, 0, 1, 1, 3, 3, 4, 4)] + failed)


@CLUSTER
@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_ctrl_c_finishes_what_models_have_begun(address: str, demo_clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    windows = ("--every", "1s", *SLOW, "--no-cache", "-q", "What?")
    with begun(tmp_path, address, demo_clip, *windows, "-o", output) as run:
        until_rows(run, output, 1)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert b"Traceback" not in said
    made = rows_of(output)
    assert 1 <= len(made) < 7
    assert f"{len(made)} answered" in said.decode()
    psutil.wait_procs(models(), timeout=20)
    assert models() == []


@CLUSTER
def test_a_machine_without_the_model_ends_the_run(address: str, clips: Path, tmp_path: Path) -> None:
    """It was there where the command runs, and is gone when others look for it."""
    gone = POISONED.replace("connect()\n", "connect()\nsys.argv[1] = '/nowhere'\n", 1)
    done = subprocess.run(
        [sys.executable, "-c", gone, FAST[1]],
        env=environment(tmp_path, RAY_ADDRESS=address), cwd=tmp_path, capture_output=True, text=True, timeout=200,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "BatchError: A process of the cluster failed: There is no directory /nowhere." in done.stderr


def test_what_a_cluster_cannot_do_is_told(
    invoke: Invoke, demo_clip: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alone = ["batch", demo_clip, "-q", "What?", "--engine", "ray", "--model", "demo"]
    invoke(*alone).sentence(2, "--engine ray needs a file to go on from.")
    command = [*alone, "-o", "rows.jsonl"]
    invoke(*command, "--clip-pages", "pages").sentence(2, "Pages of clips are made by one machine alone.")
    invoke(*command, "--gpus", "all").sentence(2, "--engine ray chooses devices itself.")
    invoke(*command, "--device", "cuda:1").sentence(2, "--engine ray cannot keep to 'cuda:1'.")
    monkeypatch.setitem(sys.modules, "ray", None)
    invoke(*command).sentence(2, "--engine ray needs the library Ray, which is not installed.")


def test_rows_by_place_sees_a_difference() -> None:
    row = {"video": {"path": "a"}, "question": "q", "key": "k", "answer": "yes"}
    assert rows_by_place([row]) != rows_by_place([row | {"answer": "no"}])
