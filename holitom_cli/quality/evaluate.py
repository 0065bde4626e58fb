"""The same questions to one model with several methods and budgets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holitom_cli import pipeline
from holitom_cli.batch.fetcher import sentence
from holitom_cli.batch.manifest import clip_identity, question_key
from holitom_cli.errors import HolitomError, UsageError
from holitom_cli.methods.tools.variants import Variant
from holitom_cli.model.choices import encode_choices
from holitom_cli.quality import scoring
from holitom_cli.quality.items import Footage, Item
from holitom_cli.quality.scoring import Scoring
from holitom_cli.quality.statistics import Judged, summary
from holitom_cli.types import Answer, Seen, Watched

if TYPE_CHECKING:
    from holitom_cli.model.loading import Checkpoint, Model


@dataclass(frozen=True, slots=True)
class Plan:
    """How every question is put."""

    variants: Sequence[Variant]
    scoring: Scoring
    num_frames: int
    max_new_tokens: int  # of an answer that is generated
    decode_timeout_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one question with one method: a row as it is written to a file, or an error."""

    key: str
    item: Item
    variant: Variant
    row: Mapping[str, Any] | HolitomError
    new: bool  # False for what an earlier run had answered


# --- asking ----------------------------------------------------------------------------------


def check(checkpoint: Checkpoint, items: Sequence[Item], plan: Plan) -> None:
    """Refuse methods and questions that do not fit the checkpoint, before a weight is read.

    Raises:
        UsageError: one does not.
    """
    for variant in plan.variants:
        variant.method.reductions(checkpoint.depth)
    for item in items:
        how = scoring.scoring_of(item, plan.scoring)
        checkpoint.chat.encode(scoring.prompt_of(item, how))
        if choices := scoring.choices_of(item, how):
            _check_choices(checkpoint, choices, how)


def _check_choices(checkpoint: Checkpoint, choices: Sequence[str], how: Scoring) -> None:
    try:
        encode_choices(checkpoint.chat, choices)
    except UsageError as error:
        hint = "Use --scoring words or text." if how == "letter" else "Use --scoring letter or text."
        raise UsageError(error.message, hint) from error


def by_clip(items: Sequence[Item]) -> dict[Footage, list[Item]]:
    """Questions by the clip that they are about, in order of first appearance."""
    clips: dict[Footage, list[Item]] = {}
    for item in items:
        clips.setdefault(item.clip, []).append(item)
    return clips


def run(
    model: Model, items: Sequence[Item], plan: Plan, finished: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[Footage, list[Outcome]]]:
    """Put all questions about each clip with all methods; a clip that fails ends nothing.

    Args:
        model: the checkpoint.
        items: the questions.
        plan: how to put them.
        finished: rows of an earlier run by key; these questions are not asked again.
    """
    checkpoint = _identity(model)
    for clip, asked in by_clip(items).items():
        identity = clip.identity()
        pairs = [(item, variant) for variant in plan.variants for item in asked]
        keys = [
            question_key(identity, item.question, _settings(item, variant, plan) | checkpoint)
            for item, variant in pairs
        ]
        given = list(zip(keys, pairs, strict=True))
        outcomes = [Outcome(key, *pair, finished[key], new=False) for key, pair in given if key in finished]
        open_pairs = {key: pair for key, pair in given if key not in finished}
        yield clip, [*outcomes, *_put_all(model, clip, open_pairs, plan)]


def _identity(model: Model) -> dict[str, Any]:
    """Which weights answer: those in a directory of one's own may be others today."""
    info = model.info
    files = sorted(Path(info.path).glob("*.safetensors"))
    return {"model": [info.id, info.revision, info.number_format, *(clip_identity(file) for file in files)]}


def _settings(item: Item, variant: Variant, plan: Plan) -> dict[str, Any]:
    """Everything besides clip, question and checkpoint that a row depends on."""
    return {
        "method": [variant.label, variant.budget, asdict(variant.method)],  # type: ignore[call-overload]
        "expected": [item.answer, item.choices, item.kind],
        "plan": [plan.scoring, plan.num_frames, plan.max_new_tokens],
    }


