"""Answers that are generated together: each enters behind its prefill and leaves when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from holitom_cli import pipeline
from holitom_cli.account import Spoken
from holitom_cli.errors import HolitomError
from holitom_cli.model.cache import StaticCache
from holitom_cli.model.decode import RowDecoder, choose, not_a_number
from holitom_cli.model.device import memory_advice
from holitom_cli.types import Generation

if TYPE_CHECKING:
    from torch import Tensor

    from holitom_cli.batch.questions import Asked
    from holitom_cli.batch.reader import Fetched
    from holitom_cli.model.kept import Kept
    from holitom_cli.model.loading import Model
    from holitom_cli.model.prefill import Prefill
    from holitom_cli.model.prompt import Turn
    from holitom_cli.pipeline import Begun
    from holitom_cli.types import Answer, Watched


@dataclass(slots=True, kw_only=True, eq=False)
class Question:
    """What is asked about a clip that has been looked at."""

    watched: Watched
    text: str
    generation: Generation | None = None  # where it is not answered as the others are
    turns: Sequence[Turn] = ()  # what was said about the clip before
    system: str = ""  # and what stands before everything
    kept: Kept | None = None  # of earlier questions about it
    on_token: Callable[[int], bool] | None = None  # hears of each token as it is there, and says whether it is the last
    waited_seconds: float = 0.0  # that its clip took before
    tried_alone: bool = False  # and the memory was not enough


_GREEDY = Generation()
Q = TypeVar("Q", bound=Question)


@dataclass(slots=True, kw_only=True, eq=False)
class Open(Question):
    """A question of a batch."""

    key: str
    asked: Asked
    fetched: Fetched


@dataclass(frozen=True, slots=True)
class Ended(Generic[Q]):
    """A question, and what came of it."""

    open: Q
    outcome: Answer | HolitomError


@dataclass(slots=True)
class _Speaking(Generic[Q]):
    """An answer on its way."""

    open: Q
    begun: Begun
    began: float  # time.perf_counter() before its prefill
    first: float  # and at its first token
    generator: torch.Generator | None
    ids: list[int] = field(default_factory=list)


class Speakers(Generic[Q]):
    """Answers under way, one token of each at a step."""

    def __init__(self, model: Model, rows: int, generation: Generation) -> None:
        """Room for `rows` answers at a time, generated like this where a question does not say otherwise."""
        self._model, self._generation = model, generation
        self._active: dict[int, _Speaking[Q]] = {}  # by row of the decoder
        self.most = rows
        self.restart(rows)

    def __len__(self) -> int:
        return len(self._active)

    @property
    def has_room(self) -> bool:
        return len(self._active) < self.most

    def restart(self, most: int) -> list[Q]:
        """Forget all answers under way and the memory that they took; returns their questions."""
        opened = [speaking.open for speaking in self._active.values()]
        self._active.clear()
        self.most = most
        self._decoder = RowDecoder(self._model.language_model, self._model.lm_head, most)
        self._token = torch.zeros(most, dtype=torch.int64, device=self._model.device)  # (B,) the last one of each row
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        return opened

    @torch.inference_mode()
    def begin(self, question: Q) -> Ended[Q] | None:
        """Prefill a question and take its first token; the outcome where that was the last one, too.

        Raises:
            HolitomError: as `pipeline.ask`.
        """
        began = time.perf_counter()
        generation = question.generation or self._generation
        begun = pipeline.begin(
            self._model,
            question.watched,
            question.text,
            generation,
            turns=question.turns,
            kept=question.kept,
            system=question.system,
        )
        generator = None
        if generation.temperature > 0:
            generator = torch.Generator(begun.state.logits.device).manual_seed(generation.seed)
        with begun.clock.stage("sample"):
            value = int(choose(begun.state.logits, generation, generator)[0])
        speaking = _Speaking(question, begun, began, time.perf_counter(), generator)
        if ended := self._add(speaking, value):
            return ended
        with self._memory_advice():
            row = self._decoder.enter(begun.state)
        speaking.begun = replace(begun, state=_without_cache(begun))
        self._active[row] = speaking
        self._token[row] = value
        return None

    @torch.inference_mode()
    def step(self) -> list[Ended[Q]]:
        """One token more of every answer; returns those that ended.

        Raises:
            DeviceError: the memory is full; what is under way can only be restarted.
        """
        with self._memory_advice():
            chosen = self._choose(self._decoder.step(self._token))
            self._token = chosen.clamp_min(0)
            values = chosen.tolist()  # the host waits for the device here
        ended = []
        for row, speaking in list(self._active.items()):
            if end := self._add(speaking, values[row]):
                self._leave(row)
                ended.append(end)
        return ended

    def late(self, timeout_seconds: float) -> list[Ended[Q]]:
        """End the answers of clips that have had their time."""
        ended = []
        for row, speaking in list(self._active.items()):
            spent = time.perf_counter() - speaking.began + speaking.open.waited_seconds
            if spent > timeout_seconds:
                self._leave(row)
                ended.append(Ended(speaking.open, too_late(timeout_seconds)))
        return ended

    def dismiss(self, unwanted: Callable[[Q], bool]) -> None:
        """Give up the answers to questions that nobody waits for any more; their rows are free at once."""
        for row, speaking in list(self._active.items()):
            if unwanted(speaking.open):
                self._leave(row)

    def _leave(self, row: int) -> None:
        self._decoder.leave(row)
        del self._active[row]

    def _add(self, speaking: _Speaking[Q], value: int) -> Ended[Q] | None:
        """Take a token; the outcome if it is the last one."""
        if value < 0:
            return Ended(speaking.open, not_a_number())
        speaking.ids.append(value)
        last = speaking.open.on_token is not None and speaking.open.on_token(value)
        most = speaking.begun.generation.max_new_tokens
        if not last and value not in self._model.chat.end_ids and len(speaking.ids) < most:
            return None
        spoken = Spoken(tuple(speaking.ids), time.perf_counter() - speaking.first)
        return Ended(speaking.open, pipeline.conclude(self._model, speaking.begun, spoken))

    def _choose(self, logits: Tensor) -> Tensor:
        """The next token of each row (B,); each row draws by itself, as it would alone."""
        if all(speaking.begun.generation.temperature == 0 for speaking in self._active.values()):
            return choose(logits, _GREEDY, None)
        drawn = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        for row, speaking in self._active.items():
            drawn[row] = choose(logits[row : row + 1], speaking.begun.generation, speaking.generator)[0]
        return drawn

    def _memory_advice(self) -> AbstractContextManager[None]:
        return memory_advice(self._model.info.device_name, "for so many answers at a time", "Use a smaller --rows.")


def too_late(timeout_seconds: float) -> HolitomError:
    """What is said of a clip that takes longer than is allowed."""
    return HolitomError(f"The clip was not done within {timeout_seconds:g} s.", "Allow more time with --timeout.")


def _without_cache(begun: Begun) -> Prefill:
    """What the account of an answer needs of its prefill; the decoder has copied the keys and values."""
    state = begun.state
    return replace(state, cache=StaticCache(0, 0), hidden=state.hidden.new_empty(0), logits=state.logits.new_empty(0))
