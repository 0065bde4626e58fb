"""Methods at budgets: what text asks for, and what a language model is deep enough for."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from holitom_cli import methods
from holitom_cli.errors import UsageError
from holitom_cli.methods.tools.variants import Variant, reachable, variants


def chosen(names: str, budgets: str = "25,15", seed: int = 0) -> list[tuple[str, float | str, dict[str, Any]]]:
    return [
        (variant.label, variant.budget, asdict(variant.method))  # type: ignore[call-overload]
        for variant in variants(names, budgets, seed)
    ]


def test_every_method_is_a_row_for_each_budget_but_full() -> None:
    rows = chosen("full, holitom,random,holitom:inner_layer=off")
    assert [(label, budget) for label, budget, _ in rows] == [
        ("full", 100), ("holitom", 25), ("holitom", 15), ("random", 25), ("random", 15),
        ("holitom:inner_layer=off", 25), ("holitom:inner_layer=off", 15),
    ]  # fmt: skip
    assert [settings.get("retain_ratio") for *_, settings in rows] == [None, 0.25, 0.15, 0.25, 0.15, 0.25, 0.15]
    assert [settings["inner_layer"] for *_, settings in rows[5:]] == ["off", "off"]


@pytest.mark.parametrize(
    ("budget", "tau"), [("5", 0.65), ("10", 0.65), ("12.5", 0.65), ("15", 0.8), ("19", 0.8), ("50", 0.8), ("100", 0.8)]
)
def test_holitom_has_the_papers_tau_of_the_nearest_lower_budget(budget: str, tau: float) -> None:
    ((_, percent, settings),) = chosen("holitom", budget)
    assert (percent, settings["tau"], settings["retain_ratio"]) == (float(budget), tau, float(budget) / 100)
    ((_, _, settings),) = chosen("holitom:tau=0.7", budget)
    assert settings["tau"] == 0.7  # what is said beats the preset


def test_a_share_of_its_own_is_its_budget() -> None:
    assert [(budget, settings["retain_ratio"]) for _, budget, settings in chosen("uniform:retain-ratio=0.3")] == [
        (30, 0.3)
    ]


def test_tokens_all_methods_and_two_composed() -> None:
    assert [(budget, settings["retain_ratio"]) for _, budget, settings in chosen("uniform+inner", "15,940t")] == [
        (15, 0.15), ("940t", "940t"),
    ]  # fmt: skip
    every = variants("all", "15", 0)
    assert [variant.label for variant in every] == list(methods.available())
    assert all(variant.optional for variant in every)


def test_what_cannot_keep_so_few_is_left_out_only_where_all_are_asked_for() -> None:
    too_deep = Variant("holitom", 15, methods.get("holitom", inner_layer=9))
    fitting = Variant("full", 100, methods.get("full"))
    assert reachable([replace(too_deep, optional=True), fitting], 6) == (
        [fitting], [replace(too_deep, optional=True)],
    )  # fmt: skip
    assert reachable([too_deep, fitting], 28) == ([too_deep, fitting], [])
    with pytest.raises(UsageError, match="inner_layer is 9"):
        reachable([too_deep], 6)


def test_the_seed_is_that_of_methods_that_draw_lots() -> None:
    assert [settings["seed"] for *_, settings in chosen("random,random:seed=3", "10", seed=7)] == [7, 3]


@pytest.mark.parametrize(
    ("names", "budgets", "said"),
    [
        ("holytom", "15", "no method 'holytom'"),
        ("", "15", "no method ''"),
        ("holitom:tau", "15", "'tau' is not key=value"),
        ("holitom:tow=1", "15", "no setting 'tow'"),
        ("holitom:tau=x", "15", "not a number"),
        ("full,full", "15", "twice"),
        ("holitom", "15,15.0", "twice"),
        ("full", "", "The budget '' is not a percentage"),
        ("full", "0", "not a percentage"),
        ("full", "101", "not a percentage"),
        ("full", "nan", "not a percentage"),
        ("full", "15%", "not a percentage"),
    ],
)
def test_what_cannot_be_asked_for(names: str, budgets: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        variants(names, budgets, 0)
