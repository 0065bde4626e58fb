"""What a batch will take, before it is begun."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holitom_cli.batch.fetcher import windows
from holitom_cli.batch.ledger import Claim, Ledger
from holitom_cli.batch.manifest import clip_identity, question_key
from holitom_cli.batch.questions import Job
from holitom_cli.batch.runner import Plan
from holitom_cli.errors import HolitomError
from holitom_cli.types import VideoInfo

if TYPE_CHECKING:
    import torch

    from holitom_cli.model.loading import Checkpoint
    from holitom_cli.model.quantise import Quantize

_INDEX_BYTES = 8  # of an entry's int64 accounts


@dataclass(slots=True)
class Estimate:
    """Counts of a batch; tokens and bytes are upper bounds."""

    clips: int = 0
    unreadable: int = 0  # clips
    seconds: float = 0.0  # of video
    rows: int = 0
    answered: int = 0  # rows that are there
    failed: int = 0
    frames: int = 0  # of the rows that are open, as are the numbers below
    visual_tokens: int = 0
    generated_tokens: int = 0
    cache_bytes: int = 0
    weights_bytes: int = 0
    answers_bytes: int = 0  # keys and values of the answers that are generated together

    @property
    def open(self) -> int:
        return self.rows - self.answered - self.failed


def estimate(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    jobs: Sequence[Job],
    plan: Plan,
    ledger: Ledger,
    quantize: Quantize | None = None,
) -> Estimate:
    """Probe every clip and add up; nothing is decoded and no weight read."""
    from holitom_cli.model.loading import stored_bytes

    total = Estimate()
    number_format = "+".join(filter(None, (str(dtype).removeprefix("torch."), quantize)))
    with ThreadPoolExecutor(plan.readers) as pool:
        for job, info in zip(jobs, pool.map(lambda job: _probe(job, plan), jobs), strict=True):
            total.clips += 1
            if info is None:
                total.unreadable += 1
            else:
                total.seconds += info.duration_seconds
            for part in _parts(job, info, plan):
                _add(total, part, info, checkpoint, (dtype, number_format), plan, ledger)
    total.weights_bytes = stored_bytes(checkpoint, dtype, quantize)
    return total


def _probe(job: Job, plan: Plan) -> VideoInfo | None:
    from holitom_cli.video import probe

    try:
        return probe(job.clip, timeout_seconds=plan.decode_timeout_seconds)
    except HolitomError:
        return None


def _parts(job: Job, info: VideoInfo | None, plan: Plan) -> Iterable[Job]:
    if info is None or plan.every_seconds is None:
        return [job]
    return [Job(job.clip, job.asked, window) for window in windows(info.duration_seconds, plan.every_seconds)]


def _add(
    total: Estimate,
    job: Job,
    info: VideoInfo | None,
    checkpoint: Checkpoint,
    formats: tuple[torch.dtype, str],
    plan: Plan,
    ledger: Ledger,
) -> None:
    dtype, number_format = formats
    identity, sampling = clip_identity(job.clip), plan.sampling_of(job)
    source = checkpoint.source
    settings = plan.settings((source.id, source.revision, number_format), job)
    states = [
        ledger.peek(question_key(identity, asked.text, asked.settings(settings)), job.clip) for asked in job.asked
    ]
    total.rows += len(states)
    total.answered += states.count(Claim.ANSWERED)
    total.failed += states.count(Claim.FAILED)
    count = states.count(Claim.OPEN)
    if info is None or not count:
        return
    from holitom_cli.video import most_frames

    shape, patches = checkpoint.shape, checkpoint.visual_grid**2
    frames = most_frames(sampling, info)
    tokens = plan.method.most_tokens(frames, patches)
    total.frames += frames
    total.visual_tokens += tokens * count
    total.generated_tokens += plan.generation.max_new_tokens * count
    total.cache_bytes += tokens * (shape.hidden * dtype.itemsize + 3 * _INDEX_BYTES) + frames * patches * _INDEX_BYTES
    longest = tokens + plan.generation.max_new_tokens
    row = 2 * shape.layers * shape.kv_heads * shape.head_dim * dtype.itemsize * longest
    total.answers_bytes = max(total.answers_bytes, row * plan.rows)
