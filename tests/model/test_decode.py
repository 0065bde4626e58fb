"""Choosing tokens: greedy, by temperature and from the nucleus; and what ends an answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from holitom_cli.errors import GenerationError
from holitom_cli.model.decode import choose, generate
from holitom_cli.model.prefill import Prefill, prefill
from holitom_cli.types import Generation
from tests.model.language import random_prompt, recompute, small_qwen2

SHARES = torch.tensor([0.05, 0.4, 0.3, 0.15, 0.1])
GREEDY = Generation()


def draw(shares: Tensor, generation: Generation, count: int = 4000) -> Tensor:
    """How often each token is chosen."""
    generator = torch.Generator().manual_seed(generation.seed)
    logits = shares.log().expand(count, -1)
    return torch.bincount(choose(logits, generation, generator), minlength=len(shares)) / count


def test_greedy_takes_the_likeliest_and_the_lower_of_equals() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, 1.0, 1.0]])
    assert choose(logits, GREEDY, None).tolist() == [1, 0]
    assert choose(logits.bfloat16(), GREEDY, None).dtype == torch.int64


def test_temperature_one_draws_by_probability() -> None:
    torch.testing.assert_close(draw(SHARES, Generation(temperature=1.0)), SHARES, atol=0.03, rtol=0)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_sharpens_and_flattens(temperature: float) -> None:
    expected = SHARES ** (1 / temperature) / (SHARES ** (1 / temperature)).sum()
    torch.testing.assert_close(draw(SHARES, Generation(temperature=temperature)), expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("temperature", [1e-3, 1e-38, 5e-324])
def test_next_to_no_temperature_is_greedy(temperature: float) -> None:
    assert draw(SHARES, Generation(temperature=temperature), 200)[1] == 1


@pytest.mark.parametrize(
    ("top_p", "allowed"),
    [
        (1e-320, {1}),  # nothing in float32
        (1e-9, {1}),
        (0.39, {1}),
        (0.41, {1, 2}),
        (0.69, {1, 2}),
        (0.71, {1, 2, 3}),
        (0.96, {0, 1, 2, 3, 4}),
        (1.0, {0, 1, 2, 3, 4}),
    ],
)
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(top_p: float, allowed: set[int]) -> None:
    drawn = draw(SHARES, Generation(temperature=1.0, top_p=top_p))
    assert set(drawn.nonzero()[:, 0].tolist()) == allowed
    expected = torch.tensor([float(share) if index in allowed else 0.0 for index, share in enumerate(SHARES)])
    torch.testing.assert_close(drawn, expected / expected.sum(), atol=0.03, rtol=0)


def test_the_nucleus_is_taken_after_the_temperature() -> None:
    drawn = draw(SHARES, Generation(temperature=0.25, top_p=0.7))
    assert set(drawn.nonzero()[:, 0].tolist()) == {1}  # sharpened, the likeliest alone has more than 70%


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_marked(bad: float, temperature: float) -> None:
    logits = torch.zeros(2, 5)
    logits[1, 3] = bad
    token = choose(logits, Generation(temperature=temperature), torch.Generator().manual_seed(0))
    assert token[0] >= 0
    assert token[1] == -1


def state() -> Prefill:
    model = small_qwen2()
    return prefill(model.model, model.lm_head, random_prompt(model, 12), range(2, 8), {}, room=40)


def ids(generation: Generation, end_ids: frozenset[int] = frozenset()) -> list[int]:
    model = small_qwen2()
    return list(generate(model.model, model.lm_head, state(), generation, end_ids))


def test_greedy_generation_is_the_likeliest_at_every_step() -> None:
    model, made = small_qwen2(), ids(Generation(max_new_tokens=20))
    assert len(made) == 20
    slow = recompute(model, random_prompt(model, 12), range(2, 8), {}, made[:-1])
    assert slow.logits.argmax(-1).tolist() == made


def test_sampling_is_reproducible_and_the_seed_matters() -> None:
    first, again, other = (ids(Generation(20, 1.5, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    state_of_the_world = torch.random.get_rng_state()
    ids(Generation(20, 1.5))
    assert torch.equal(torch.random.get_rng_state(), state_of_the_world)  # nobody else's draws are touched


def test_an_end_token_ends_the_answer_and_is_the_last() -> None:
    made = ids(Generation(max_new_tokens=20))
    end = made[7]
    assert ids(Generation(max_new_tokens=20), frozenset([end])) == made[: made.index(end) + 1]
    assert ids(Generation(max_new_tokens=1)) == made[:1]


@pytest.mark.parametrize("after", [0, 1])
def test_logits_that_are_no_numbers_end_with_a_sentence(after: int) -> None:
    model, start = small_qwen2(), state()
    if after == 0:
        start = replace(start, logits=torch.full_like(start.logits, torch.nan))
    arriving = generate(model.model, model.lm_head, start, Generation(max_new_tokens=5), frozenset())
    made = [next(arriving) for _ in range(after)]
    with torch.inference_mode():
        start.cache.keys[2][:] = torch.inf  # what an overflow in float16 leaves behind
    with pytest.raises(GenerationError, match="not a number") as caught:
        next(arriving)
    assert len(made) == after
    assert "--dtype" in caught.value.hint
