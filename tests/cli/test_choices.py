"""`--choices` in `ask` and `batch`: the likeliest of given answers, with probabilities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import ValidationError  # type: ignore[import-untyped]

from tests.program import FAST, SCHEMA, Invoke

QUESTION = "Is it night?"
SMALL = FAST[:6]


def entry(document: dict[str, Any]) -> dict[str, float]:
    return {choice["text"]: choice["probability"] for choice in document["choices"]}


def test_ask_prints_the_likeliest_and_reports_all(invoke: Invoke, demo_clip: Path) -> None:
    plain = invoke("ask", demo_clip, QUESTION, "--choices", "yes, no,maybe", *SMALL)
    assert plain.code == 0, plain.err
    document = invoke("ask", demo_clip, QUESTION, "--choices", "yes,no,maybe", *SMALL, "--json").document()
    shares = entry(document["results"][0])
    assert list(shares) == ["yes", "no", "maybe"]
    assert sum(shares.values()) == pytest.approx(1)
    assert plain.out == max(shares, key=lambda text: shares[text]) + "\n"
    assert plain.out == document["results"][0]["answer"] + "\n"
    assert document["results"][0]["finish_reason"] == "choice"
    for text, share in shares.items():
        assert f"  {text}" in plain.err
        assert f" {share:.1%} " in plain.err
    assert "the likeliest of 3 choices, nothing was generated" in plain.err
    assert "per token" not in plain.err
    with pytest.raises(ValidationError):  # control: the schema looks at choices
        SCHEMA.validate(document | {"results": [document["results"][0] | {"choices": [{"text": "yes"}]}]})


def test_without_streaming_and_with_a_baseline_it_is_the_same(invoke: Invoke, demo_clip: Path) -> None:
    given = ["ask", demo_clip, QUESTION, "--choices", "yes,no", *SMALL]
    done = invoke(*given, "--no-stream", "--baseline")
    assert done.code == 0, done.err
    assert done.out == invoke(*given, "--quiet").out
    assert "Against full" in done.err
    assert "per token" not in done.err
    ours, full = invoke(*given, "--baseline", "--json").document()["results"]
    assert (ours["method"], full["method"]) == ("holitom", "full")
    assert entry(ours) != entry(full)  # other tokens, other odds
    assert ours["agrees_with_baseline"] is (ours["answer"] == full["answer"])


def test_batch_rows_have_choices_and_their_own_keys(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    for choices in (["--choices", "yes,no"], ["--choices", "no,yes"], [], ["--choices", "yes,no"]):
        assert invoke("batch", demo_clip, "-q", QUESTION, *SMALL, "-o", output, *choices).code == 0
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        SCHEMA.validate(row)
    assert len({row["key"] for row in rows}) == len(rows) == 3  # the last one was there already
    assert entry(rows[0]) == pytest.approx(entry(rows[1]))
    assert "choices" not in rows[2]
    asked = invoke("ask", demo_clip, QUESTION, "--choices", "yes,no", *SMALL, "--json").document()["results"][0]
    assert entry(rows[0]) == entry(asked)


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ("yes", "There have to be two choices or more, none of them empty."),
        ("yes,,no", "There have to be two choices or more, none of them empty."),
        ("", "There have to be two choices or more, none of them empty."),
        ("yes,yes", "The model's tokenizer cannot tell the choice 'yes' from 'yes'."),
    ],
)
@pytest.mark.parametrize("command", ["ask", "batch"])
def test_choices_that_are_none(invoke: Invoke, demo_clip: Path, command: str, choices: str, said: str) -> None:
    asked = [QUESTION] if command == "ask" else ["-q", QUESTION]
    invoke(command, demo_clip, *asked, "--choices", choices, *SMALL).sentence(2, said)


@pytest.mark.parametrize("option", ["--max-new-tokens", "--temperature", "--top-p", "--seed"])
@pytest.mark.parametrize("command", ["ask", "batch"])
def test_options_of_generation_have_no_place_beside_choices(
    invoke: Invoke, demo_clip: Path, command: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [command, demo_clip, *([QUESTION] if command == "ask" else ["-q", QUESTION]), "--choices", "yes,no", *SMALL]
    said = f"With --choices nothing is generated, so {option} has no effect."
    invoke(*given, option, "1").sentence(2, said)
    monkeypatch.setenv("HOLITOM_" + option.strip("-").replace("-", "_").upper(), "1")
    assert invoke(*given).code == 0  # a default of the user's is no contradiction
