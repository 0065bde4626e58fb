"""DyCoke's pruning of the cache against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from holitom_cli import methods
from holitom_cli.errors import MethodError
from holitom_cli.types import CacheView
from tests.methods.test_contract import layers
from tests.methods.test_picking import top


def slow(views: list[CacheView], first: int, count: int) -> list[list[int]]:
    """Layers before the first one keep all; the others what its predecessor's last row is highest at."""
    kept = []
    for index, view in enumerate(views):
        entries = view.attention.shape[1]
        if index < first:
            kept.append(list(range(entries)))
            continue
        last = [float(value) for value in views[first - 1].attention[len(view.attention) - 1]]
        kept.append(top(last, max(1, count)))
    return kept


def kept(views: list[CacheView], **settings: Any) -> list[list[int]]:
    return [rows.tolist() for rows in methods.get("dycoke-cache", **settings).after_prefill(views)]


@pytest.mark.parametrize("entries", [1, 2, 9, 200])
@pytest.mark.parametrize("depth", [4, 28])
def test_it_keeps_what_the_loops_keep(depth: int, entries: int) -> None:
    views = layers(depth, entries, 7)
    assert kept(views) == slow(views, 3, int(0.3 * entries))
    assert kept(views, cache_layer=1, cache_keep=0.55) == slow(views, 1, int(0.55 * entries))
    assert kept(views, cache_keep=1.0) == slow(views, 3, entries)
    if entries == 200:
        assert kept(views) != slow(views, 2, 60)  # control: which layer is looked at matters
        turned = [CacheView(view.attention.flip(0), view.text) for view in views]
        assert kept(turned) != slow(views, 3, 60)  # control: and which row


def test_equal_attention_goes_to_the_lower_entry() -> None:
    even = [CacheView(torch.full((2, 10), 0.05), torch.full((2,), 0.25)) for _ in range(5)]
    assert kept(even)[-1] == [0, 1, 2]


@pytest.mark.parametrize("percent", [12, 25, 50, 100])
def test_a_budget_is_the_mean_of_the_layers(percent: int) -> None:
    views = layers(28, 1000, 5)
    for text in (str(percent), f"{percent * 10}t"):
        counts = [len(rows) for rows in methods.at_budget("dycoke-cache", text).after_prefill(views)]
        assert abs(sum(counts) / 28 - percent * 10) < 0.5
        assert counts[:3] == [1000] * 3
        assert len(set(counts[3:])) == 1


def test_what_cannot_be_met_is_refused() -> None:
    with pytest.raises(MethodError, match=r"cannot average 10\.0%") as caught:
        methods.at_budget("dycoke-cache", "10").reductions(28)
    assert "10.7%" in caught.value.hint
    few = methods.at_budget("dycoke-cache", "30t")
    assert few.reductions(28) == {}  # how many that is of all is not known yet
    with pytest.raises(MethodError, match=r"cannot average 3\.0%"):
        few.after_prefill(layers(28, 1000, 5))
    with pytest.raises(MethodError, match="Setting cache_layer is 28, but this language model has 28 layers"):
        methods.get("dycoke-cache", cache_layer=28).reductions(28)


@pytest.mark.parametrize("settings", [{"cache_layer": 0}, {"cache_keep": 0}, {"cache_keep": 1.1}, {"retain_ratio": 2}])
def test_settings_outside_their_range(settings: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match=next(iter(settings))):
        methods.get("dycoke-cache", **settings)


def test_both_parts_have_settings_of_their_own() -> None:
    both = methods.get("dycoke+dycoke-cache", keep=0.5, cache_keep=0.2)
    assert both.prunes_cache
    assert both.most_tokens(4, 100) == 100 + 3 * 50
    assert len(both.after_prefill(layers(5, 250, 4))[-1]) == 50
