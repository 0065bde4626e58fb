"""Several worker processes: every row once, whoever makes it and whoever dies."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from holitom_cli import methods
from holitom_cli.batch.crew import Crew, Made, Open, job_from, job_message, plan_document, plan_from
from holitom_cli.batch.ledger import Claim
from holitom_cli.batch.questions import Asked, Job
from holitom_cli.batch.runner import Plan, Run
from holitom_cli.cache import Cache
from holitom_cli.cli.tally import error_row, row_of
from holitom_cli.errors import BatchError
from holitom_cli.model import load_model
from holitom_cli.types import Generation, Sampling
from tests.batch.kills import rows_by_place
from tests.clips import make
from tests.make_random_checkpoint import RANDOM
from tests.program import Invoke

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
PLAN = Plan(methods.get("holitom"), Generation(max_new_tokens=3), Sampling(2), readers=1)
SETTING = {"output": None, "retry_failed": False, "force": False, "clip_pages": None}
MODEL = (str(RANDOM), None, "float32")


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    (tmp_path / "broken.mp4").write_text("no", encoding="utf-8")
    clips = [make(tmp_path / f"{number}.mp4", frames=10 + number) for number in range(5)]
    asked = (Asked("What?"), Asked("Why?", "mine"))
    return [Job(clip, asked, number=number) for number, clip in enumerate([*clips, tmp_path / "broken.mp4"])]


def crew(jobs: list[Job], plan: Plan = PLAN, workers: int = 2, **setting: Any) -> Crew:
    return Crew(jobs, ["cpu"] * workers, plan, MODEL, SETTING | setting, error_row)


def rows(made: list[Made]) -> dict[tuple[str, str], Any]:
    return rows_by_place([dict(one.row, question=f"{one.row['question']} {one.job.number}") for one in made if one.row])


def children() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if "batch_worker" in " ".join(one.cmdline())]


def test_plans_and_jobs_survive_the_journey(tmp_path: Path) -> None:
    plans = [
        PLAN,
        replace(PLAN, method=methods.get("vidcom2+inner"), cache=Cache(tmp_path), choices=("yes", "no"), rows=4),
        replace(PLAN, sampling=Sampling(at_seconds=(1.0, 2.5)), every_seconds=2.0, timeout_seconds=9.0),
    ]
    for plan in plans:
        there = plan_from(plan_document(plan))
        assert plan_document(there) == plan_document(plan)
        assert (there.method, there.sampling, there.generation) == (plan.method, plan.sampling, plan.generation)
    job = Job(Path("a.mp4"), (Asked("What?"), Asked("Why?", "mine")), number=3)
    assert job_from(job_message(job)) == job


@POSIX
def test_two_workers_one_of_which_is_killed_make_the_rows_of_one_run(jobs: list[Job]) -> None:
    model = load_model(RANDOM, device="cpu")
    alone = [Made(item.job, row_of(item)) for item in Run(model, jobs, PLAN)]
    several, made = crew(jobs), []
    for one in several:
        made.append(one)
        if len(made) == 1:
            busy = next(worker for worker in several._workers if worker.jobs)
            busy._process.send_signal(signal.SIGKILL)
    assert several.replaced == 1
    assert len(rows(alone)) == 12
    assert rows(made) == rows(alone)
    assert several.seconds["answering"] > 0
    assert children() == []


POISON = """
import os
from holitom_cli import pipeline
whole = pipeline.read
def read(checkpoint, device, path, *more, **options):
    if str(path).endswith("3.mp4"):
        os._exit(7)
    return whole(checkpoint, device, path, *more, **options)
