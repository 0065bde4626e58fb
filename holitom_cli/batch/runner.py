"""The plain loop over clips and questions; a bad clip never ends it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holitom_cli import methods, pipeline
from holitom_cli.batch.manifest import clip_identity, question_key, watched_key
from holitom_cli.clock import Clock
from holitom_cli.errors import HolitomError, in_a_sentence
from holitom_cli.types import Answer, Generation, Sampling, Watched

if TYPE_CHECKING:
    from holitom_cli.cache import Cache
    from holitom_cli.methods import Method
    from holitom_cli.model.loading import Model


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done to every clip."""

    questions: Sequence[str]
    method: Method
    generation: Generation
    sampling: Sampling
    decode_timeout_seconds: float | None = None
    cache: Cache | None = None  # where compressed clips are kept
    choices: tuple[str, ...] = ()  # answers to choose from; where there are none, one is generated

    def settings(self, model: Model) -> dict[str, Any]:
        """Everything besides clip and question that an answer depends on."""
        return {
            "method": [methods.name_of(self.method), asdict(self.method)],  # type: ignore[call-overload]
            "generation": asdict(self.generation),
            **_sampling_key(self.sampling),
            "model": [model.info.id, model.info.revision, model.info.dtype],
            **({"choices": self.choices} if self.choices else {}),
        }


@dataclass(frozen=True, slots=True)
class Item:
    """One clip and question, and what came of it."""

    key: str
    clip: Path
    question: str
    outcome: Answer | HolitomError


def run(model: Model, clips: Sequence[Path], plan: Plan, finished: set[str]) -> Iterator[list[Item]]:
    """Answer what is not finished yet; yields the new items of each clip, none where all were finished."""
    settings = plan.settings(model)
    for clip in clips:
        identity = clip_identity(clip)
        keys = {question_key(identity, question, settings): question for question in plan.questions}
        items = list(_ask_all(model, clip, plan, identity, {key: keys[key] for key in keys if key not in finished}))
        # What has its answer is not asked again of the same content under another name.
        finished.update(item.key for item in items if isinstance(item.outcome, Answer))
        yield items


def _ask_all(model: Model, clip: Path, plan: Plan, identity: str, questions: Mapping[str, str]) -> Iterator[Item]:
    if not questions:
        return
    try:
        watched = _watch(model, clip, plan, identity)
    except Exception as error:
        told = sentence(error)
        for key, question in questions.items():
            yield Item(key, clip, question, told)
        return
    for key, question in questions.items():
        try:
            answer: Answer | HolitomError = _answer(model, watched, question, plan)
        except Exception as error:
            answer = sentence(error)
        yield Item(key, clip, question, answer)


def _answer(model: Model, watched: Watched, question: str, plan: Plan) -> Answer:
    if plan.choices:
        return pipeline.choose(model, watched, question, plan.choices)
    return pipeline.ask(model, watched, question, **asdict(plan.generation))


def sentence(error: Exception) -> HolitomError:
    """The error as a sentence alone: its traceback would keep what failed, and its tensors, alive."""
    told = in_a_sentence(error)
    told.__cause__ = told.__context__ = None
    return told.with_traceback(None)


def _sampling_key(sampling: Sampling) -> dict[str, Any]:
    """What tells samplings apart, in as few words as there were when frames were evenly spread always."""
    return {name: value for name, value in asdict(sampling).items() if value}


def _watch(model: Model, clip: Path, plan: Plan, identity: str) -> Watched:
    where = (model.info.dtype, model.device.type)
    key = watched_key(identity, model.checkpoint, where, plan.method, plan.sampling) if plan.cache else ""
    if plan.cache and (known := plan.cache.get(key, model.device, clip)):
        return Watched(*known, plan.method, Clock(model.device))
    frames = pipeline.read(
        model.checkpoint,
        model.device,
        clip,
        plan.sampling,
        [plan.method],
        timeout_seconds=plan.decode_timeout_seconds,
    )
    watched = pipeline.watch(model, frames, method=plan.method)
    if plan.cache:
        plan.cache.put(key, watched.frames, watched.visual)
    return watched
