"""--quantize, wherever a model is loaded, and what is said where the memory is not enough."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from holitom_cli.model import device, loading, memory
from tests.make_random_checkpoint import RANDOM
from tests.program import FAST, SCHEMA, Invoke

_QUESTION = "What?"
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_ask_records_it(invoke: Invoke, demo_clip: Path, quantize: str | None) -> None:
    given = ["--quantize", quantize] if quantize else []
    done = invoke("ask", demo_clip, _QUESTION, *FAST, *given, "--json", "--no-cache")
    assert done.code == 0, done.err
    assert done.document()["model"]["quantize"] == quantize
    assert f"(cpu), float32{'+' + quantize if quantize else ''} " in done.err


def test_batch_makes_other_rows(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    common = ["batch", demo_clip, "-q", _QUESTION, *FAST, "--output", rows, "--quiet"]
    for given in ([], ["--quantize", "int8"], ["--quantize", "int4"], ["--quantize", "int8"]):
        assert invoke(*common, *given).code == 0
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["model"]["quantize"] for row in found] == [None, "int8", "int4"]
    assert len({row["key"] for row in found}) == 3
    for row in found:
        SCHEMA.validate(row)
    # What was seen of the clip is nothing that the language model's weights have a part in.
    assert [row["sampling"]["cached"] for row in found] == [False, True, True]


def test_a_dry_run_counts_fewer_bytes(invoke: Invoke, demo_clip: Path) -> None:
    def said(*given: str) -> str:
        done = invoke("batch", demo_clip, "-q", _QUESTION, *FAST, *given, "--dry-run")
        return next(line for line in done.out.splitlines() if line.startswith("memory"))

    assert said() != said("--quantize", "int8") != said("--quantize", "int4")


def test_what_is_not_known(invoke: Invoke, demo_clip: Path) -> None:
    invoke("ask", demo_clip, _QUESTION, *FAST, "--quantize", "int3").sentence(2, "--quantize 'int3' is not known")
    spread = ["--model", RANDOM, "--device-map", "auto", "--quantize", "int8"]
    invoke("ask", demo_clip, _QUESTION, *spread).sentence(2, "cannot be used together")


def test_ask_and_batch_look_before_they_read(invoke: Invoke, demo_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that says that it has a GPU; were a weight read, that would be an error of another kind."""
    for place in (device, loading):
        monkeypatch.setattr(place, "choose_device", lambda _: CUDA)
        monkeypatch.setattr(place, "choose_dtype", lambda *_: torch.bfloat16)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 3 * 2**20)
    monkeypatch.setattr(memory, "device_name", lambda _: "Small Card")
    monkeypatch.setattr(loading, "reading", None)
    for command in (["ask", demo_clip, _QUESTION], ["batch", demo_clip, "-q", _QUESTION]):
        done = invoke(*command, "--model", RANDOM, "--no-cache")
        done.sentence(1, "about 32 frames takes")
        assert "Small Card has 0.0 GiB free." in done.err
