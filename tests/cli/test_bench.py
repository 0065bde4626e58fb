"""`holitom bench` as its users meet it: tables, documents and rows of the same figures, and what goes wrong."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from holitom_cli.bench import agreement, rivals
from holitom_cli.methods import available, name_of
from tests.make_random_checkpoint import RANDOM
from tests.program import Invoke

QUICK = ("--device", "cpu", "--repeats", "1", "--warmup", "1", "--max-new-tokens", "3", "--quiet")
SMALL = ("bench", "--model", str(RANDOM), *QUICK, "--num-frames", "2")
STAGES = {
    "preprocess", "vision", "attention received", "projector and pool", "compress", "prefill", "merge inside",
    "sample", "ttft", "per token", "step",
}  # fmt: skip


def test_a_sweep_is_one_document(invoke: Invoke, demo_clip: Path) -> None:
    sweep = ["--methods", "holitom,uniform,full", "--budgets", "25,15", "--num-frames", "3,2", "--against", "full"]
    done = invoke("bench", demo_clip, "--model", RANDOM, *QUICK, *sweep, "-o", "json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    rows = document["results"]
    labels = [(row["frames"], row["rival"], row["budget"]) for row in rows]
    assert labels == [
        (frames, *kept)
        for frames in (3, 2)
        for kept in (("holitom", 25), ("holitom", 15), ("uniform", 25), ("uniform", 15), ("full", 100))
    ]
    assert document["settings"]["num_frames"] == [3, 2]
    (model,) = document["models"]
    assert model["agreement"] is None
    assert model["ceilings"]["flops_per_second"] > 0
    for row in rows:
        assert row["model"] == str(RANDOM)
        assert row["original_tokens"] == row["frames"] * 196
        assert row["visual_tokens"] == pytest.approx(row["original_tokens"] * row["budget"] / 100, abs=2)
        assert set(row["stages"]) <= STAGES
        assert set(row["faster_than"]) == ({"full"} if row["rival"] != "full" else set())
        assert all(figures["median_ms"] >= 0 for figures in row["stages"].values())
    assert set(rows[0]["stages"]) == STAGES


def test_all_leaves_out_what_cannot_keep_so_few(invoke: Invoke) -> None:
    alone = ["--against", "none", "--budgets", "10", "-o", "jsonl"]
    loud = [option for option in SMALL if option != "--quiet"]
    done = invoke(*loud, "--methods", "all", *alone)
    assert done.code == 0, done.err
    rivals = {json.loads(line)["rival"] for line in done.out.splitlines()}
    assert {"full", "holitom", "vidcom2", "random"} <= rivals
    said = " ".join(done.err.split())
    left_out = set(re.findall(r"Left out: (\S+) at 10%", said))
    assert left_out == set(available()) - rivals >= {"dycoke", "pyramiddrop"}
    named = invoke(*SMALL, "--methods", "holitom,dycoke", *alone)
    named.sentence(2, "DyCoke cannot keep 10.0%")  # control: what was asked for by name is not left out


def test_a_number_of_tokens_too_small_for_a_method_is_a_row_and_ends_nothing(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []
    monkeypatch.setattr(agreement, "graph_with_plain", lambda _, method, *__: compared.append(name_of(method)))
    done = invoke(*SMALL, "--methods", "all", "--budgets", "60t", "-o", "jsonl")
    assert done.code == 0, done.err
    rows = {row["rival"]: row for row in map(json.loads, done.out.splitlines())}
    assert set(rows) == {*available(), "stock"}
    failed = {name for name, row in rows.items() if "stages" not in row}
    assert failed >= {"dycoke", "dycoke-cache", "fastv", "pyramiddrop"}
    assert "cannot average 15.3% of the visual tokens" in rows["fastv"]["error"]["message"]
    assert set(compared) == set(available()) - failed  # with a graph, which there is on a GPU alone


def test_every_format_holds_the_same_rows(invoke: Invoke) -> None:
    shown = {how: invoke(*SMALL, "--against", "full", "-o", how) for how in ("json", "jsonl", "csv", "md", "table")}
    assert {done.code for done in shown.values()} == {0}
    document = json.loads(shown["json"].out)
    rows = [json.loads(line) for line in shown["jsonl"].out.splitlines()]
    assert [row["rival"] for row in rows] == [row["rival"] for row in document["results"]] == ["holitom", "full"]
    assert [set(row) for row in rows] == [set(row) for row in document["results"]]
    cells = list(csv.DictReader(io.StringIO(shown["csv"].out)))
    pairs = [(row["rival"], stage) for row in rows for stage in row["stages"]]
    assert [(cell["rival"], cell["stage"]) for cell in cells] == pairs
    assert all(float(cell["median_ms"]) >= 0 for cell in cells)
    tables = re.findall(r"((?:^\|.*\n)+)", shown["md"].out, re.MULTILINE)
    assert len(tables) == 3
    assert all(len({line.count("|") for line in table.splitlines()}) == 1 for table in tables)
    last = json.loads(shown["table"].out.splitlines()[-1])
    assert set(last) == set(document)
    assert [row["rival"] for row in last["results"]] == ["holitom", "full"]


def test_tables_fit_a_terminal_and_name_every_stage(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = invoke(*SMALL)
    assert done.code == 0, done.err
    *lines, last = done.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert json.loads(last)["models"][0]["agreement"]["full against stock"]["passed"]
    for label in ("TTFT", "per token", "- merge inside", "- projector and pool", "vision", "stock", "holitom at 15%"):
        assert any(line.strip().startswith(label) for line in lines), label
    text = " ".join(" ".join(lines).split())
    assert "random weights" in text
    assert "; passed" in text
    assert re.search(r"holitom at 15% [^,]*ms \d+\.\d\dx, \d+\.\d\dx", text)


def test_several_models_and_shapes(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    from holitom_cli.model import shapes
    from tests.model.test_shapes import TINY, TOWER

    monkeypatch.setitem(shapes._TEXT, "tiny", TINY)
    monkeypatch.setattr(shapes, "_TOWER", TOWER)
    done = invoke("bench", "--model", "shape:tiny", "--model", RANDOM, *QUICK, "--num-frames", "2", "-o", "jsonl")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["model"] for row in rows] == ["shape:tiny"] * 3 + [str(RANDOM)] * 3
    assert [row["rival"] for row in rows] == ["holitom", "full", "stock"] * 2
    assert {row["weights"] for row in rows} == {"random"}


def test_figures_of_a_wrong_model_are_refused(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    right = agreement._ours
    monkeypatch.setattr(agreement, "_ours", lambda *given, **more: right(*given, **more) * 1.01)
    done = invoke(*SMALL, "-o", "json")
    assert done.code == 1
    assert "from the stock library's." in done.err
    assert not json.loads(done.out)["models"][0]["agreement"]["full against stock"]["passed"]


def test_what_does_not_fit_is_a_row_of_its_own(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(rivals.Stock, "run", full)
    monkeypatch.setattr(agreement, "_stock", full)
    done = invoke(*SMALL, "-o", "json")
    assert done.code == 3
    document = json.loads(done.out)
    ours, _, stock = document["results"]
    assert "stages" in ours
    assert stock["error"]["message"] == "The memory of CPU is not enough for stock."
    assert "not enough" in document["models"][0]["agreement"]["full against stock"]["error"]["message"]
    shown = invoke(*SMALL)
    assert "The memory of CPU is not enough for stock." in shown.out
    cells = list(csv.DictReader(io.StringIO(invoke(*SMALL, "-o", "csv").out)))
    assert cells[-1]["error"] == "The memory of CPU is not enough for stock."


def test_frames_beyond_the_models_positions_are_told(invoke: Invoke) -> None:
    done = invoke(*SMALL[:-1], "200", "--methods", "full", "--against", "none", "-o", "json")
    assert done.code == 0
    (row,) = json.loads(done.out)["results"]
    assert row["error"]["stage"] == "usage"
    assert "200 frames need" in row["error"]["message"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--against", "vllm"), "--against 'vllm' is not known."),
        (("--num-frames", "8,x"), "--num-frames '8,x' is no list of numbers."),
        (("--num-frames", "0"), "--num-frames '0' is no list of numbers."),
        (("--model", "shape:3b"), "There is no shape:3b."),
        (("--methods", "holitim"), "There is no method 'holitim'."),
        (("--budgets", "0"), "The budget '0' is not"),
    ],
)
def test_mistakes_are_told_in_a_sentence(invoke: Invoke, given: tuple[str, ...], said: str) -> None:
    invoke("bench", *QUICK, *given).sentence(2, said)
