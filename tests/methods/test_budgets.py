"""Budgets that mean the same to every method, and two methods composed."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pytest
import torch

from holitom_cli import methods
from holitom_cli.errors import MethodError
from holitom_cli.methods.tools.settings import apportion, budget, by_frame, read_budget, share_of, spread
from holitom_cli.types import LayerView
from tests.methods.test_contract import CLIPS, features, plain, view


@pytest.mark.parametrize(("text", "share"), [("15", 0.15), (" 12.5 ", 0.125), ("100", 1.0), ("940t", "940t")])
def test_a_budget_is_percent_or_tokens(text: str, share: float | str) -> None:
    assert read_budget(text) == share


@pytest.mark.parametrize("text", ["", "0", "-3", "101", "nan", "15%", "t", "0t", "-3t", "1.5t", "9 40t", "940T"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(MethodError, match="is not a percentage") as caught:
        read_budget(text)
    assert "940t" in caught.value.hint


@pytest.mark.parametrize("tokens", [1, 31, 940, 6272, 9999])
def test_a_number_of_tokens_is_kept_to_the_token(tokens: int) -> None:
    wanted = min(tokens, 32 * 196)
    for rounding in (round, math.floor, math.ceil):
        assert budget(f"{tokens}t", 32, 196, rounding) == wanted
    counts = by_frame(f"{tokens}t", 32, 196)
    assert sum(counts) == wanted
    assert max(counts) - min(counts) <= 1
    assert share_of(f"{tokens}t", 32, 196) == wanted / 6272


def test_a_share_is_rounded_once_for_the_clip() -> None:
    assert budget(0.15, 32, 196) == 941
    assert budget(0.15, 32, 196, math.floor) == 940
    assert by_frame(0.15, 3, 196) == [29, 29, 30]  # 88.2 in all
    assert by_frame(1e-6, 2, 196) == [0, 1]


def slow_apportion(total: int, weights: list[float], limits: list[int]) -> list[float]:
    """Pour drop by drop, to each in proportion to its weight, until it is full."""
    level, filled = 0.0, [0.0] * len(weights)
    while sum(filled) < min(total, sum(limits)) - 1e-9 and level < 1e6:
        level += 1e-3
        filled = [min(float(limit), level * weight) for weight, limit in zip(weights, limits, strict=True)]
    return filled


def test_apportioning_is_exact_and_fair() -> None:
    stream = torch.Generator().manual_seed(0)
    for trial in range(40):
        size = 1 + trial % 7
        weights = (torch.rand(size, generator=stream) + 0.1).tolist()
        limits = torch.randint(0, 30, (size,), generator=stream).tolist()
        total = int(torch.randint(0, 100, (1,), generator=stream))
        counts = apportion(total, weights, limits)
        assert sum(counts) == min(total, sum(limits))
        assert all(0 <= count <= limit for count, limit in zip(counts, limits, strict=True))
        assert max(abs(a - b) for a, b in zip(counts, slow_apportion(total, weights, limits), strict=True)) < 1.1
        swapped = slow_apportion(total, weights[::-1], limits)
        if size > 4 and 0 < total < sum(limits) // 2:  # control: other weights would be seen
            assert max(abs(a - b) for a, b in zip(counts, swapped, strict=True)) > 0.1
    assert apportion(10, [3.0, 1.0, 1.0], [100, 100, 100]) == [6, 2, 2]
    assert apportion(4, [1.0, 1.0, 1.0], [9, 9, 9]) == [2, 1, 1]
    assert apportion(10, [3.0, 1.0, 1.0], [4, 100, 100]) == [4, 3, 3]
    assert apportion(5, [2.0, 1.6, 1.4], [9, 9, 9]) == [2, 2, 1]
    assert spread(7, 3) == [2, 2, 3]


def test_apportion_has_no_weight_anywhere() -> None:
    assert apportion(4, [0.0, 0.0], [3, 3]) == [2, 2]
    assert apportion(4, [], []) == []


EXACT = ["random", "uniform"]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("tokens", [1, 9, 40])
def test_a_number_of_tokens_reaches_the_method(name: str, tokens: int) -> None:
    video = features(CLIPS[4])  # 7 x 16
    made = methods.at_budget(name, f"{tokens}t")
    assert len(made.compress(plain(video, made))) == tokens == made.most_tokens(7, 16)


def test_a_budget_takes_the_nearest_preset() -> None:
    assert asdict(methods.at_budget("holitom", "10"))["tau"] == 0.65  # type: ignore[call-overload]
    assert asdict(methods.at_budget("holitom", "940t"))["retain_ratio"] == "940t"  # type: ignore[call-overload]
    assert asdict(methods.at_budget("holitom", "19", tau=0.7))["tau"] == 0.7  # type: ignore[call-overload]
    with pytest.raises(MethodError, match="'full' keeps what it keeps"):
        methods.at_budget("full", "15")


@pytest.mark.parametrize("text", ["940", "much", "t", "0t"])
def test_a_share_in_words_is_refused(text: str) -> None:
    with pytest.raises(MethodError, match=r"^Setting retain_ratio is"):
        methods.get("uniform", retain_ratio=text)


# --- composing -------------------------------------------------------------------------------


def test_composed_is_one_before_and_the_other_inside() -> None:
    video = features(CLIPS[7])
    both = methods.get("uniform+inner", retain_ratio="0.25", inner_ratio=0.25)
    alone, inside = methods.get("uniform", retain_ratio=0.25), methods.get("inner", inner_ratio=0.25)
    assert torch.equal(both.compress(video).source, alone.compress(video).source)
    seen: LayerView = view(40, 1, 6, torch.float32)
    (layer, ours), (other, theirs) = (*both.reductions(28).items(), *inside.reductions(28).items())
    assert layer == other == 18
    for mine, its in zip(ours.apply(seen), theirs.apply(seen), strict=True):
        assert torch.equal(mine, its)
    default = next(iter(methods.get("inner").reductions(28).values()))
    assert not torch.equal(ours.apply(seen)[1], default.apply(seen)[1])  # control: the setting arrives
    assert methods.name_of(both) == "uniform+inner"
    assert both == methods.get("uniform+inner", retain_ratio=0.25, inner_ratio=0.25)
    assert hash(both) == hash(methods.change(both))
    assert methods.change(both, retain_ratio=0.5) != both
    assert asdict(both) == {"retain_ratio": 0.25, "inner_layer": "auto", "inner_ratio": 0.25}  # type: ignore[call-overload]


def test_composed_keeps_what_the_parts_ask_for() -> None:
    both = methods.get("holitom+full", preset="10")
    assert both.needs_attention
    assert both.reductions(28) == {}
    assert asdict(both) == asdict(methods.get("holitom", preset="10"))  # type: ignore[call-overload]
    assert both.most_tokens(32, 196) == methods.get("holitom", preset="10").most_tokens(32, 196)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("holitom+", {}, "no method ''"),
        ("+inner", {}, "no method ''"),
        ("holitom+holitom", {}, "cannot be composed"),
        ("uniform+inner+full", {}, "cannot be composed"),
        ("uniform+inner", {"tau": 1}, "has no setting 'tau'"),
        ("uniform+inner", {"inner_ratio": 2}, "Setting inner_ratio is 2"),
        ("uniform+inner", {"retain_ratio": 2}, "Setting retain_ratio is 2"),
    ],
)
def test_what_cannot_be_composed(name: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(MethodError, match=said):
        methods.get(name, **settings)


@pytest.mark.parametrize(
    ("name", "setting"), [("dycoke", "keep"), ("fastv", "drop"), ("prunevid", "cluster_ratio"), ("pyramiddrop", "keep")]
)
def test_a_setting_that_a_budget_stands_for_is_refused_beside_it(name: str, setting: str) -> None:
    chosen: dict[str, Any] = {setting: 0.4}
    assert methods.get(name, **chosen) != methods.get(name)  # control: alone it has an effect
    for share in ("0.6", "700t"):
        with pytest.raises(MethodError, match=rf"Setting {setting} is 0\.4, but has no effect beside a share"):
            methods.get(name, **chosen, retain_ratio=share)
    with pytest.raises(MethodError, match="no effect"):
        methods.at_budget(name, "60", **chosen)
    default = getattr(methods.find(name), setting)
    assert methods.get(name, **{setting: default}, retain_ratio="0.6") == methods.at_budget(name, "60")
