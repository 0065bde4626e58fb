"""The thread that owns the model: it looks at clips, and gives one token of every answer at a step."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from holitom_cli import pipeline
from holitom_cli.batch.fetcher import sentence
from holitom_cli.batch.speakers import Ended, Question, Speakers
from holitom_cli.errors import DeviceError, HolitomError
from holitom_cli.serve.clips import Clip, Clips, new_clip
from holitom_cli.serve.stops import Stops
from holitom_cli.types import Answer, Generation

if TYPE_CHECKING:
    from holitom_cli.methods import Method
    from holitom_cli.model.loading import Model
    from holitom_cli.types import Frames


@dataclass(slots=True, kw_only=True, eq=False)
class Asking(Question):
    """A client's question. Its events are pieces of the answer, and at the end the answer or an error."""

    clip: Clip
    on_end: Callable[[], None]  # called in the loop when the model is done with it, however slowly it is read
    gone: bool = False  # nobody waits for it any more
    reused_tokens: int = 0  # of its prompt, that an earlier one had
    stops: Stops = field(default_factory=lambda: Stops(()))
    # Without a limit: an answer is a few thousand pieces at most, and so a slow reader holds nobody else up.
    events: asyncio.Queue[str | Answer | HolitomError] = field(default_factory=asyncio.Queue)
    shown: str = ""

    def leave(self) -> None:
        """Say that nobody waits for it any more."""
        self.gone = True


@dataclass(slots=True, eq=False)
class _Look:
    """A clip that is to be looked at."""

    key: str
    frames: Frames
    method: Method
    done: asyncio.Future[Clip]


_Event = tuple[Asking, str | Answer | HolitomError]


class StoppedError(HolitomError):
    """The server ends before the answer does."""

    stage = "serve"


