"""Prompts that begin alike: what is kept of one gives the next one the very logits that reading it whole gives."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from holitom_cli.model.decode import decode_one_token
from holitom_cli.model.kept import Kept
from holitom_cli.model.layers import decoder_layer, join_language
from holitom_cli.model.prefill import Prefill, prefill
from holitom_cli.types import Reduction
from tests.model.language import DEPTH, random_prompt, small_qwen2
from tests.model.test_prefill import APPENDED, FOLD, NEAR, PLANS, account, distance

SPAN = range(4, 25)
ROOM = 600  # more than a block, so that buffers grow


@pytest.fixture(scope="module", params=[False, True], ids=["the library's layers", "joined layers"])
def model(request: pytest.FixtureRequest) -> Any:
    small = copy.deepcopy(small_qwen2())
    if request.param:
        join_language(small.model)
    return small


def conversation(model: Any) -> list[Tensor]:
    """Prompts (L, D): each longer than the one before, one forked off earlier, one asked again, one about another clip.

    Of the video none but the last changes anything.
    """
    long = random_prompt(model, 60)
    other_turn = torch.cat((long[:40], random_prompt(model, 7, seed=1)))
    other_clip = torch.cat((long[:20], random_prompt(model, 30, seed=2)))
    return [long[:30], long[:31], long[:52], other_turn, other_turn, long, other_clip]


REUSED = [0, 30, 31, 40, 46, 40, 0]


def answered(
    model: Any,
    embeds: Tensor,
    plan: Mapping[int, Reduction],
    room: int,
    kept: Kept | None = None,
    span: range = SPAN,
    gaps: Sequence[range] = (),
) -> tuple[Prefill, Tensor]:
    """The prefilled prompt, and logits (1 + appended, V); appending tokens leaves them behind what is kept."""
    state = prefill(model.model, model.lm_head, embeds, span, plan, gaps=gaps, room=room, kept=kept)
    rows, position = [state.logits], state.next_position
    for token in APPENDED:
        rows.append(decode_one_token(model.model, model.lm_head, state.cache, torch.tensor([token]), position))
        position = position + 1
    return state, torch.cat(rows)


@pytest.mark.parametrize("plan", PLANS)
def test_every_prompt_is_as_if_read_whole(model: Any, plan: str) -> None:
    kept, reused = Kept(DEPTH, PLANS[plan]), []
    for number, embeds in enumerate(conversation(model)):
        room = ROOM if number == 2 else len(APPENDED)
        state, logits = answered(model, embeds, PLANS[plan], room, kept)
        whole, expected = answered(model, embeds, PLANS[plan], room)
        assert account(state) == account(whole)
        assert distance(logits, expected) < NEAR
        assert distance(state.hidden, whole.hidden) < NEAR
        assert [keys.shape for keys in state.cache.keys] == [keys.shape for keys in whole.cache.keys]
        reused.append(kept.reused)
    assert reused == REUSED


def test_control_what_is_not_equal_or_comes_later_is_seen(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *_, other = conversation(model)
    plan = {3: FOLD}
    late = Kept(DEPTH, {4: FOLD})  # keeps a layer too many
    prefill(model.model, model.lm_head, first, SPAN, {4: FOLD}, kept=late)
    _, wrong = answered(model, first, plan, len(APPENDED), late)
    _, expected = answered(model, first, plan, len(APPENDED))
    assert distance(wrong, expected) > 1000 * NEAR
    kept = Kept(DEPTH, plan)
    answered(model, first, plan, len(APPENDED), kept)
    monkeypatch.setattr(kept, "_common", lambda *_: len(first) - 1)  # believes that nothing has changed
    _, wrong = answered(model, other, plan, len(APPENDED), kept)
    assert distance(wrong, answered(model, other, plan, len(APPENDED))[1]) > 1000 * NEAR


@pytest.mark.parametrize("at", range(DEPTH))
def test_one_that_was_broken_off_leaves_nothing_wrong(model: Any, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it left numbers that are none behind what is kept."""
    first, _, third, *_ = conversation(model)
    kept = Kept(DEPTH, {})
    answered(model, first, {}, ROOM, kept)
    with monkeypatch.context() as patch:

        def until_then(layer: Any, *rest: Any) -> Tensor:
            if layer is model.model.layers[at]:
                raise KeyboardInterrupt
            return decoder_layer(layer, *rest)

        patch.setattr("holitom_cli.model.kept.decoder_layer", until_then)
        with pytest.raises(KeyboardInterrupt):
            prefill(model.model, model.lm_head, torch.cat((first, third[30:] * torch.nan)), SPAN, {}, kept=kept)
        assert kept.reused == len(first)
    _, logits = answered(model, third, {}, len(APPENDED), kept)
    assert distance(logits, answered(model, third, {}, len(APPENDED))[1]) < NEAR


def test_one_that_was_broken_off_while_buffers_grew(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _, third, *_ = conversation(model)
    kept = Kept(DEPTH, {})
    answered(model, first, {}, len(APPENDED), kept)

    def half_done(layer: int, _: Tensor) -> None:
        kept._cache.keys[layer] = kept._cache.keys[layer].repeat(1, 1, 4, 1)
        raise KeyboardInterrupt

    monkeypatch.setattr(kept._cache, "keep", half_done)
    with pytest.raises(KeyboardInterrupt):
        prefill(model.model, model.lm_head, third, SPAN, {}, room=ROOM, kept=kept)
    _, logits = answered(model, third, {}, len(APPENDED), kept)
    assert kept.reused == 0
    assert distance(logits, answered(model, third, {}, len(APPENDED))[1]) < NEAR


@pytest.mark.parametrize(("plan", "layers"), [({}, DEPTH), ({3: FOLD}, 3), ({1: FOLD, 3: FOLD}, 1)])
def test_bytes_are_counted(model: Any, plan: Mapping[int, Reduction], layers: int) -> None:
    kept = Kept(DEPTH, plan)
    assert kept.nbytes == 0
    prefill(model.model, model.lm_head, conversation(model)[0], SPAN, plan, room=9, kept=kept)
    width, heads = model.config.hidden_size, model.config.num_key_value_heads
    slots = 512  # a block
    states = 30 + 30 + (30 - SPAN.stop if plan else 0)
    assert kept.nbytes == 4 * (2 * layers * heads * slots * 12 + states * width)


def test_what_prunes_every_layers_cache_cannot_be_kept(model: Any) -> None:
    embeds = conversation(model)[0]
    with pytest.raises(ValueError, match="cannot be kept"):
        prefill(model.model, model.lm_head, embeds, SPAN, {}, evict=lambda _: [], kept=Kept(DEPTH, {}))
