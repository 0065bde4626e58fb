"""Questions about one video, each of which knows those before it; the video is read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from holitom_cli import pipeline
from holitom_cli.clock import Clock
from holitom_cli.model.kept import Kept
from holitom_cli.model.prompt import Turn
from holitom_cli.types import Answer, Generation, Watched

if TYPE_CHECKING:
    from holitom_cli.model.loading import Model


class Conversation:
    """A watched video and what has been said about it.

    An answer is the one that the whole conversation gives as one prompt, while only what is new of it is computed. A
    method that prunes every layer's cache behind the prompt has to see the whole prompt in all of them: its prompts are
    read whole, as `Method.prunes_cache` says.
    """

    def __init__(self, model: Model, watched: Watched, turns: Sequence[Turn] = ()) -> None:
        """A conversation, about a video that `model` has watched, that goes on after `turns`."""
        self.turns = list(turns)
        self.watched = watched
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

    def ask(
        self,
        question: str,
        generation: Generation = Generation(),  # noqa: B008  # it is frozen
        *,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Ask the next question; an answer that is interrupted stays in the conversation as far as it came.

        The times of the first answer alone have what reading and seeing the video took. FLOPs are those of the whole
        prompt.

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
            )
        except KeyboardInterrupt:
            if said:
                self._remember(question, "".join(said))
            raise
        self._remember(question, answer.text)
        frames = replace(self.watched.frames, timings_ms={})
        self.watched = replace(self.watched, frames=frames, clock=Clock(self._model.device))
        return answer

    def forget(self) -> None:
        """Begin anew about the same video, whose share of the work stays done."""
        self.turns.clear()

    def _remember(self, question: str, text: str) -> None:
        self.turns.append(Turn(question, self._model.chat.plain(text)))