def _put_all(model: Model, clip: Footage, pairs: Mapping[str, tuple[Item, Variant]], plan: Plan) -> Iterator[Outcome]:
    """The clip is encoded once, and compressed once for each method."""
    if not pairs:
        return
    needed = {variant: None for _, variant in pairs.values()}
    try:
        seen = _see(model, clip, list(needed), plan)
    except Exception as error:
        told = sentence(error)
        yield from (Outcome(key, *pair, told, new=True) for key, pair in pairs.items())
        return
    for variant in needed:
        own = {key: item for key, (item, asked) in pairs.items() if asked == variant}
        for key, row in _put(model, seen, variant, own, plan):
            yield Outcome(key, own[key], variant, row, new=True)


def _see(model: Model, clip: Footage, needed: Sequence[Variant], plan: Plan) -> Seen:
    frames = clip.frames(plan.num_frames, plan.decode_timeout_seconds)
    attention = any(variant.method.needs_attention for variant in needed)
    return pipeline.see(model, frames, attention=attention, keys=any(variant.method.needs_keys for variant in needed))


def _put(
    model: Model, seen: Seen, variant: Variant, items: Mapping[str, Item], plan: Plan
) -> Iterator[tuple[str, Mapping[str, Any] | HolitomError]]:
    try:
        watched = pipeline.compress(model, seen, variant.method)
    except Exception as error:
        yield from dict.fromkeys(items, sentence(error)).items()
        return
    for key, item in items.items():
        try:
            yield key, _row(key, model, watched, item, variant, plan)
        except Exception as error:
            yield key, sentence(error)


def _row(key: str, model: Model, watched: Watched, item: Item, variant: Variant, plan: Plan) -> dict[str, Any]:
    """Ask one question, and put down what `docs/result.schema.json` calls an evaluation row."""
    how = scoring.scoring_of(item, plan.scoring)
    answer = scoring.put(model, watched, item, how, plan.max_new_tokens)
    words = scoring.meant(item, answer, how)
    return {
        "key": key,
        "checkpoint": model.info.id,
        "video": item.clip.name,
        "question": item.question,
        "type": item.kind,
        "method": variant.label,
        "budget": variant.budget,
        "scoring": how,
        "expected": item.answer,
        "answer": words,
        "correct": scoring.is_right(item, words, how),
        **_odds(item, answer),
        "tokens": answer.tokens.visual,
        "true_flops": answer.flops.true,
        "paper_flops": answer.flops.paper,
        "ttft_ms": answer.timings.ttft_ms,
    }


def _odds(item: Item, answer: Answer) -> dict[str, Any]:
    pairs = zip(item.choices, answer.choices, strict=False)
    odds = [{"text": text, "probability": choice.probability} for text, choice in pairs]
    return {"choices": odds} if odds else {}


# --- the result ------------------------------------------------------------------------------


def results(outcomes: Sequence[Outcome], plan: Plan, seed: int) -> list[dict[str, Any]]:
    """One entry for each method and budget, as `docs/result.schema.json` describes it."""
    judged = {variant: _judged(outcomes, variant) for variant in plan.variants}
    full = next((judged[variant] for variant in plan.variants if variant.label == "full"), None)
    return [
        {
            "method": variant.label,
            "budget": variant.budget,
            "method_settings": asdict(variant.method),  # type: ignore[call-overload]
            "failed": sum(isinstance(item.row, HolitomError) for item in outcomes if item.variant == variant),
            **summary(judged[variant], full, seed),
        }
        for variant in plan.variants
    ]


def _judged(outcomes: Sequence[Outcome], variant: Variant) -> dict[Item, Judged]:
    found = {}
    for outcome in outcomes:
        if outcome.variant == variant and not isinstance(outcome.row, HolitomError):
            row, item = outcome.row, outcome.item
            figures = (row["tokens"], row["true_flops"], row["paper_flops"], row["ttft_ms"])
            found[item] = Judged(item.clip.name, item.kind, row["correct"], *figures)
    return found
