"""Prefill with merges inside, and decoding after it, against recomputing everything without a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from holitom_cli.methods.holitom import HoliTom
from holitom_cli.model.cache import StaticCache
from holitom_cli.model.decode import decode_one_token
from holitom_cli.model.prefill import Prefill, prefill
from holitom_cli.types import CacheView, LayerView, Reduction
from tests.model.language import DEPTH, Slow, random_prompt, recompute, small_qwen2

NEAR = 1e-5  # of the largest value
APPENDED = [3, 41, 7, 96, 0]

(FOLD,) = HoliTom(inner_layer=1).reductions(DEPTH).values()


def drop_half(view: LayerView) -> tuple[Tensor, Tensor]:
    """Keep the half that all rows look at most; the rest is gone."""
    order = view.attention.sum(0).argsort(descending=True, stable=True)
    kept = order[: max(1, len(order) // 2)].sort().values
    into = torch.full((len(view.hidden),), -1).index_copy(0, kept, kept)
    return view.hidden[kept], into


def join_pairs(view: LayerView) -> tuple[Tensor, Tensor]:
    """The mean of each two neighbours, weighted by attention, in the place of the second."""
    rows = torch.arange(len(view.hidden))
    into = torch.minimum(rows | 1, rows[-1])
    weights = view.attention.sum(0)[:, None]
    states = torch.stack(
        [(view.hidden * weights)[into == row].sum(0) / weights[into == row].sum() for row in into.unique()]
    )
    return states, into


DROP, JOIN = Reduction(drop_half), Reduction(join_pairs)
PLANS: dict[str, Mapping[int, Reduction]] = {
    "none": {},
    "fold": {3: FOLD},
    "fold early": {1: FOLD},
    "fold late": {DEPTH - 1: FOLD},
    "all rows, most of any head": {2: replace(DROP, rows="all", heads="max")},
    "this layer": {3: replace(DROP, rows="all", layer="this")},
    "this layer, last row": {2: replace(JOIN, heads="max", layer="this")},
    "before the first layer": {0: replace(DROP, layer="this")},
    "several": {1: FOLD, 3: replace(DROP, rows="all"), 4: replace(JOIN, layer="this")},
    "one after another": {0: replace(JOIN, layer="this"), 1: JOIN, 2: replace(DROP, rows="all"), 3: FOLD},
}
SPANS = {"in the middle": (30, range(4, 25)), "at the start": (20, range(19)), "alone": (9, range(3, 4))}


def ours(model: Any, embeds: Tensor, span: range, reductions: Mapping[int, Reduction]) -> tuple[Prefill, Tensor]:
    """The prefilled prompt, and logits (1 + appended, V) from one decode step after another."""
    state = prefill(model.model, model.lm_head, embeds, span, reductions, room=len(APPENDED))
    rows, position = [state.logits], state.next_position
    with torch.inference_mode():
        for token in APPENDED:
            rows.append(decode_one_token(model.model, model.lm_head, state.cache, torch.tensor([token]), position))
            position = position + 1
    return state, torch.cat(rows)


def distance(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((actual - expected).abs().max() / expected.abs().max())


def near(actual: Tensor, expected: Tensor) -> bool:
    return actual.shape == expected.shape and distance(actual, expected) < NEAR


def account(state: Prefill) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    return state.positions[0].tolist(), state.into.tolist(), list(state.inside)


def slow_account(slow: Slow) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    return slow.positions, slow.into, slow.inside


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("where", SPANS)
@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (6, 1)], ids=str)
def test_it_is_what_recomputing_gives(heads: tuple[int, int], where: str, plan: str) -> None:
    model, (length, span) = small_qwen2(*heads), SPANS[where]
    embeds = random_prompt(model, length)
    state, logits = ours(model, embeds, span, PLANS[plan])
    slow = recompute(model, embeds, span, PLANS[plan], APPENDED)
    assert account(state) == slow_account(slow)
    assert near(state.hidden[0], slow.hidden)
    assert near(logits, slow.logits)
    assert int(state.next_position[0]) == length


@pytest.mark.parametrize("plan", ["fold", "this layer", "several", "one after another"])
def test_control_other_positions_and_no_merge_are_seen(plan: str) -> None:
    model, (length, span) = small_qwen2(), SPANS["in the middle"]
    embeds = random_prompt(model, length)
    _, logits = ours(model, embeds, span, PLANS[plan])
    for wrong in (
        recompute(model, embeds, span, PLANS[plan], APPENDED, renumber=True),
        recompute(model, embeds, span, {}, APPENDED),
    ):
        assert distance(logits, wrong.logits) > 1000 * NEAR


def test_control_one_length_for_all_layers_is_seen() -> None:
    """A cache that hides by its first layer's length, as the library's static cache does, is wrong after a merge."""
    model, (length, span) = small_qwen2(), SPANS["in the middle"]
    embeds = random_prompt(model, length)
    _, right = ours(model, embeds, span, {})
    merged, _ = ours(model, embeds, span, PLANS["fold"])

    def decode(lengths_of: Any) -> Tensor:
        state = prefill(model.model, model.lm_head, embeds, span, PLANS["fold"], room=length)
        state.cache.lengths = lengths_of(state.cache)
        token = torch.tensor(APPENDED[:1])
        with torch.inference_mode():
            return decode_one_token(model.model, model.lm_head, state.cache, token, state.next_position)

    own = decode(lambda cache: cache.lengths)
    first = decode(lambda cache: [cache.lengths[0].clone() for _ in cache.lengths])
    expected = recompute(model, embeds, span, PLANS["fold"], APPENDED[:1]).logits[1:]
    assert near(own, expected)
    assert distance(first, expected) > 1000 * NEAR
    assert distance(own[0], right[1]) > 1000 * NEAR
    assert len(merged.hidden[0]) < length


def views(reduction: Reduction, layer: int = 3) -> LayerView:
    """What a reduction gets to see in one prompt."""
    seen: list[LayerView] = []

    def look(view: LayerView) -> tuple[Tensor, Tensor]:
        seen.append(view)
        return view.hidden, torch.arange(len(view.hidden))

    model, (length, span) = small_qwen2(), SPANS["in the middle"]
    prefill(model.model, model.lm_head, random_prompt(model, length), span, {layer: replace(reduction, apply=look)})
    return seen[0]


def test_a_reduction_sees_what_it_asks_for() -> None:
    last, everything = views(DROP), views(replace(DROP, rows="all"))
    assert last.attention.shape == (1, 21)
    assert everything.attention.shape == (5, 21)
    assert last.attention.dtype == torch.float32
    torch.testing.assert_close(everything.attention[-1:], last.attention)
    most = views(replace(DROP, heads="max"))
    assert (most.attention > last.attention).all()
    this, following = views(replace(DROP, layer="this")), views(DROP, layer=4)
    torch.testing.assert_close(this.attention, following.attention)  # the layer before 4 is layer 3
    assert (this.attention - last.attention).abs().max() > 1e-3


def test_every_reduction_is_told_how_many_rows_entered() -> None:
    told: list[tuple[int, int]] = []

    def look(view: LayerView) -> tuple[Tensor, Tensor]:
        told.append((view.entered, len(view.hidden)))
        return drop_half(view)

    model, (length, span) = small_qwen2(), SPANS["in the middle"]
    twice = dict.fromkeys((2, 3), replace(DROP, apply=look))
    prefill(model.model, model.lm_head, random_prompt(model, length), span, twice)
    assert [entered for entered, _ in told] == [21, 21]
    assert told[1][1] < told[0][1] == 21


def test_merging_nothing_changes_nothing() -> None:
    model, (length, span) = small_qwen2(), SPANS["in the middle"]
    embeds = random_prompt(model, length)
    keep = Reduction(lambda view: (view.hidden, torch.arange(len(view.hidden))))
    plain, same = (ours(model, embeds, span, plan)[1] for plan in ({}, {2: keep}))
    assert torch.equal(plain, same)


def test_without_a_merge_it_is_the_library() -> None:
    model, (length, span) = small_qwen2(), SPANS["in the middle"]
    embeds = random_prompt(model, length)
    _, logits = ours(model, embeds, span, {})
    appended = model.model.embed_tokens(torch.tensor(APPENDED))
    with torch.inference_mode():
        stock = model(inputs_embeds=torch.cat((embeds, appended))[None]).logits[0, length - 1 :]
    assert near(logits, stock)


def test_a_prompt_may_carry_its_batch_dimension_and_a_slice() -> None:
    model, (length, span) = small_qwen2(), SPANS["in the middle"]
    embeds = random_prompt(model, length)
    flat = prefill(model.model, model.lm_head, embeds, span, PLANS["fold"])
    deep = prefill(model.model, model.lm_head, embeds[None], slice(span.start, span.stop), PLANS["fold"])
    assert torch.equal(flat.logits, deep.logits)


def test_eager_layers_get_a_mask() -> None:
    model, (length, span) = small_qwen2(), SPANS["in the middle"]
    embeds = random_prompt(model, length)
    before = ours(model, embeds, span, PLANS["fold"])[1]
    model.set_attn_implementation("eager")
    try:
        eager = ours(model, embeds, span, PLANS["fold"])[1]
    finally:
        model.set_attn_implementation("sdpa")
    assert near(eager, before)


def test_before_the_first_layer_there_is_no_layer_to_look_at() -> None:
    model, (length, span) = small_qwen2(), SPANS["in the middle"]
    with pytest.raises(ValueError, match="layer 0"):
        prefill(model.model, model.lm_head, random_prompt(model, length), span, {0: FOLD})


def test_rows_of_different_lengths_decode_side_by_side() -> None:
    """The cache counts every row by itself, so prompts of different lengths can share a step."""
    model = small_qwen2()
    prompts = [(random_prompt(model, 30, 1), range(4, 25)), (random_prompt(model, 17, 2), range(2, 9))]
    alone = [ours(model, embeds, span, PLANS["several"]) for embeds, span in prompts]
    states = [
        prefill(model.model, model.lm_head, embeds, span, PLANS["several"], room=len(APPENDED))
        for embeds, span in prompts
    ]
    joined = StaticCache(DEPTH, 0)
    for layer in range(DEPTH):
        room = max(state.cache.keys[layer].shape[2] for state in states)
        for name in ("keys", "values"):
            parts = [getattr(state.cache, name)[layer] for state in states]
            buffers = [torch.nn.functional.pad(part, (0, 0, 0, room - part.shape[2])) for part in parts]
            getattr(joined, name)[layer] = torch.cat(buffers)
        joined.lengths[layer] = torch.cat([state.cache.lengths[layer] for state in states])
    position = torch.cat([state.next_position for state in states])
    with torch.inference_mode():
        for step, token in enumerate(APPENDED, 1):
            logits = decode_one_token(model.model, model.lm_head, joined, torch.tensor([token] * 2), position)
            position = position + 1
            for row, (_, expected) in enumerate(alone):
                assert near(logits[row], expected[step])


def test_a_reduction_before_a_layer_that_is_not_there() -> None:
    language = small_qwen2(4, 2)
    (reduction,) = HoliTom(inner_layer=1).reductions(6).values()
    embeds = torch.zeros(6, language.config.hidden_size)
    with pytest.raises(ValueError, match="before layer 99"):
        prefill(language.model, language.lm_head, embeds, range(1, 5), {99: reduction})


# --- pruning the cache -----------------------------------------------------------------------


def every_third(layers: Sequence[CacheView]) -> list[Tensor]:
    """Another row to begin with in each layer, so that layers keep different tokens and numbers of them."""
    return [torch.arange(index % 2, view.attention.shape[1], 3) for index, view in enumerate(layers)]


@pytest.mark.parametrize("plan", ["none", "one"])
def test_a_pruned_cache_is_one_whose_other_entries_are_hidden(plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (length, span) = small_qwen2(), SPANS["in the middle"]
    embeds, reductions = random_prompt(model, length), {} if plan == "none" else {3: DROP}
    depth = len(model.model.layers)

    def state(evict: Any = None) -> Prefill:
        return prefill(model.model, model.lm_head, embeds, span, reductions, room=3, evict=evict)

    def speak(from_state: Prefill) -> Tensor:
        token, position = torch.tensor([5]), from_state.next_position.clone()
        said = []
        for _ in range(3):
            said.append(decode_one_token(model.model, model.lm_head, from_state.cache, token, position))
            token, position = said[-1].argmax(-1), position + 1
        return torch.stack(said)

    pruned, whole = state(every_third), state()
    assert (whole.cached, len(pruned.cached)) == ((), depth)
    widths = [keys.shape[2] for keys in pruned.cache.keys]
    rows = [len(span) if plan == "none" or layer < 3 else whole.inside[0][1] for layer in range(depth)]
    assert widths == [length - len(span) + kept + 3 for kept in pruned.cached]
    assert list(pruned.cached) == [len(range(layer % 2, rows[layer], 3)) for layer in range(depth)]
    torch.testing.assert_close(pruned.logits, whole.logits)  # the prompt itself was read whole
    answer = speak(pruned)
    assert (answer - speak(state())).abs().max() > 1e-3  # control: what is hidden matters
    mask = StaticCache.mask

    def hiding(cache: StaticCache, layer: int, dtype: torch.dtype) -> Tensor:
        hidden = mask(cache, layer, dtype)
        gone = [row for row in range(rows[layer]) if row not in range(layer % 2, rows[layer], 3)]
        hidden[..., [span.start + row for row in gone]] = -torch.inf
        return hidden

    monkeypatch.setattr(StaticCache, "mask", hiding)
    hidden = state()
    hidden.cache.lengths = [lengths.clone() for lengths in hidden.cache.lengths]  # a mask for each layer
    assert near(answer, speak(hidden))


def test_a_method_that_prunes_sees_every_layers_attention() -> None:
    model, (length, span) = small_qwen2(), SPANS["in the middle"]
    seen: list[CacheView] = []

    def keep(layers: Sequence[CacheView]) -> list[Tensor]:
        seen.extend(layers)
        return [torch.arange(view.attention.shape[1]) for view in layers]

    prefill(model.model, model.lm_head, random_prompt(model, length), span, {}, evict=keep)
    later = views(replace(DROP, rows="all"), layer=4)  # looks at layer 3
    torch.testing.assert_close(seen[3].attention, later.attention)
    assert seen[3].text.shape == (length - span.stop,)
    before = seen[3].attention[-1].sum() + seen[3].text.sum()
    assert 0 < float(before) < 1  # the rest went to the text before the video
