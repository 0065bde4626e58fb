"""One worker process a GPU: jobs go out as lines of JSON, rows come back; a dead worker is replaced."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from holitom_cli import methods
from holitom_cli.batch.ledger import Claim
from holitom_cli.batch.manifest import clip_identity, question_key
from holitom_cli.batch.questions import Asked, Job
from holitom_cli.batch.runner import Plan
from holitom_cli.cache import Cache
from holitom_cli.errors import BatchError, HolitomError
from holitom_cli.types import Generation, Sampling

_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.buffer.readline()); "
    "from holitom_cli.cli.batch_worker import main; main()"
)
_POLL_SECONDS = 0.1
_REAP_SECONDS = 10.0

Message = dict[str, Any]
ErrorRow = Callable[[Job, Asked, HolitomError, str], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Made:
    """A row of a job, or that it was there before; `more` counts rows that cutting the clip has added."""

    job: Job
    row: Mapping[str, Any] | None = None
    claim: Claim | None = None
    more: int = 0


def made_once(answered: set[str], job: Job, row: Mapping[str, Any] | None, claim: Claim | None) -> Made:
    """A row that a worker told of, or its claim; an answer whose key another worker has `answered` is none."""
    if row is None:
        return Made(job, claim=claim)
    if "answer" in row:
        if row["key"] in answered:  # of equal content
            return Made(job, claim=Claim.ANSWERED)
        answered.add(row["key"])
    return Made(job, row)


def plan_document(plan: Plan) -> Message:
    """A plan as JSON values."""
    as_is = ("decode_timeout_seconds", "choices", "rows", "every_seconds", "time_instruction", "subtitles")
    rest = {name: getattr(plan, name) for name in as_is}
    return {
        "method": [methods.name_of(plan.method), asdict(plan.method)],  # type: ignore[call-overload]
        "generation": asdict(plan.generation),
        "sampling": asdict(plan.sampling),
        "cache": str(plan.cache.folder) if plan.cache else None,
        "timeout_seconds": plan.timeout_seconds,
        "readers": plan.readers,
        "processes": plan.processes,
        **rest,
    }


def plan_from(document: Message) -> Plan:
    """The plan that `plan_document` made values of."""
    name, settings = document["method"]
    sampling = {**document["sampling"], "at_seconds": tuple(document["sampling"]["at_seconds"])}
    return Plan(
        method=methods.get(name, **settings),
        generation=Generation(**document["generation"]),
        sampling=Sampling(**sampling),
        cache=Cache(Path(document["cache"])) if document["cache"] else None,
        choices=tuple(document["choices"]),
        **{name: document[name] for name in ("decode_timeout_seconds", "timeout_seconds", "rows", "every_seconds")},
        **{name: document[name] for name in ("time_instruction", "subtitles")},
        readers=document["readers"],
        processes=document["processes"],
    )


def job_message(job: Job) -> Message:
    """A whole job as JSON values."""
    return {
        "clip": os.fspath(job.clip),
        "asked": [(asked.text, asked.custom_id) for asked in job.asked],
        "number": job.number,
    }


def job_from(message: Message) -> Job:
    """The job that `job_message` made values of."""
    asked = tuple(Asked(text, custom_id) for text, custom_id in message["asked"])
    return Job(Path(message["clip"]), asked, number=message["number"])


class _Worker:
    """A child process with a model on one device, and the jobs that it has."""

    def __init__(self, device: str, document: Message, news: queue.Queue[tuple[_Worker, Message | None]]) -> None:
        self.device = device
        self.ready = False
        self.jobs: dict[int, Open] = {}
        self.alone = False  # it has one job, which may have killed another worker
        self.complaints: deque[str] = deque(maxlen=5)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOTSTRAP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # the terminal's Ctrl-C is for the parent
        )
        self._news = news
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._hear, self._listen)]
        for thread in self._threads:
            thread.start()
        self.send(sys.path)
        self.send(document | {"device": device})

    def send(self, message: Message | Sequence[str]) -> None:
        """Tell it something; whether it is still there shows when it is listened to."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """End it."""
        with suppress(OSError):
            self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()

    def wait(self) -> None:
        """Let it end by itself, which lets go of its own children; not for ever."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_REAP_SECONDS)
        self.close()

    def _hear(self) -> None:
        assert self._process.stdout is not None
        with suppress(ValueError):  # half a line: it died while writing
            for line in self._process.stdout:
                self._news.put((self, json.loads(line)))
        self._news.put((self, None))

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.complaints.append(line.decode(errors="replace").strip())


@dataclass(slots=True)
class Open:
    """A job that is not done."""

    job: Job
    left: int  # rows
    cut: bool = False  # into windows
    seen: set[str] = field(default_factory=set)  # keys of rows that were told of


