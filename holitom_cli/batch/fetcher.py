"""What is read of a clip before the model sees it: keys, words, and frames or what was seen of it before."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from holitom_cli import pipeline, video
from holitom_cli.batch.ledger import Claim
from holitom_cli.batch.manifest import clip_identity, question_key, watched_key
from holitom_cli.batch.reader import Fetched
from holitom_cli.errors import HolitomError, in_a_sentence

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

    from holitom_cli.batch.questions import Job
    from holitom_cli.batch.runner import Plan
    from holitom_cli.model.loading import Checkpoint

_REST = 0.05  # of a window's length; a shorter rest of a clip belongs to the window before it


class Fetcher:
    """Reads clips of which a question is open; safe from several threads. It needs no weights."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: tuple[str, str | None, str],
        device: torch.device,
        plan: Plan,
        claim: Callable[[str, Path], Claim],
        *,
        seen_on: str = "",
    ) -> None:
        """Prepare.

        Args:
            checkpoint: says the size of pictures and the room for tokens.
            model: id, revision and number format, as they are part of keys.
            device: where pictures are resized.
            plan: what is done to every clip.
            claim: says of a row, by key and clip, whether it is there.
            seen_on: the type of the device that clips will be looked at on, if that is another one.
        """
        self._checkpoint, self._model, self._device = checkpoint, model, device
        self._plan, self._claim, self._seen_on = plan, claim, seen_on or device.type

    def fetch(self, job: Job) -> Fetched:
        """Read a job's clip, where one of its questions is open; of one that is to be cut, the jobs of its windows."""
        fetched = Fetched(replace(job, identity=job.identity or clip_identity(job.clip)))
        try:
            if self._plan.every_seconds is not None and job.window is None:
                fetched.parts = self._cut(fetched.job)
                return fetched
            self._name_rows(fetched)
            self._read(fetched)
        except Exception as error:
            if not fetched.asked:
                self._name_rows(fetched)
            fetched.error = sentence(error)
        return fetched

    def _cut(self, job: Job) -> list[Job]:
        """A job for each window of a clip."""
        length = video.probe(job.clip, timeout_seconds=self._decode_seconds()).duration_seconds
        return [replace(job, window=window) for window in windows(length, self._plan.every_seconds or math.inf)]

    def _name_rows(self, fetched: Fetched) -> None:
        job = fetched.job
        settings = self._plan.settings(self._model, job)
        for asked in job.asked:
            key = question_key(job.identity or "", asked.text, asked.settings(settings))
            fetched.asked.append((key, asked, self._claim(key, job.clip)))

    def _read(self, fetched: Fetched) -> None:
        if not any(claim is Claim.OPEN for _, _, claim in fetched.asked):
            return
        plan, job = self._plan, fetched.job
        self._read_words(fetched)
        sampling = plan.sampling_of(job)
        if plan.cache and not job.clip.is_dir():  # as in ask
            where = (self._model[2].partition("+")[0], self._seen_on)  # nothing that sees is quantised
            fetched.cache_key = watched_key(job.identity or "", self._checkpoint, where, plan.method, sampling)
            if known := plan.cache.get(fetched.cache_key, self._device, job.clip):
                fetched.known = known
                return
        fetched.frames = pipeline.read(
            self._checkpoint, self._device, job.clip, sampling, [plan.method], timeout_seconds=self._decode_seconds()
        )

    def _read_words(self, fetched: Fetched) -> None:
        """The clip's subtitles. A batch goes on without, where they were only looked for, and says so."""
        source = self._plan.subtitles
        if source is None:
            return
        fetched.words = video.subtitles(fetched.job.clip, source, timeout_seconds=self._decode_seconds())
        if not fetched.words:
            none = video.no_subtitles(fetched.job.clip, source)
            if source != "auto":
                raise none
            fetched.note = none.message

    def _decode_seconds(self) -> float | None:
        given = [seconds for seconds in (self._plan.decode_timeout_seconds, self._plan.timeout_seconds) if seconds]
        return min(given, default=None)


def windows(length_seconds: float, every_seconds: float) -> list[tuple[float, float]]:
    """Start and end of equal parts of a clip; a short rest belongs to the last of them."""
    count = max(1, math.ceil(length_seconds / every_seconds - _REST))
    starts = [number * every_seconds for number in range(count)]
    return list(zip(starts, [*starts[1:], max(length_seconds, starts[-1] + _REST * every_seconds)], strict=True))


def sentence(error: Exception) -> HolitomError:
    """The error as a sentence alone: its traceback would keep what failed, and its tensors, alive."""
    told = in_a_sentence(error)
    told.__cause__ = told.__context__ = None
    return told.with_traceback(None)
