"""Questions about one video or more, each of which knows those before it; every video is read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from holitom_cli import pipeline
from holitom_cli.clock import Clock
from holitom_cli.model.kept import Kept
from holitom_cli.model.prompt import Turn
from holitom_cli.types import Added, Answer, Generation, Watched

if TYPE_CHECKING:
    from holitom_cli.model.loading import Model


class Conversation:
    """A watched video, others that were brought in later, and what has been said about them.

    Every video stands in the user turn of the first question that was asked with it. What a method does before the
    language model it does to each by itself, and what it does inside to the tokens of all.

    An answer is the one that the whole conversation gives as one prompt, while only what is new of it is computed. A
    method that prunes every layer's cache behind the prompt has to see the whole prompt in all of them: its prompts are
    read whole, as `Method.prunes_cache` says.
    """

    def __init__(self, model: Model, watched: Watched, turns: Sequence[Turn] = (), added: Sequence[Added] = ()) -> None:
        """A conversation, about videos that `model` has watched, that goes on after `turns`."""
        self.turns = list(turns)
        self.watched, self.added = watched, list(added)
        self._model = model
        method, depth = watched.method, model.checkpoint.depth
        self._kept = None if method.prunes_cache else Kept(depth, method.reductions(depth))

    @property
    def kept_bytes(self) -> int:
        """Memory that is held for the next question, beside the video's tokens."""
        return self._kept.nbytes if self._kept else 0

    @property
    def reused_tokens(self) -> int:
        """Tokens of the last prompt that were known from the one before."""
        return self._kept.reused if self._kept else 0

    @property
    def clips(self) -> tuple[Watched, ...]:
        """All videos, in the order in which they came."""
        return (self.watched, *(clip.watched for clip in self.added))

    def add(self, watched: Watched) -> None:
        """Bring in another video, which was compressed by the same method; it comes with the next question."""
        self.added.append(Added(watched, len(self.turns)))

    def seen_as(self, clips: Sequence[Watched]) -> Conversation:
        """The same talk about the same videos, in order, watched in another way, and about more that come after them.

        All were compressed by one method. What is kept is shared, where that is still the same method.
        """
        first, *others = clips
        turns = [*(clip.turn for clip in self.added), *[len(self.turns)] * len(others)]
        added = [Added(watched, turn) for watched, turn in zip(others, turns, strict=False)]
        other = Conversation(self._model, first, self.turns, added)
        if first.method == self.watched.method:
            other._kept = self._kept
        return other

    def ask(
        self,
        question: str,
        generation: Generation = Generation(),  # noqa: B008  # it is frozen
        *,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Ask the next question; an answer that is interrupted stays in the conversation as far as it came.

        The times of the first answer about a video alone have what reading and seeing it took. FLOPs are those of the
        whole prompt.

        Args:
            question: in words.
            generation: how the answer's tokens are chosen.
            on_text: called with each piece of the answer as it is made.

        Raises:
            HolitomError: as `pipeline.ask`; the question is not part of the conversation then.
        """
        said: list[str] = []

        def listen(piece: str) -> None:
            said.append(piece)
            if on_text:
                on_text(piece)

        try:
            answer = pipeline.ask(
                self._model,
                self.watched,
                question,
                **asdict(generation),
                on_text=listen,
                turns=self.turns,
                kept=self._kept,
                added=self.added,
            )
        except KeyboardInterrupt:
            if said:
                self._remember(question, "".join(said))
            raise
        self._remember(question, answer.text)
        self.watched = self._known(self.watched)
        self.added = [clip._replace(watched=self._known(clip.watched)) for clip in self.added]
        return answer

    def forget(self) -> None:
        """Begin anew about the same videos; the first one's share of the work stays done."""
        self.turns.clear()
        self.added = [clip._replace(turn=0) for clip in self.added]

    def _known(self, watched: Watched) -> Watched:
        """The same, with the time that it took told already."""
        return replace(watched, frames=replace(watched.frames, timings_ms={}), clock=Clock(self._model.device))

    def _remember(self, question: str, text: str) -> None:
        self.turns.append(Turn(question, self._model.chat.plain(text)))
