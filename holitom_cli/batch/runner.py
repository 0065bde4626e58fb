"""Many clips and questions: read ahead, looked at one by one, answered together; a bad clip never ends it."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from holitom_cli import methods, pipeline, video
from holitom_cli.batch.fetcher import Fetcher, sentence
from holitom_cli.batch.ledger import Claim, Ledger
from holitom_cli.batch.manifest import clip_identity
from holitom_cli.batch.questions import Asked, Job
from holitom_cli.batch.reader import Fetched, ReadAhead, ahead_bytes, reader_count
from holitom_cli.batch.speakers import Ended, Open, Speakers, too_late
from holitom_cli.clock import Clock, Stopwatch
from holitom_cli.errors import DeviceError, HolitomError
from holitom_cli.model.vision import CHUNK_FRAMES
from holitom_cli.types import Answer, Frames, Generation, Sampling, Watched

if TYPE_CHECKING:
    from holitom_cli.cache import Cache
    from holitom_cli.methods import Method
    from holitom_cli.model.loading import Model


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done to every clip."""

    method: Method
    generation: Generation
    sampling: Sampling
    decode_timeout_seconds: float | None = None
    cache: Cache | None = None  # where compressed clips are kept
    choices: tuple[str, ...] = ()  # answers to choose from; where there are none, one is generated
    rows: int = 1  # answers that are generated together; 1 gives those of `pipeline.ask` to the last bit
    every_seconds: float | None = None  # the length of the windows that a clip is cut into
    timeout_seconds: float | None = None  # that a clip may take, waiting for others not counted
    readers: int = field(default_factory=reader_count)
    processes: int = 1  # that share this machine's memory
    time_instruction: bool = False  # tell the model when the frames are shown
    subtitles: str | None = None  # tell it what is said: "auto" or a file

    def settings(self, model: tuple[str, str | None, str], job: Job) -> dict[str, Any]:
        """Everything besides clip and question that an answer depends on; of the model its id, revision and format."""
        return {
            "method": [methods.name_of(self.method), asdict(self.method)],  # type: ignore[call-overload]
            "generation": asdict(self.generation),
            **_sampling_key(self.sampling_of(job)),
            "model": model,
            **({"choices": self.choices} if self.choices else {}),
            **({"time_instruction": True} if self.time_instruction else {}),
            **({"subtitles": self._words_identity(job)} if self.subtitles else {}),
        }

    def _words_identity(self, job: Job) -> str:
        """The content of the file that the words come from; that of the clip is in the key already."""
        file = video.subtitle_file(job.clip, self.subtitles or "")
        return "in the clip" if file == job.clip else clip_identity(file)

    def sampling_of(self, job: Job) -> Sampling:
        """Which frames of a job's clip are looked at."""
        if job.window is None:
            return self.sampling
        return replace(self.sampling, start_seconds=job.window[0], end_seconds=job.window[1])


@dataclass(frozen=True, slots=True)
class Item:
    """One clip and question, and what came of it; a claim where a row was there before."""

    key: str
    job: Job
    asked: Asked
    outcome: Answer | HolitomError | Claim


