"""Texts before which an answer ends."""

from __future__ import annotations

from collections.abc import Sequence


class Stops:
    """Cuts an answer that comes in pieces before the first of some texts.

    What may be the beginning of one is not shown before it is known.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self.begin()

    def begin(self) -> None:
        """Forget what was said: the answer begins anew."""
        self.met, self._held = False, ""

    def show(self, piece: str) -> str:
        """What can be shown now that this piece is there, too; nothing once a text has been met."""
        if self.met:
            return ""
        self._held += piece
        places = [place for text in self._texts if (place := self._held.find(text)) >= 0]
        self.met = bool(places)
        end = min(places) if places else len(self._held) - self._open()
        shown, self._held = self._held[:end], self._held[end:]
        return shown

    def rest(self, text: str) -> str:
        """What can be shown of all that has not been, once the answer has ended."""
        self._held = ""
        shown = self.show(text)
        return shown if self.met else text

    def _open(self) -> int:
        """Characters at the end with which one of the texts may begin."""
        ends = [count for text in self._texts for count in range(1, len(text)) if self._held.endswith(text[:count])]
        return max(ends, default=0)
