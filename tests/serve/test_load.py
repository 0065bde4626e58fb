"""The load test, with few clients."""

from __future__ import annotations

from pathlib import Path

from tests.serve.load import answers, measure
from tests.serve.served import Served


def test_answers_are_right_beside_rough_clients(served: Served, clips: list[Path]) -> None:
    own = answers(clips[:2])
    told = measure(served, own, clients=8, rounds=1)
    assert (told["wrong"], told["places_taken"], told["rows_taken"]) == (0, 0, 0)
    assert told["different_answers"] > 1
    first, *others = own
    spoilt = {first: "something else", **{pair: own[pair] for pair in others}}
    assert measure(served, spoilt, clients=1, rounds=1)["wrong"] == 3  # control: in each of the three runs