class Crew:
    """A batch on several devices: iterate over it for its rows, in the order in which they are made."""

    def __init__(
        self,
        jobs: Iterable[Job],
        devices: Sequence[str],
        plan: Plan,
        model: tuple[str, str | None, str],
        setting: Message,
        error_row: ErrorRow,
    ) -> None:
        """Prepare.

        Args:
            jobs: all of them.
            devices: as torch names them, one worker each.
            plan: what is done to every clip.
            model: id, revision and dtype.
            setting: what the workers need besides: the output file, and what of it counts as done.
            error_row: makes the row of a question whose clip ends workers, by job, question, error and key.
        """
        self._todo = deque(Open(job, len(job.asked)) for job in jobs)
        self._suspects: deque[Open] = deque()  # jobs of workers that died
        self._plan, self._model, self._error_row = plan, model, error_row
        name, revision, dtype = model
        self._document = {"plan": plan_document(plan), "model": name, "revision": revision, "dtype": dtype, **setting}
        self._devices = devices
        self._news: queue.Queue[tuple[_Worker, Message | None]] = queue.Queue()
        self._workers: list[_Worker] = []
        self._answered: set[str] = set()  # keys, by any worker
        self._stopping = threading.Event()
        self._told_to_stop = False
        self.seconds: dict[str, float] = {}  # of the workers' model threads, by what they went into
        self.replaced = 0  # workers that died
        self.warnings: list[str] = []  # of workers, about what is no row

    def stop(self) -> None:
        """Begin nothing new; what workers have under way is finished. Safe from a signal handler."""
        self._stopping.set()

    def __iter__(self) -> Generator[Made, None, None]:
        try:
            self._workers = [self._hire(device) for device in self._devices]
            while self._busy():
                yield from self._hear()
                self._assign()
            self._part()
        finally:
            for worker in self._workers:
                worker.close()

    def _hire(self, device: str) -> _Worker:
        return _Worker(device, self._document, self._news)

    def _busy(self) -> bool:
        if any(worker.jobs for worker in self._workers):
            return True
        return not self._stopping.is_set() and bool(self._todo or self._suspects)

    def _hear(self) -> Iterator[Made]:
        if self._stopping.is_set() and not self._told_to_stop:
            self._told_to_stop = True
            for worker in self._workers:
                worker.send({"stop": True})
        with suppress(queue.Empty):
            worker, message = self._news.get(timeout=_POLL_SECONDS)
            yield from self._replace(worker) if message is None else self._take(worker, message)

    def _take(self, worker: _Worker, message: Message) -> Iterator[Made]:
        if "error" in message:
            raise BatchError(message["error"]["message"], message["error"]["hint"])
        worker.ready = worker.ready or "ready" in message
        if "seconds" in message:  # its last words: it has finished what it had begun
            self._add_up(message["seconds"])
            worker.jobs.clear()
        if "warning" in message:
            self.warnings.append(message["warning"])
        if "job" not in message:
            return
        task = worker.jobs[message["job"]]
        if "windows" in message:
            more = (message["windows"] - 1) * len(task.job.asked)
            task.left += more
            if not task.cut:
                yield Made(task.job, more=more)
            task.cut = True
            return
        task.left -= 1
        if task.left == 0:
            del worker.jobs[task.job.number]
            worker.alone = False
        if message["key"] not in task.seen:
            task.seen.add(message["key"])
            claim = Claim(message["claim"]) if "claim" in message else None
            yield made_once(self._answered, task.job, message.get("row"), claim)

    def _replace(self, worker: _Worker) -> Iterator[Made]:
        """A worker has died: its jobs are tried once more, each alone; one that was alone has failed."""
        worker.close()
        if self._stopping.is_set():
            worker.jobs.clear()
            return
        place = self._workers.index(worker)
        if not worker.ready:
            said = worker.complaints[-1] if worker.complaints else "without a word"
            raise BatchError(f"The worker on {worker.device} did not start ({said}).", "Try it with --device alone.")
        self.replaced += 1
        for task in worker.jobs.values():
            task.left = len(task.job.asked)
            if not worker.alone:
                self._suspects.append(task)
                continue
            for key, asked in self._keys(task):
                error = BatchError(
                    f"{task.job.clip.name} ended its worker process twice.", "Leave it out, or try fewer --rows."
                )
                yield Made(task.job, self._error_row(task.job, asked, error, key))
        self._workers[place] = self._hire(worker.device)

    def _keys(self, task: Open) -> Iterator[tuple[str, Asked]]:
        """The rows of a job that nobody has told of."""
        settings = self._plan.settings(self._model, task.job)
        identity = clip_identity(task.job.clip)
        for asked in task.job.asked:
            key = question_key(identity, asked.text, asked.settings(settings))
            if key not in task.seen:
                yield key, asked

    def _assign(self) -> None:
        """Give workers something to do: where jobs are suspects, one of them to each that has nothing else."""
        if self._stopping.is_set():
            return
        most = self._plan.rows + 3 * self._plan.readers
        for worker in self._workers:
            while worker.ready and not worker.alone and (self._todo or self._suspects):
                if self._suspects:
                    if worker.jobs:
                        break
                    task, worker.alone = self._suspects.popleft(), True
                elif len(worker.jobs) < most:
                    task = self._todo.popleft()
                else:
                    break
                worker.jobs[task.job.number] = task
                worker.send(job_message(task.job))

    def _part(self) -> None:
        """Let workers end by themselves, and add up where their time went."""
        for worker in self._workers:
            worker.send({"end": True})
        for worker in self._workers:
            worker.wait()
        while not self._news.empty():
            _, message = self._news.get()
            self._add_up((message or {}).get("seconds") or {})
            self.warnings += [message["warning"]] if message and "warning" in message else []

    def _add_up(self, seconds: Mapping[str, float]) -> None:
        for name, spent in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