pipeline.read = read
"""


def test_a_clip_that_ends_workers_fails_alone(jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from holitom_cli.batch import crew as room

    (tmp_path / "poison.py").write_text(POISON, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(room, "_BOOTSTRAP", room._BOOTSTRAP.replace("from holitom", "import poison; from holitom", 1))
    several = crew(jobs, workers=1)
    made = list(several)
    failed = [one for one in made if one.row and "error" in one.row and one.job.number == 3]
    assert len(failed) == 2
    for one in failed:
        assert one.row is not None
        assert one.row["error"]["message"] == "3.mp4 ended its worker process twice."
    assert sum("answer" in one.row for one in made if one.row) == 8
    assert several.replaced == 2


def test_stopped_it_finishes_what_is_under_way(jobs: list[Job]) -> None:
    several = crew([replace(job, asked=tuple(Asked(f"{n}?") for n in range(30))) for job in jobs], workers=1)
    made = []
    for one in several:
        made.append(one)
        several.stop()
    assert 1 <= len(made) < 20
    assert children() == []


def test_a_worker_that_cannot_start_ends_the_run(jobs: list[Job]) -> None:
    with pytest.raises(BatchError, match=r"no config\.json"):
        list(Crew(jobs, ["cpu"], PLAN, (str(Path(__file__).parent), None, "float32"), SETTING, error_row))
    assert children() == []


class Told:
    """A worker as far as listening to it needs one."""

    def __init__(self, jobs: list[Job]) -> None:
        self.ready, self.alone = True, False
        self.jobs = {job.number: Open(job, len(job.asked)) for job in jobs}


def test_equal_clips_of_two_workers_are_one_row() -> None:
    first, second = (Job(Path(f"{name}.mp4"), (Asked("What?"),), number=number) for number, name in enumerate("ab"))
    several, row = crew([]), {"key": "same", "answer": "yes"}
    here, there = Told([first]), Told([second])
    assert list(several._take(here, {"job": 0, "key": "same", "row": row})) == [Made(first, row)]  # type: ignore[arg-type]
    late = several._take(there, {"job": 1, "key": "same", "row": row})  # type: ignore[arg-type]
    assert list(late) == [Made(second, claim=Claim.ANSWERED)]
    assert not here.jobs
    assert not there.jobs


def test_windows_are_counted_and_rows_told_of_once() -> None:
    job = Job(Path("a.mp4"), (Asked("What?"), Asked("Why?")))
    several, worker = crew([]), Told([job])

    def hear(**message: Any) -> list[Made]:
        return list(several._take(worker, {"job": 0, **message}))  # type: ignore[arg-type]

    assert hear(windows=3) == [Made(job, more=4)]
    for number in range(5):
        row = {"key": str(number), "answer": ""}
        assert hear(key=str(number), row=row) == [Made(job, row)]
    assert worker.jobs
    assert hear(key="4", claim="answered") == []  # as a worker that took over from a dead one says
    assert not worker.jobs


@POSIX
def test_workers_end_when_their_parent_is_killed(tmp_path: Path, demo_clip: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.batch.test_crew import *\n"
        "jobs = [Job(Path(sys.argv[1]), tuple(Asked(f'{n}?') for n in range(500)))]\n"
        "for made in crew(jobs, workers=1): print('row', flush=True)\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", program, str(demo_clip)], stdout=subprocess.PIPE, cwd=root, env=None
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"row\n"
        workers = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    began = time.monotonic()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []
    assert time.monotonic() - began < 10
    assert workers


def test_workers_write_pages_of_clips_and_tell_of_those_that_they_could_not(jobs: list[Job], tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    several = crew(jobs[:1], workers=1, clip_pages=str(tmp_path / "pages"))
    pages = {one.row["page"] for one in several if one.row}
    assert pages == {str(path) for path in (tmp_path / "pages").iterdir()}
    assert several.warnings == []
    (page,) = map(Path, pages)
    assert "Why?" in page.read_text(encoding="utf-8")
    page.unlink()
    page.mkdir()  # nothing can be written there
    several = crew(jobs[:1], workers=1, clip_pages=str(tmp_path / "pages"))
    assert len(list(several)) == 2
    (warning,) = several.warnings
    assert warning.startswith("1 page of clips could not be made: ")


def test_gpus_that_are_not_there(invoke: Invoke, demo_clip: Path) -> None:
    import torch

    command = ["batch", demo_clip, "-q", "What?", "--model", str(RANDOM)]
    invoke(*command, "--gpus", "first").sentence(2, "--gpus 'first' is no list of GPUs.")
    invoke(*command, "--gpus", "0,0").sentence(2, "--gpus '0,0' is no list of GPUs.")
    invoke(*command, "--gpus", "all", "--device", "cpu").sentence(2, "--gpus names the devices.")
    if not torch.cuda.is_available():
        for given in ("all", "0"):
            invoke(*command, "--gpus", given).sentence(1, "This machine has ")
