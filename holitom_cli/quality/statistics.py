"""Accuracy, its error, and differences that are paired by question and bootstrapped over videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWS = 2000
_TAILS = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Judged:
    """One answered question."""

    video: str
    kind: str
    correct: bool
    tokens: int  # visual tokens that entered the language model
    true_flops: float
    paper_flops: float
    ttft_ms: float


def summary(ours: Mapping[Any, Judged], full: Mapping[Any, Judged] | None, seed: int) -> dict[str, Any]:
    """The figures of one method and budget; null where there is nothing to compute them from.

    Args:
        ours: answered questions, by something that names the question.
        full: the same for every token kept, if that was asked for.
        seed: of the bootstrap.
    """
    answered = list(ours.values())
    return {
        "accuracy": mean([item.correct for item in answered]),
        "stderr": standard_error([item.correct for item in answered]),
        "questions": len(answered),
        "tokens": mean([item.tokens for item in answered]),
        "flops": mean([item.true_flops for item in answered]),
        "paper_flops": mean([item.paper_flops for item in answered]),
        "ttft_ms": float(np.median([item.ttft_ms for item in answered])) if answered else None,
        "by_type": by_type(answered),
        "against_full": against(ours, full, seed) if full is not None else None,
    }


def mean(values: Sequence[float]) -> float | None:
    """The mean, None of nothing."""
    return float(np.mean(values)) if values else None


def standard_error(correct: Sequence[bool]) -> float | None:
    """Standard error of the accuracy, questions taken as independent; None for fewer than two."""
    count = len(correct)
    return float(np.std(correct, ddof=1) / count**0.5) if count > 1 else None


def by_type(answered: Sequence[Judged]) -> dict[str, dict[str, Any]]:
    """Accuracy of each type of question, in order of first appearance; questions without a type are in none."""
    kinds: dict[str, list[bool]] = {}
    for item in answered:
        if item.kind:
            kinds.setdefault(item.kind, []).append(item.correct)
    return {kind: {"accuracy": mean(correct), "questions": len(correct)} for kind, correct in kinds.items()}


def against(ours: Mapping[Any, Judged], full: Mapping[Any, Judged], seed: int) -> dict[str, Any] | None:
    """Compare with every token kept, over the questions that both answered; None where there are none.

    Returns:
        The difference in accuracy with its 95% interval (percentiles of a bootstrap over videos: questions about one
        clip are not independent), the share of full's accuracy that is kept, and the flips each way.
    """
    both = [key for key in ours if key in full]
    if not both:
        return None
    changes = [int(ours[key].correct) - int(full[key].correct) for key in both]
    low, high = interval([ours[key].video for key in both], changes, seed)
    right = sum(full[key].correct for key in both)
    return {
        "questions": len(both),
        "kept": sum(ours[key].correct for key in both) / right if right else None,
        "difference": float(np.mean(changes)),
        "low": low,
        "high": high,
        "gained": changes.count(1),
        "lost": changes.count(-1),
    }


def interval(videos: Sequence[str], changes: Sequence[int], seed: int) -> tuple[float, float] | tuple[None, None]:
    """95% interval of the mean change, from drawing as many videos as there are, with replacement; None for one video.

    Args:
        videos: which video each question is about.
        changes: -1, 0 or 1 for each question.
        seed: of the draws.
    """
    _, video = np.unique(np.asarray(videos), return_inverse=True)
    count = np.bincount(video)
    if len(count) < 2:
        return None, None
    change = np.bincount(video, weights=changes)
    dice = np.random.default_rng(seed)
    means = []
    for _ in range(DRAWS):
        drawn = dice.integers(len(count), size=len(count))
        means.append(change[drawn].sum() / count[drawn].sum())
    low, high = np.quantile(means, _TAILS)
    return float(low), float(high)
