"""The comparison with HoliTom: its table, and its errors over clips."""

from __future__ import annotations

from pathlib import Path

import pytest

from holitom_cli.quality.items import Item
from holitom_cli.quality.shapes import ShapesClip
from tests import beyond


def test_questions_about_one_clip_are_not_independent() -> None:
    apart = [(f"clip {number}", number % 2) for number in range(100)]
    mean, error = beyond.paired(apart)
    assert mean == 0.5
    assert error == pytest.approx(0.05, rel=0.1)
    together = [(f"clip {number // 10}", number // 10 % 2) for number in range(100)]
    mean, error = beyond.paired(together)
    assert mean == 0.5
    assert error == pytest.approx(0.158, rel=0.1)  # control: ten clips say less than a hundred


def test_the_table_has_a_row_for_each_variant(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--model", str(tiny_checkpoint), "--limit", "3", "--budgets", "20", "holitom:inner_layer=off", "full"]
    beyond.main(asked)
    _, _, base, same, full = capsys.readouterr().out.splitlines()
    assert base.startswith("| `holitom` | 20% | ")
    assert base.endswith(" |  |")
    assert " ± " in same
    assert full.startswith("| `full` | 100% | ")


def test_differences_are_against_what_is_named(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--model", str(tiny_checkpoint), "--limit", "3", "--budgets", "20", "--against", "uniform", "holitom"]
    beyond.main(asked)
    _, _, base, other = capsys.readouterr().out.splitlines()
    assert base.startswith("| `uniform` | 20% | ")
    assert base.endswith("% ± 0.0 |  |")  # random weights are right about nothing
    assert other.startswith("| `holitom` | 20% | ")
    assert other.endswith("| 0.0% ± 0.0 | +0.0 ± 0.0 |")


def test_what_is_gained_and_lost_is_counted_by_question() -> None:
    items = [Item(ShapesClip(0, number // 2), f"What is {number}?", "one") for number in range(4)]
    ours, theirs = (
        {item: beyond.Asked(right, 10, 1.0) for item, right in zip(items, rights, strict=True)}
        for rights in ([True, True, True, False], [True, False, False, False])
    )
    assert beyond.difference(ours, theirs).startswith("+50.0 ± ")
    assert beyond.difference(theirs, ours).startswith("-50.0 ± ")  # control
