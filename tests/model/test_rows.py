"""Several answers at once: every row gives the logits that it gives alone."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from holitom_cli.model.decode import RowDecoder, decode_one_token
from holitom_cli.model.layers import join_language
from holitom_cli.model.prefill import Prefill, prefill
from holitom_cli.types import LayerView, Reduction
from tests.model.language import VOCAB, random_prompt, small_qwen2

ROOM = 24
LENGTHS = (12, 31, 7, 300, 19, 44)  # one of them makes the buffers grow


def keep_every_second(view: LayerView) -> tuple[Tensor, Tensor]:
    into = torch.arange(len(view.hidden))
    into[1:-1:2] = -1
    return view.hidden[into >= 0], into


MERGES: dict[str, Mapping[int, Reduction]] = {"none": {}, "inside": {2: Reduction(keep_every_second)}}


def prompt(length: int, reductions: Mapping[int, Reduction]) -> Prefill:
    model = small_qwen2()
    return prefill(model.model, model.lm_head, random_prompt(model, length, length), range(2, 6), reductions, room=ROOM)


def tokens_of(length: int) -> Tensor:
    """What is appended to a prompt: as many tokens as no other prompt gets."""
    count = 3 + LENGTHS.index(length) * 3
    return torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(length))


def alone(length: int, reductions: Mapping[int, Reduction]) -> Tensor:
    model, state = small_qwen2(), prompt(length, reductions)
    parts = (model.model, model.lm_head, state.cache)
    steps = enumerate(tokens_of(length))
    return torch.cat([decode_one_token(*parts, token[None], state.next_position + at) for at, token in steps])


class Shared(RowDecoder):
    """Rows whose positions are all counted from the longest prompt, which is wrong."""

    def enter(self, state: Prefill) -> int:
        row = super().enter(state)
        self._position[:] = self._position.max()
        return row


def together(reductions: Mapping[int, Reduction], rows: int, kind: type[RowDecoder] = RowDecoder) -> dict[int, Tensor]:
    """Logits of every prompt's appended tokens, prompts entering as soon as a row is free."""
    model = small_qwen2()
    decoder, waiting = kind(model.model, model.lm_head, rows), list(LENGTHS)
    present: dict[int, int] = {}  # row: prompt
    given: dict[int, list[Tensor]] = {length: [] for length in LENGTHS}
    most = 0
    while waiting or present:
        while waiting and decoder.free:
            length = waiting.pop(0)
            present[decoder.enter(prompt(length, reductions))] = length
        most = max(most, len(present))
        token = torch.zeros(rows, dtype=torch.int64)
        for row, length in present.items():
            token[row] = tokens_of(length)[len(given[length])]
        logits = decoder.step(token)
        for row, length in list(present.items()):
            given[length].append(logits[row].clone())
            if len(given[length]) == len(tokens_of(length)):
                decoder.leave(row)
                del present[row]
    assert most == min(rows, len(LENGTHS))
    assert sorted(decoder.free) == list(range(rows))
    return {length: torch.stack(rows) for length, rows in given.items()}


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("rows", [1, 3, 6])
def test_rows_give_the_logits_of_answers_alone(merge: str, rows: int) -> None:
    for length, logits in together(MERGES[merge], rows).items():
        torch.testing.assert_close(logits, alone(length, MERGES[merge]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("merge", MERGES)
def test_control_positions_of_the_longest_row_are_seen(merge: str) -> None:
    wrong = together(MERGES[merge], 3, Shared)
    assert any((logits - alone(length, MERGES[merge])).abs().max() > 1e-2 for length, logits in wrong.items())


def test_rows_of_prompts_that_merge_and_that_do_not() -> None:
    """Layers that had the same lengths in all rows so far have others in the next one."""
    model = small_qwen2()
    decoder = RowDecoder(model.model, model.lm_head, 2)
    kinds = [MERGES["none"], MERGES["inside"]]
    placed = {decoder.enter(prompt(31, kind)): kind for kind in kinds}
    token = torch.full((2,), int(tokens_of(31)[0]))
    logits = decoder.step(token)
    for row, kind in placed.items():
        torch.testing.assert_close(logits[row], alone(31, kind)[0], atol=1e-4, rtol=0)


def test_what_a_row_left_behind_spoils_nothing() -> None:
    model = small_qwen2()
    decoder = RowDecoder(model.model, model.lm_head, 1)
    row = decoder.enter(prompt(44, {}))
    with torch.inference_mode():
        for buffer in (*decoder._cache.keys, *decoder._cache.values):
            buffer[:] = torch.nan
    assert decoder.step(tokens_of(44)[:1]).isnan().any()  # control
    decoder.leave(row)
    decoder.enter(prompt(12, {}))
    torch.testing.assert_close(decoder.step(tokens_of(12)[:1])[0], alone(12, {})[0], atol=1e-4, rtol=0)


def test_joined_projections_give_the_same_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers as a loaded checkpoint has them."""
    expected = {length: alone(length, MERGES["inside"]) for length in LENGTHS}
    joined = copy.deepcopy(small_qwen2())
    join_language(joined.model)
    assert hasattr(joined.model.layers[0].mlp, "gate_up")
    monkeypatch.setattr(sys.modules[__name__], "small_qwen2", lambda: joined)
    for length, logits in together(MERGES["inside"], 3).items():
        torch.testing.assert_close(logits, expected[length], atol=1e-4, rtol=0)