class Engine:
    """Questions come from an event loop; what comes of them goes back there."""

    def __init__(self, load: Callable[[], Model], rows: int, keep_bytes: int) -> None:
        """Prepare to answer up to `rows` questions together and to keep `keep_bytes` of clips; `load` gives the model.

        The model is loaded in the engine's thread once it starts.
        """
        self.clips = Clips(keep_bytes)
        self.model: Model | None = None  # None until it is loaded
        self.failure: Exception | None = None  # that ended the thread
        self.on_failure: Callable[[], None] = lambda: None  # called in the thread
        self._load, self._rows = load, rows
        self._inbox: queue.SimpleQueue[Asking | _Look | None] = queue.SimpleQueue()
        self._asked: deque[Asking] = deque()
        self._unseen: deque[_Look] = deque()
        self._events: list[_Event] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def ready(self) -> bool:
        return self.model is not None and self.failure is None and not self._stopping

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    @property
    def speaking(self) -> int:
        """Answers under way."""
        return len(self._speakers) if self.model else 0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Load the model, then answer; what comes of it is told in this event loop."""
        self._loop = loop
        self._thread.start()

    def cut_off(self) -> None:
        """Begin to end the thread: what it has not answered by the end of its step ends with an error."""
        self._stopping = True
        self._inbox.put(None)

    def stop(self, patience_seconds: float) -> None:
        """The same, and wait so long for it."""
        self.cut_off()
        if self._thread.ident is not None:
            self._thread.join(patience_seconds)

    async def look(self, key: str, frames: Frames, method: Method) -> Clip:
        """Look at a clip and keep it.

        Raises:
            HolitomError: as `pipeline.watch`.
        """
        self._check()
        look = _Look(key, frames, method, self._loop.create_future())
        self._inbox.put(look)
        return await look.done

    def ask(self, asking: Asking) -> None:
        """Put a question in line.

        Raises:
            StoppedError: the thread has ended.
        """
        self._check()
        self._inbox.put(asking)

    def _check(self) -> None:
        if not self.ready:
            raise stopped()

    # --- in the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            model = self._load()
            self._speakers: Speakers[Asking] = Speakers(model, self._rows, Generation())
            self.model = model
            while not self._stopping:
                self._advance(model)
        except Exception as error:
            self.failure = error
        self._leave_nobody_waiting()
        if self.failure:
            self.on_failure()

    def _leave_nobody_waiting(self) -> None:
        while not self._inbox.empty():
            self._receive()
        under_way = self._speakers.restart(1) if self.model else []
        self._events += [(asking, stopped()) for asking in (*under_way, *self._asked)]
        with suppress(RuntimeError):  # the loop has been closed by now
            self._deliver()
            for look in self._unseen:
                self._loop.call_soon_threadsafe(_settle, look.done, stopped())

    def _advance(self, model: Model) -> None:
        """Look at one clip and begin one answer, where there are some; then a token of every answer."""
        self._receive()
        self._speakers.dismiss(lambda asking: asking.gone)
        if self._unseen:
            self._watch(model, self._unseen.popleft())
        if self._asked and self._speakers.has_room:
            self._begin(model, self._asked.popleft())
        if self._speakers:
            self._step()
        self._deliver()

    def _receive(self) -> None:
        """Take what has come; where there is nothing to do, wait for it."""
        idle = not (self._stopping or self._speakers or self._asked or self._unseen)
        while idle or not self._inbox.empty():
            idle = False
            item = self._inbox.get()
            if isinstance(item, Asking):
                self._asked.append(item)
            elif item:
                self._unseen.append(item)

    def _watch(self, model: Model, look: _Look) -> None:
        if look.done.cancelled():
            return
        outcome: Clip | HolitomError
        try:
            outcome = new_clip(look.key, pipeline.watch(model, look.frames, method=look.method), model)
            self.clips.put(outcome)
        except Exception as error:
            outcome = sentence(error)
        if isinstance(outcome, DeviceError) and self.clips.clear():
            self._unseen.appendleft(look)  # there is more memory now
            return
        self._loop.call_soon_threadsafe(_settle, look.done, outcome)

    def _begin(self, model: Model, asking: Asking) -> None:
        if asking.gone:
            return
        piece_of = model.chat.pieces()

        def hear(token: int) -> bool:
            if piece := asking.stops.show(piece_of(token)):
                asking.shown += piece
                self._events.append((asking, piece))
            return asking.stops.met

        asking.on_token = hear
        asking.kept = asking.clip.kept
        try:
            ended = self._speakers.begin(asking)
        except Exception as error:
            self._events = [event for event in self._events if event[0] is not asking]  # its first token, perhaps
            asking.shown = ""
            asking.stops.begin()
            self._after_failure(asking, sentence(error))
            return
        asking.reused_tokens = asking.kept.reused if asking.kept else 0
        if self.clips.get(asking.clip.key) is asking.clip:
            self.clips.put(asking.clip)  # it has grown
        if ended:
            self._end(ended)

    def _after_failure(self, asking: Asking, told: HolitomError) -> None:
        """A question that could not be begun: where the memory was not enough, it waits for there to be more."""
        again = isinstance(told, DeviceError) and not asking.tried_alone
        if again and self._speakers:
            self._speakers.most = len(self._speakers)
        elif again and not self.clips.clear():
            self._speakers.restart(self._speakers.most)  # gives back the buffers of those before it
            asking.tried_alone = True
        if again:
            self._asked.appendleft(asking)
        else:
            self._events.append((asking, told))

    def _step(self) -> None:
        try:
            for ended in self._speakers.step():
                self._end(ended)
        except Exception as error:
            told, half = sentence(error), max(1, len(self._speakers) // 2)
            # What has been said cannot be taken back, so none of them begins again.
            self._events += [(asking, told) for asking in self._speakers.restart(self._speakers.most)]
            if isinstance(told, DeviceError):
                self.clips.clear()
                self._speakers.restart(half)

    def _end(self, ended: Ended[Asking]) -> None:
        asking, outcome = ended.open, ended.outcome
        stops = asking.stops
        if isinstance(outcome, Answer) and not stops.met and (left := outcome.text.removeprefix(asking.shown)):
            # A character that never became whole, with what came with it, or half of a text to stop at.
            rest = stops.rest(left)
            asking.shown += rest
            self._events.append((asking, rest))
        if isinstance(outcome, Answer) and stops.met:
            outcome = replace(outcome, text=asking.shown, finish_reason="stop")
        self._events.append((asking, outcome))

    def _deliver(self) -> None:
        """Bring the events of a step to the loop, which is woken once for all of them."""
        events, self._events = self._events, []
        if events:
            self._loop.call_soon_threadsafe(_hand_out, events)


def stopped() -> StoppedError:
    """What is said of a question that comes too late."""
    return StoppedError("The server is shutting down.", "Ask again when it is back.")


def _hand_out(events: list[_Event]) -> None:
    for asking, event in events:
        asking.events.put_nowait(event)
        if not isinstance(event, str):
            asking.on_end()


def _settle(done: asyncio.Future[Clip], outcome: Clip | HolitomError) -> None:
    if done.cancelled():
        return
    if isinstance(outcome, HolitomError):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)
