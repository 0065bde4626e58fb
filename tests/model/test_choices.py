"""Probabilities of given answers against recomputing the whole prompt with each of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from holitom_cli import pipeline
from holitom_cli.errors import GenerationError, UsageError
from holitom_cli.model import load_model
from holitom_cli.model.choices import Choices, choice_probabilities, encode_choices, log_probabilities
from holitom_cli.model.decode import decode_one_token
from holitom_cli.model.loading import Model
from holitom_cli.model.prefill import Prefill, prefill
from holitom_cli.model.prompt import prompt_embeds
from holitom_cli.types import LayerView, Reduction, Watched
from tests.model.language import random_prompt, recompute, small_qwen2

SPAN = range(3, 15)
CONTINUATIONS = [[5], [5, 6], [5, 6, 7], [90, 5], [13, 13, 13, 13, 13]]
END_IDS = [40, 41]


def halve(view: LayerView) -> tuple[Tensor, Tensor]:
    """Keep the even rows of the span."""
    into = torch.arange(len(view.hidden)) // 2 * 2
    return view.hidden[::2], into


REDUCTIONS = {2: Reduction(halve)}


def start(reductions: dict[int, Reduction], room: int = 5) -> Prefill:
    model = small_qwen2()
    return prefill(model.model, model.lm_head, random_prompt(model, 20), SPAN, reductions, room=room)


def fast(state: Prefill, continuations: list[list[int]], end_ids: list[int]) -> list[float]:
    model = small_qwen2()
    scores: list[float] = log_probabilities(model.model, model.lm_head, state, continuations, end_ids).tolist()
    return scores


def slow(reductions: dict[int, Reduction], tokens: list[int], end_ids: list[int]) -> float:
    """Everything again, without a cache."""
    model = small_qwen2()
    logits = recompute(model, random_prompt(model, 20), SPAN, reductions, tokens).logits
    shares = logits.double().softmax(-1)
    likelihood = 1.0
    for step, token in enumerate(tokens):
        likelihood *= float(shares[step, token])
    if end_ids:
        likelihood *= float(shares[len(tokens), end_ids].sum())
    return float(torch.tensor(likelihood, dtype=torch.float64).log())


@pytest.mark.parametrize("reductions", [{}, REDUCTIONS], ids=["full", "reduced"])
@pytest.mark.parametrize("end_ids", [[], END_IDS], ids=["open", "ended"])
def test_log_probabilities_are_those_of_recomputing(reductions: dict[int, Reduction], end_ids: list[int]) -> None:
    expected = [slow(reductions, tokens, end_ids) for tokens in CONTINUATIONS]
    found = fast(start(reductions), CONTINUATIONS, end_ids)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-4, rtol=0)
    other = [slow(reductions, [6, *tokens[1:]], end_ids) for tokens in CONTINUATIONS]
    assert max(abs(a - b) for a, b in zip(found, other, strict=True)) > 1e-2  # control


def test_one_continuation_does_not_spoil_the_next() -> None:
    state = start(REDUCTIONS)
    lengths = [length.clone() for length in state.cache.lengths]
    first = fast(state, CONTINUATIONS, END_IDS)
    assert fast(state, CONTINUATIONS[::-1], END_IDS) == first[::-1]
    alone = [fast(start(REDUCTIONS), [tokens], END_IDS)[0] for tokens in CONTINUATIONS]
    assert alone == first
    for before, after in zip(lengths, state.cache.lengths, strict=True):
        assert torch.equal(before, after)


def test_control_without_rewinding_the_next_is_spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fast(start(REDUCTIONS, room=20), CONTINUATIONS, END_IDS)
    monkeypatch.setattr("holitom_cli.model.cache.StaticCache.rewind", lambda *_: None)
    spoilt = fast(start(REDUCTIONS, room=20), CONTINUATIONS, END_IDS)
    assert spoilt[0] == pytest.approx(right[0])
    assert abs(spoilt[-1] - right[-1]) > 1e-3


def test_a_cache_without_room_is_refused() -> None:
    assert len(fast(start({}, room=4), CONTINUATIONS, [])) == 5
    with pytest.raises(ValueError, match="5 tokens do not fit into a cache with room for 4"):
        fast(start({}, room=4), CONTINUATIONS, END_IDS)


# --- choices in words ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Model:
    return load_model(str(tiny_checkpoint), device="cpu")


@pytest.fixture(scope="module")
def watched(model: Model, demo_clip: Path) -> Watched:
    return pipeline.watch(model, demo_clip, num_frames=2)


def sentence(model: Model, watched: Watched, choices: list[str]) -> dict[str, float]:
    answer = pipeline.choose(model, watched, "Is it night?", choices)
    assert answer.text == max(answer.choices, key=lambda choice: choice.probability).text
    assert (answer.finish_reason, answer.token_ids, answer.tokens.generated) == ("choice", (), 0)
    assert answer.timings.tpot_ms is None
    assert answer.timings.ttft_ms > 0
    return {choice.text: choice.probability for choice in answer.choices}


def test_choices_that_differ_at_once_have_the_first_tokens_odds(model: Model, watched: Watched) -> None:
    shares = sentence(model, watched, ["yes", "no", "maybe"])
    ids = [model.chat.tokenizer.encode(text)[0] for text in shares]
    assert len(set(ids)) == 3
    before, after = model.chat.encode("Is it night?")
    embeds, span = prompt_embeds(model, before, watched.visual, after)
    state = prefill(
        model.language_model, model.lm_head, embeds, span, watched.method.reductions(model.checkpoint.depth)
    )
    expected = state.logits[0, ids].softmax(0)
    torch.testing.assert_close(torch.tensor(list(shares.values())), expected, atol=1e-6, rtol=0)
    assert sum(shares.values()) == pytest.approx(1)
    swapped = sentence(model, watched, ["maybe", "no", "yes"])
    assert swapped == pytest.approx(shares)


def test_choices_with_a_common_beginning_are_summed_with_their_end(model: Model, watched: Watched) -> None:
    texts = ["yes", "yes it is", "no"]
    shares = sentence(model, watched, texts)
    before, after = model.chat.encode("Is it night?")
    embeds, span = prompt_embeds(model, before, watched.visual, after)
    reductions = watched.method.reductions(model.checkpoint.depth)
    scores = []
    for text in texts:  # the prompt again for every choice
        tokens = model.chat.tokenizer.encode(text)
        state = prefill(model.language_model, model.lm_head, embeds, span, reductions, room=10)
        total = 0.0
        shown = state.logits
        for step, token in enumerate(tokens):
            total += float(shown[0].log_softmax(-1)[token])
            shown = decode_one_token(
                model.language_model, model.lm_head, state.cache, torch.tensor([token]), state.next_position + step
            )
        scores.append(total + float(shown[0].softmax(-1)[sorted(model.chat.end_ids)].sum().log()))
    expected = torch.tensor(scores).softmax(0).tolist()
    assert list(shares.values()) == pytest.approx(expected, abs=1e-4)
    first_only = sentence(model, watched, ["yes", "no"])
    assert shares["no"] != pytest.approx(first_only["no"], abs=1e-4)  # control


def test_room_is_asked_for_only_where_it_is_needed() -> None:
    assert Choices(("a", "b"), ((1, 2, 3), (4, 5))).room == 0
    assert Choices(("a", "b"), ((1, 2, 3), (1, 5))).room == 3


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        (["yes"], "two choices or more"),
        ([], "two choices or more"),
        (["yes", " "], "none of them empty"),
        (["yes", "<|im_end|>"], "The choice contains '<|im_end|>', which has a special meaning".replace("|", r"\|")),
        (["yes", "no", "yes"], "cannot tell the choice 'yes' from 'yes'"),
    ],
)
def test_choices_that_are_none_are_refused(model: Model, choices: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        encode_choices(model.chat, choices)


def test_logits_that_are_no_numbers_end_with_a_sentence(model: Model) -> None:
    state = start({})
    broken = replace(state, logits=torch.full_like(state.logits, torch.nan))
    with pytest.raises(GenerationError, match="not a number"):
        choice_probabilities(model, broken, Choices(("a", "b"), ((1,), (2,))))
