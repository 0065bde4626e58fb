"""AirCache-like against plain loops."""

from __future__ import annotations

import math

import pytest

from holitom_cli import methods
from holitom_cli.types import CacheView
from tests.methods.test_contract import layers
from tests.methods.test_merging import slow_shares
from tests.methods.test_picking import top


def slow_scores(view: CacheView, elite: float) -> list[float]:
    text = view.text.tolist()
    chosen = [row for row, value in enumerate(text) if value >= elite * max(text)]
    attention = view.attention.double().tolist()
    return [sum(attention[row][p] for row in chosen) / len(chosen) for p in range(len(attention[0]))]


def slow_weights(scores: list[list[float]]) -> list[float]:
    strengths = [sum(row) for row in scores]
    skews = []
    for row in scores:
        mean = sum(row) / len(row)
        spread = math.sqrt(sum((value - mean) ** 2 for value in row) / len(row))
        skews.append(max(0.0, sum((value - mean) ** 3 for value in row) / len(row) / spread**3))
    mean_strength, mean_skew = sum(strengths) / len(scores), sum(skews) / len(scores)
    return [(a / mean_strength + b / mean_skew) / 2 for a, b in zip(strengths, skews, strict=True)]


def slow(views: list[CacheView], ratio: float, elite: float) -> list[list[int]]:
    scores = [slow_scores(view, elite) for view in views]
    weights, total = slow_weights(scores), sum(map(len, scores))
    extra = [weight * 1e9 for weight in weights]  # sizes for the rule of largest remainders
    counts = slow_shares(round(ratio * total) - len(scores), [round(size) for size in extra])
    return [top(row, 1 + count) for row, count in zip(scores, counts, strict=True)]


@pytest.mark.parametrize("rows", [40, 200])
@pytest.mark.parametrize("depth", [4, 28])
def test_it_keeps_what_the_loops_keep(depth: int, rows: int) -> None:
    views = layers(depth, rows, 7)
    for ratio in (0.1, 0.25):
        for elite in (0.0, 0.5, 1.0):
            kept = methods.get("aircache-like", retain_ratio=ratio, elite=elite).after_prefill(views)
            assert [rows.tolist() for rows in kept] == slow(views, ratio, elite)
            assert sum(map(len, kept)) == round(ratio * depth * rows)
    assert slow(views, 0.25, 0.0) != slow(views, 0.25, 1.0)  # control: the elite matters


def test_a_number_of_tokens_is_the_mean_of_the_layers() -> None:
    kept = methods.at_budget("aircache-like", "30t").after_prefill(layers(28, 200, 7))
    assert sum(map(len, kept)) == 28 * 30
    assert len({len(rows) for rows in kept}) > 1  # layers get different budgets


def test_composed_it_prunes_what_the_other_left() -> None:
    both = methods.get("uniform+aircache-like", retain_ratio=0.5)
    assert both.prunes_cache
    kept = both.after_prefill(layers(4, 100, 5))
    assert sum(map(len, kept)) == round(0.1 * 400)  # its own share; the other's is the clip's
