"""The built-in test set: questions about clips of the small world, painted when they are needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import count, islice
from typing import TYPE_CHECKING

import numpy as np

from holitom_cli.errors import UsageError
from holitom_cli.quality.clips import FRAMES_PER_SECOND, film
from holitom_cli.quality.items import Item
from holitom_cli.quality.questions import Question, ask_about
from holitom_cli.quality.world import FRAMES, Clip, make_clip, test_seed
from holitom_cli.types import Frames
from holitom_cli.video.sampling import uniform_indices

if TYPE_CHECKING:
    from holitom_cli.types import ByteArray

NAME = "shapes"
QUESTIONS = 2000  # of a whole set
# Five questions a clip make 400 videos to draw from for an interval, 60 with 300 questions, and a clip rarely has more
# that are not of the kinds that every clip allows.
PER_CLIP = 5
LARGEST_SEED = (1 << 42) - 1
_CLIPS = 1 << 20  # numbers of test clips that belong to one seed; those below are looked at while training
_OFFERED = 100  # more than any clip allows


@dataclass(frozen=True, slots=True)
class ShapesClip:
    """A clip of a set, as pixels that no codec has touched."""

    seed: int  # of the set
    index: int  # in the set

    @property
    def name(self) -> str:
        """As rows name it."""
        return f"{NAME}-{self.seed}-{self.index:06d}"

    @property
    def world(self) -> Clip:
        """What happens in it. No other set has it, nor has training."""
        return make_clip(test_seed((self.seed + 1) * _CLIPS + self.index))

    def identity(self) -> str:
        """What its content is known by: every pixel, so that no row of another world's or painter's clip is taken."""
        pixels = _painted(self.world)
        return f"{NAME} {pixels.shape} {blake2b(pixels.data, digest_size=16).hexdigest()}"

    def frames(self, number: int, _: float | None) -> Frames:
        """Paint it, and take frames as from a file of 32: uniformly, all of them if there are not more."""
        at = np.asarray(uniform_indices(FRAMES, number))
        return Frames(_painted(self.world)[at], at / FRAMES_PER_SECOND, indices=at)


@lru_cache(maxsize=1)  # a clip is asked about right after its identity: painting takes 30 times as long as the digest
def _painted(world: Clip) -> ByteArray:
    return film(world)


def shapes(seed: int = 0, limit: int | None = None) -> list[Item]:
    """The questions of the set with a seed, in wordings that training never sees.

    Every kind comes about equally often, as far as clips allow it, from the first questions on. A limit leaves out the
    end and changes nothing before it.

    Args:
        seed: of the set; two sets share no clip.
        limit: the first so many questions only.

    Raises:
        UsageError: a seed beyond the largest.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise UsageError(
            f"Seed {seed} is too large for a set that is drawn.", f"Use --seed 0 to {LARGEST_SEED}, or a file."
        )
    return list(islice(_items(seed), min(limit or QUESTIONS, QUESTIONS)))


def _items(seed: int) -> Iterator[Item]:
    asked: Counter[str] = Counter()
    for index in count():
        clip = ShapesClip(seed, index)
        for one in _rarest(ask_about(clip.world, _OFFERED, test=True), asked):
            yield Item(clip, one.text, one.answer, one.choices, one.kind)


def _rarest(offered: list[Question], asked: Counter[str]) -> Iterator[Question]:
    """Some of the questions that a clip allows: each time one of the kind that was asked least, which is counted."""
    for _ in range(min(PER_CLIP, len(offered))):
        chosen = min(offered, key=lambda question: asked[question.kind])
        offered.remove(chosen)
        asked[chosen.kind] += 1
        yield chosen