class Run:
    """One batch: iterate over it for its items, in the order in which they are made."""

    def __init__(
        self,
        model: Model,
        jobs: Iterable[Job],
        plan: Plan,
        ledger: Ledger | None = None,
        fetch: Callable[[Job], Fetched] | None = None,
    ) -> None:
        """Prepare to answer the questions of `jobs` that `ledger` has no rows of; clips come from `fetch`, if given."""
        self._model, self._plan, self._ledger = model, plan, ledger or Ledger()
        info = model.info
        if fetch is None:
            fetch = Fetcher(
                model.checkpoint, (info.id, info.revision, info.number_format), model.device, plan, self._ledger.claim
            ).fetch
        self._reader = ReadAhead(jobs, fetch, plan.readers, ahead_bytes(plan.processes))
        self._speakers: Speakers[Open] = Speakers(model, plan.rows, plan.generation)
        self._open: deque[Open] = deque()
        self._twins: dict[str, list[tuple[Job, Asked]]] = {}  # questions that wait for a row of equal content
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="keeper")
        self._kept: Future[None] | None = None
        self._chunk_frames = CHUNK_FRAMES  # in the vision tower at a time
        self._postponed: tuple[Fetched, list[tuple[str, Asked]]] | None = None  # until there is more memory
        self._stopping = threading.Event()
        self.watch = Stopwatch()  # where the time of the model's thread goes
        self.on_cut: Callable[[Job, int], None] = lambda *_: None  # hears of a job that became so many windows

    def feed(self, job: Job | None) -> None:
        """One job more, from any thread, after `expect_more`; None says that it was the last one."""
        if job is None:
            self._reader.expects_more = False
        else:
            self._reader.add(job)

    def expect_more(self) -> None:
        """Do not end when all jobs are done: others will be fed."""
        self._reader.expects_more = True

    def stop(self) -> None:
        """Begin nothing new: what the model works on is finished. Safe from a signal handler."""
        self._stopping.set()

    def __iter__(self) -> Iterator[Item]:
        with self._keeper, closing(self._reader):
            while not self._done():
                for item in self._advance():
                    yield item
                    yield from self._settle(item)

    def _done(self) -> bool:
        if self._speakers:
            return False
        return self._stopping.is_set() or not (self._open or self._postponed or not self._reader.exhausted)

    def _advance(self) -> Iterator[Item]:
        """Begin what can be begun, then one token of every answer."""
        if not self._stopping.is_set():
            while self._open and self._speakers.has_room and not self._stopping.is_set():
                yield from self._begin(self._open.popleft())
            if not self._open:
                yield from self._look()
        if self._speakers:
            yield from self._step()
        if self._plan.timeout_seconds is not None:
            yield from map(_item, self._speakers.late(self._plan.timeout_seconds))

    def _settle(self, item: Item) -> Iterator[Item]:
        """Note what came of a row, for questions about equal content that waited for it."""
        if isinstance(item.outcome, Claim):
            return
        self._ledger.settle(item.key, answered=isinstance(item.outcome, Answer))
        for job, asked in self._twins.pop(item.key, []):
            yield from self._wait_for_twin(item.key, job, asked)

    def _wait_for_twin(self, key: str, job: Job, asked: Asked) -> Iterator[Item]:
        """A question that is, or was, being answered about equal content: if that fails, it is tried here."""
        state = self._ledger.peek(key, job.clip)
        if state is Claim.TAKEN:
            self._twins.setdefault(key, []).append((job, asked))
        elif state is Claim.OPEN:
            self._reader.add(replace(job, asked=(asked,)))
        else:
            yield Item(key, job, asked, state)

    # --- the model, in this thread --------------------------------------------------------------

    def _look(self) -> Iterator[Item]:
        """Take a clip that has been read, and put its questions in line."""
        if self._postponed:
            if not self._speakers:
                self._speakers.restart(self._speakers.most)  # without the buffers of the answers before it
                postponed, self._postponed = self._postponed, None
                yield from self._watch(*postponed)
            return
        with self.watch.measure("waiting for clips"):
            fetched = self._reader.next(patient=not self._speakers)
        if fetched is None:
            return
        if fetched.parts:
            self.on_cut(fetched.job, len(fetched.parts))
        opened = []
        for key, asked, claim in fetched.asked:
            if claim is Claim.OPEN:
                opened.append((key, asked))
            elif claim is Claim.TAKEN:
                yield from self._wait_for_twin(key, fetched.job, asked)
            else:
                yield Item(key, fetched.job, asked, claim)
        if opened:
            yield from self._watch(fetched, opened)

    def _watch(self, fetched: Fetched, opened: list[tuple[str, Asked]]) -> Iterator[Item]:
        try:
            watched = self._told(self._watched(fetched), fetched)
        except Exception as error:
            told = sentence(error)
            if isinstance(told, DeviceError) and self._speakers:
                self._speakers.most = len(self._speakers)  # a smaller batch from now on
                self._postponed = (fetched, opened)
                return
            for key, asked in opened:
                yield Item(key, fetched.job, asked, told)
            return
        fetched.frames = fetched.known = None  # `watched` has what is needed of them
        self._open.extend(
            Open(
                key=key, asked=asked, text=asked.text, watched=watched, fetched=fetched, waited_seconds=fetched.seconds
            )
            for key, asked in opened
        )

    def _watched(self, fetched: Fetched) -> Watched:
        model, plan = self._model, self._plan
        if fetched.error:
            raise fetched.error
        if plan.timeout_seconds is not None and fetched.seconds > plan.timeout_seconds:
            raise too_late(plan.timeout_seconds)
        if fetched.known:
            return Watched(*fetched.known, plan.method, Clock(model.device))
        assert fetched.frames is not None
        with self.watch.measure("looking"):
            watched = self._seen(fetched.frames)
        if plan.cache and fetched.cache_key:
            with self.watch.measure("keeping"):
                self._keep(plan.cache, fetched.cache_key, watched)
        return watched

    def _seen(self, frames: Frames) -> Watched:
        """Look at a clip; where no answer is under way and the memory is not enough, with fewer frames at a time."""
        before = self._chunk_frames
        while True:
            try:
                return pipeline.watch(self._model, frames, method=self._plan.method, chunk_frames=self._chunk_frames)
            except DeviceError:
                if self._speakers:
                    raise
                tried = min(self._chunk_frames, len(frames))
                if tried == 1:
                    self._chunk_frames = before  # it is this clip that needs too much
                    raise
                self._chunk_frames = tried // 2
            self._speakers.restart(self._speakers.most)  # gives back what is free; out here nothing holds the failure

    def _told(self, watched: Watched, fetched: Fetched) -> Watched:
        """The same, with what is told before every question; the cache knows nothing of that."""
        if fetched.note:
            frames = replace(watched.frames, warnings=(*watched.frames.warnings, fetched.note))
            watched = replace(watched, frames=frames)
        timed = pipeline.tell_times(watched) if self._plan.time_instruction else watched
        return pipeline.tell_subtitles(timed, fetched.words)

    def _keep(self, cache: Cache, key: str, watched: Watched) -> None:
        """Write what was seen of a clip to disk, beside the model's work; at most one clip waits for that."""
        if self._kept:
            self._kept.result()
        self._kept = self._keeper.submit(cache.put, key, watched.frames, watched.visual)

    def _begin(self, question: Open) -> Iterator[Item]:
        """Answer a question, or begin to where several are answered together."""
        try:
            if self._plan.rows == 1 or self._plan.choices:
                with self.watch.measure("answering"):
                    yield _item(Ended(question, self._answer(question)))
                return
            with self.watch.measure("prefill"):
                ended = self._speakers.begin(question)
            if ended:
                yield _item(ended)
        except Exception as error:
            yield from self._after_failure(question, sentence(error))

    def _answer(self, question: Open) -> Answer:
        plan, text = self._plan, question.asked.text
        if plan.choices:
            return pipeline.choose(self._model, question.watched, text, plan.choices)
        deadline = math.inf
        if plan.timeout_seconds is not None:
            deadline = time.perf_counter() + plan.timeout_seconds - question.fetched.seconds

        def check(_: str) -> None:
            if time.perf_counter() > deadline:
                raise too_late(plan.timeout_seconds or 0.0)

        return pipeline.ask(self._model, question.watched, text, **asdict(plan.generation), on_text=check)

    def _step(self) -> Iterator[Item]:
        try:
            with self.watch.measure("decoding"):
                ended = self._speakers.step()
        except Exception as error:
            yield from self._after_step(sentence(error))
            return
        yield from map(_item, ended)

    def _after_failure(self, question: Open, told: HolitomError) -> Iterator[Item]:
        """A question that could not be begun: where the memory was not enough, it waits for fewer to be under way."""
        if isinstance(told, DeviceError) and self._speakers:
            self._speakers.most = len(self._speakers)
            self._open.appendleft(question)
        elif isinstance(told, DeviceError) and self._plan.rows > 1 and not question.tried_alone:
            self._speakers.restart(self._speakers.most)  # without the buffers of those before it
            question.tried_alone = True
            self._open.appendleft(question)
        else:
            yield _item(Ended(question, told))

    def _after_step(self, told: HolitomError) -> Iterator[Item]:
        """No token could be had: where the memory was not enough, half as many begin again."""
        under_way = self._speakers.restart(self._speakers.most)
        for question in reversed(under_way):
            if isinstance(told, DeviceError) and not (len(under_way) == 1 and question.tried_alone):
                question.tried_alone = len(under_way) == 1
                self._open.appendleft(question)
            else:
                yield _item(Ended(question, told))
        if isinstance(told, DeviceError):
            self._speakers.restart(max(1, len(under_way) // 2))


def _item(ended: Ended[Open]) -> Item:
    question = ended.open
    return Item(question.key, question.fetched.job, question.asked, ended.outcome)


def _sampling_key(sampling: Sampling) -> dict[str, Any]:
    """What tells samplings apart, in as few words as there were when frames were evenly spread always."""
    return {name: value for name, value in asdict(sampling).items() if value}
