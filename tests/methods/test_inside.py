"""What methods drop inside the language model, against plain loops; and budgets as means over the layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from holitom_cli import methods
from holitom_cli.errors import MethodError
from holitom_cli.methods import Method
from holitom_cli.types import LayerView, Reduction

ROWS = [2, 5, 17, 120]


def seen(rows: int, text: int = 4, entered: int = 0) -> LayerView:
    stream = torch.Generator().manual_seed(rows)
    return LayerView(torch.randn(rows, 6, generator=stream), torch.rand(text, rows, generator=stream), entered)


def best(scores: list[float], count: int) -> list[int]:
    """The rows with the highest scores, in order."""
    return sorted(sorted(range(len(scores)), key=lambda row: -scores[row])[: max(1, count)])


def assert_kept(reduction: Reduction, view: LayerView, kept: list[int]) -> None:
    states, into = reduction.apply(view)
    assert into.tolist() == [row if row in kept else -1 for row in range(len(view.hidden))]
    assert torch.equal(states, view.hidden[kept])


def last(attention: Tensor) -> list[float]:
    return [float(value) for value in attention[-1]]


def mean(attention: Tensor) -> list[float]:
    return [sum(column) / len(column) for column in attention.double().T.tolist()]


def most(attention: Tensor) -> list[float]:
    return [max(column) for column in attention.T.tolist()]


# name, depth, {layer: share}, how a row is scored, how the count is rounded
PLANS: list[tuple[str, int, dict[int, float], Callable[[Tensor], list[float]], Callable[[float], int]]] = [
    ("fastv", 28, {2: 0.5}, last, round),
    ("pyramiddrop", 28, {7: 0.5, 14: 0.25, 21: 0.125}, last, math.floor),
    ("pyramiddrop", 6, {1: 0.5, 3: 0.25, 4: 0.125}, last, math.floor),
    ("prunevid", 28, {10: 0.4}, most, round),
    ("prunevid", 24, {9: 0.4}, most, round),
    ("flashvid", 28, {20: 0.3}, last, math.ceil),
    ("flashvid", 24, {17: 0.3}, last, math.ceil),
    ("star-like", 28, {14: 0.5}, mean, round),
]
ASKS = {
    "fastv": ("last", "mean", "before"),
    "pyramiddrop": ("last", "mean", "this"),
    "prunevid": ("all", "max", "before"),
    "flashvid": ("last", "mean", "before"),
    "star-like": ("all", "mean", "before"),
    "todre-like": ("last", "mean", "before"),
}


@pytest.mark.parametrize(("name", "depth", "shares", "score", "rounding"), PLANS)
@pytest.mark.parametrize("rows", ROWS)
def test_what_is_kept_is_what_the_paper_says(
    name: str,
    depth: int,
    shares: dict[int, float],
    score: Callable[[Tensor], list[float]],
    rounding: Callable[[float], int],
    rows: int,
) -> None:
    reductions = methods.get(name).reductions(depth)
    assert list(reductions) == list(shares)
    for (_, reduction), share in zip(reductions.items(), shares.values(), strict=True):
        assert (reduction.rows, reduction.heads, reduction.layer) == ASKS[name]
        view = seen(rows)
        assert_kept(reduction, view, best(score(view.attention), rounding(rows * share)))
        if rows > 100:
            with pytest.raises(AssertionError):  # control: others would be seen
                assert_kept(reduction, view, best([-value for value in score(view.attention)], rounding(rows * share)))


def test_pyramiddrop_counts_from_what_entered() -> None:
    _, second, third = methods.get("pyramiddrop").reductions(28).values()
    view = seen(64, entered=129)
    assert_kept(second, view, best(last(view.attention), 32))
    assert_kept(third, view, best(last(view.attention), 16))


@pytest.mark.parametrize("rows", ROWS)
def test_todre_like_leaves_the_newline_token_alone(rows: int) -> None:
    ((layer, reduction),) = methods.get("todre-like").reductions(28).items()
    assert layer == 21
    assert_kept(reduction, seen(rows), [rows - 1])


@pytest.mark.parametrize("name", sorted(ASKS))
def test_off_is_off_and_beyond_the_model_is_refused(name: str) -> None:
    if name in ("fastv", "pyramiddrop"):
        settings: dict[str, Any] = {"layer": 30} if name == "fastv" else {}
        depth = 28 if name == "fastv" else 3
        said = "Setting layer is 30, but this language model has 28" if settings else "has 3"
        with pytest.raises(MethodError, match=said):
            methods.get(name, **settings).reductions(depth)
        return
    assert methods.get(name, inner_layer="off").reductions(28) == {}
    with pytest.raises(MethodError, match="has 6 layers"):
        methods.get(name, inner_layer=6).reductions(6)


# --- equal budgets ---------------------------------------------------------------------------


def rows_by_layer(method: Method, depth: int, visual: int) -> list[int]:
    """How many rows of the span, newline token included, each layer works on."""
    reductions, rows, counts = method.reductions(depth), visual + 1, []
    for layer in range(depth):
        if layer in reductions:
            states, _ = reductions[layer].apply(seen(rows, entered=visual + 1))
            rows = len(states)
        counts.append(rows)
    return counts


@pytest.mark.parametrize(("name", "percent"), [("fastv", 10), ("fastv", 25), ("fastv", 60), ("pyramiddrop", 26),
                                               ("pyramiddrop", 40), ("pyramiddrop", 100)])  # fmt: skip
@pytest.mark.parametrize("depth", [24, 28])
def test_a_budget_is_the_mean_over_the_layers(name: str, percent: int, depth: int) -> None:
    for text in (str(percent), f"{percent * 40}t"):
        counts = rows_by_layer(methods.at_budget(name, text), depth, 4000)
        assert abs(sum(counts) / depth - percent * 40) < 4
    assert abs(sum(rows_by_layer(methods.get(name), depth, 4000)) / depth - percent * 40) >= 4  # control


def test_flashvids_share_is_its_mean_over_the_layers() -> None:
    method = methods.get("flashvid", retain_ratio=0.2)
    counts = rows_by_layer(method, 28, method.most_tokens(32, 196))
    assert abs(sum(counts) / 28 - 0.2 * 32 * 196) < 2


@pytest.mark.parametrize(("name", "budget"), [("fastv", "7"), ("pyramiddrop", "25"), ("dycoke", "24")])
def test_a_budget_that_cannot_be_met_is_refused_before_anything_is_read(name: str, budget: str) -> None:
    with pytest.raises(MethodError, match="cannot") as caught:
        methods.at_budget(name, budget).reductions(28)
    assert caught.value.hint


def test_a_number_of_tokens_that_cannot_be_met_is_refused_when_it_is_known() -> None:
    (reduction,) = methods.at_budget("fastv", "10t").reductions(28).values()
    with pytest.raises(MethodError, match="FastV cannot average"):
        reduction.apply(seen(1000))
